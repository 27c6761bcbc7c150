"""When is a connection closed?

Where a request's headers do not come in time, or have no end, and where something lies here that
the client does not take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mach.serve.limits import refusal

_MAX_HEADERS = 1 << 16
"""Bytes of a request besides its body."""


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection that does not get a request's headers across in time, has too many of
    them, or does not take what is there for it."""

    timeout_s = 10.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Whoever writes waits, and the client has its deadline, for as long as anything lies here.
        transport.set_write_buffer_limits(high=0)
        self._headers_due = _Deadline(self.loop, self.timeout_s, transport.close)
        self._taking_due = _Deadline(self.loop, self.timeout_s, transport.abort)
        self._headers_bytes = self._unparsed_bytes = 0
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)  # which calls `on_..` for every part that is here
        if self._too_many_headers and not self.transport.is_closing():
            self.send_400_response("too many headers")
        self._expect_headers()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too many headers, is told so as JSON."""
        status, kind = 400, "HTTPError"
        if self._too_many_headers:
            status, kind = 431, "TooLarge"
            msg = f"expected at most {_MAX_HEADERS:,} bytes of headers"
        headers, content = refusal(status, kind, msg)
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", content]))
        self.transport.close()

    def on_message_begin(self) -> None:
        self._headers_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_headers(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_headers(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_due.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking_due.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due.drop()
        self._taking_due.drop()
        super().connection_lost(exc)

    @property
    def _too_many_headers(self) -> bool:
        # The parser keeps a header that has not ended, and tells of it when it has.
        return max(self._headers_bytes, self._unparsed_bytes) > _MAX_HEADERS

    def _count_headers(self, size: int) -> None:
        """Of an address, a header, or one behind a body."""
        self._headers_bytes += size
        self._unparsed_bytes = 0
        if self._too_many_headers:
            raise ValueError("too many headers")  # to the parser, which gives up

    def _expect_headers(self) -> None:
        if self.transport.is_closing() or (self.cycle and not self.cycle.response_complete):
            self._headers_due.drop()
        else:
            self._headers_due.set()


class _Deadline:
    """Something is done after a time, if nobody drops it before."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, after_s: float, do: Callable[[], None]
    ) -> None:
        self._loop, self._after_s, self._do = loop, after_s, do
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """From now on, if it is not set already."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._after_s, self._do)

    def drop(self) -> None:
        """It is met, or of no interest any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
