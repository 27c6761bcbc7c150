"""What may a client not do: send too much, too slowly, or nothing at all, or take no answer?

A body is read here before anything else happens, within its size and its time, so that a slow or
greedy client costs a connection and what it has sent, no more. Until the headers of a request are
there the connection itself has a deadline; and so it has while something lies here that the client
does not take.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_PIECE = 1 << 16
"""Bytes of an answer that are handed to the connection at a time."""

_MAX_HEADERS = 1 << 16
"""Bytes of a request besides its body."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def error_body(kind: str, message: str) -> dict[str, str]:
    """What every answer says that is no success."""
    return {"error": kind, "message": message}


class Limits:
    """ASGI middleware that reads bodies, and hands out answers piece by piece."""

    def __init__(self, app: App, *, max_body: int, max_bodies: int, timeout_s: float) -> None:
        """
        Args:
            max_body: bytes of one request.
            max_bodies: bytes of all that are here, answers that are not yet taken among them.
            timeout_s: longest a body may take to arrive.
        """
        self._app = app
        self._max_body, self._max_bodies, self._timeout_s = max_body, max_bodies, timeout_s
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            refused = await self._read(scope, receive, body)
            if refused is not None:
                await _refuse(send, *refused)
                return
            await self._app(scope, _replay(bytes(body), receive), self._in_pieces(send))
        finally:
            self._held -= len(body)

    async def _read(
        self, scope: Message, receive: Receive, body: bytearray
    ) -> tuple[int, str, str] | None:
        """Fill `body`. Returns the status and the words of a refusal, or None."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = (
            413,
            "TooLarge",
            f"expected a body of at most {self._max_body:,} bytes. Send fewer samples at once.",
        )
        if length.isdigit() and int(length) > self._max_body:
            return too_large
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return 400, "Disconnected", "the client has gone"
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > self._max_body:
                        return too_large
                    if self._held > self._max_bodies:
                        return 503, "Busy", "too much is being read. Come again in a moment."
                    if not message.get("more_body", False):
                        return None
        except TimeoutError:
            return 408, "TooSlow", f"expected the whole body within {self._timeout_s:g} s"

    def _in_pieces(self, send: Send) -> Send:
        """What hands out a large body in pieces, each when the one before has been taken, and
        counts it until all have."""

        async def sent(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= _PIECE:
                await send(message)
                return
            self._held += len(body)
            try:
                for begin in range(0, len(body), _PIECE):
                    await send({**message, "body": body[begin : begin + _PIECE], "more_body": True})
                await send({**message, "body": b""})  # this waits for the last piece
            finally:
                self._held -= len(body)

        return sent


def _replay(body: bytes, receive: Receive) -> Receive:
    """What hands out the body once, and then what comes after it."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, status: int, kind: str, message: str) -> None:
    headers, content = _refusal(status, kind, message)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _refusal(status: int, kind: str, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an answer to a request that is not read to its end."""
    content = json.dumps(error_body(kind, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return headers, content


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
            self.send_400_response("")
        self._expect_headers()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and what has too many headers."""
        status, kind = 400, "HTTPError"
        if self._too_many_headers:
            status, kind = 431, "TooLarge"
            msg = f"expected at most {_MAX_HEADERS:,} bytes of headers"
        headers, content = _refusal(status, kind, msg)
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
