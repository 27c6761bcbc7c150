"""How can a wait on the store end before its time, and without stalling anybody?

A client of a TCPStore is one socket: a wait on it blocks every other use, nothing interrupts it,
and a client more is a connection more, for which the store looks its caller's name up (when the
name server is silent, that stops the store for everyone, for seconds; torch 2.13). So where a
process group is built on a session that may be over at any moment, its waits only look again and
again, over the client that is there.
"""

from __future__ import annotations

import time
from datetime import timedelta
from threading import Event

import torch.distributed as dist

from mach.errors import ChannelError, ChannelTimeoutError

_LOOK_S = 0.005


class SessionStore(dist.Store):
    """The part of a store that belongs to one session. C++ calls this, too."""

    def __init__(self, store: dist.Store, over: Event, timeout_s: float) -> None:
        """
        Args:
            over: set when the session is given up; whoever waits then fails at once.
            timeout_s: longest wait where the caller sets none.
        """
        super().__init__()
        self._store, self._over, self._timeout_s = store, over, timeout_s

    def set(self, key: str, value: str | bytes) -> None:
        self._store.set(key, value)  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        return self._store.check(keys)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(key)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        ends = time.monotonic() + timeout_s
        while not self._store.check(keys):
            if time.monotonic() > ends:
                raise ChannelTimeoutError(f"nothing came to the store within {timeout_s:g} s")
            if self._over.wait(_LOOK_S):
                raise ChannelError("the session was given up")
