"""Where is done what would keep the event loop busy?

In one thread, large things one after the other: Python runs one at a time anyway, and each takes
memory meanwhile. Small ones are done at once, where they come: to another thread and back takes
longer than they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# How long work takes is told in numbers of an array that are looked at, a few nanoseconds each.
JSON_BYTE = 16
"""A byte of JSON that is read."""
JSON_ANSWER = 256
"""An answer that is written as JSON."""

_LARGE = 1 << 20


class Aside:
    """A thread for large work, to be used within one event loop until `stop`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "aside")

    def stop(self) -> None:
        """Finish what has begun, and nothing else."""
        self._thread.shutdown(cancel_futures=True)

    async def do(self, numbers: int, work: Callable[[], T]) -> T:
        """What some work returns.

        Args:
            numbers: how large it is.
        """
        if numbers <= _LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
