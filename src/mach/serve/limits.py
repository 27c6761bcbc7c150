"""What may a request not do: bring too much, come too slowly, or leave its answer here?

A body is read here before anything else happens, within its size and its time, so that a slow or
greedy client costs a connection and what it has sent, no more. An answer goes piece by piece, each
as the one before is taken. The deadlines of all but the body are those of the connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_PIECE = 1 << 16
"""Bytes of an answer that are handed to the connection at a time."""

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
    headers, content = refusal(status, kind, message)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def refusal(status: int, kind: str, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer to a request that is not read to its end."""
    content = json.dumps(error_body(kind, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return headers, content
