"""How do requests that come at the same time share one run of the model?

While the model computes, requests wait; when it is free, those of one kind become its next batch.
So a lone request is computed at once, and batches grow by themselves as more come. One thread
computes; the event loop goes on reading and writing meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mach.errors import MachError

# B samples of a batch, N rows of logits, C classes

Compute = Callable[[Hashable, Tensor], list[Tensor]]
"""Of a kind of requests, and samples [B, ..]: an answer [B, ..] of each exit."""


class BusyError(MachError):
    """As many samples wait as may."""


@dataclass(eq=False)
class _Waiting:
    kind: Hashable
    x: Tensor
    answer: asyncio.Future[list[Tensor]]


class Batcher:
    """Gathers requests; to be used within one event loop, between `start` and `stop`."""

    def __init__(
        self,
        compute: Compute,
        *,
        max_batch: int,
        wait_s: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda samples, seconds: None,
    ) -> None:
        """
        Args:
            compute: runs the model; is called in a thread, never twice at a time.
            max_batch: samples in one call.
            wait_s: how long the first request of a batch waits for others.
            max_queue: samples that may wait.
            observe: is told the size of each batch and how long it took.
        """
        self._compute, self._observe = compute, observe
        self._max_batch, self._wait_s, self._max_queue = max_batch, wait_s, max_queue
        self._queue: deque[_Waiting] = deque()
        self._samples = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return self._samples

    def start(self) -> None:
        """Begin to compute."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Compute no more; what waits is never answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ask(self, kind: Hashable, x: Tensor) -> list[Tensor]:
        """The answers to samples [B, ..], in a batch with others of this kind and shape.

        Raises:
            BusyError: too many wait.
        """
        if self._samples + len(x) > self._max_queue:
            raise BusyError(
                f"expected at most {self._max_queue:,} samples waiting; {self._samples:,} do. "
                "Come again in a moment."
            )
        loop = asyncio.get_running_loop()
        one = _Waiting((kind, x.shape[1:], x.dtype), x, loop.create_future())
        self._queue.append(one)
        self._samples += len(x)
        self._arrived.set()
        return await one.answer  # cancelled with whoever waits

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._wait_s > 0 and self._samples < self._max_batch:
                await asyncio.sleep(self._wait_s)
            batch = self._take()
            if not batch:
                continue
            kind = batch[0].kind
            assert isinstance(kind, tuple)
            try:
                parts = await loop.run_in_executor(
                    self._thread, self._run, kind[0], [one.x for one in batch]
                )
            except Exception as error:
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, its in zip(batch, parts, strict=True):
                if not one.answer.done():
                    one.answer.set_result(its)

    def _take(self) -> list[_Waiting]:
        """The requests of the next batch, which are of one kind: the oldest, and as many of the
        others as fit."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        size = 0
        while self._queue and size < self._max_batch:
            one = self._queue.popleft()
            if one.answer.done():  # nobody waits for it any more
                self._samples -= len(one.x)
            elif batch and (one.kind != batch[0].kind or size + len(one.x) > self._max_batch):
                left.append(one)
            else:
                batch.append(one)
                size += len(one.x)
        self._queue.extendleft(reversed(left))
        self._samples -= size
        if not self._queue:
            self._arrived.clear()
        return batch

    def _run(self, kind: Hashable, xs: list[Tensor]) -> list[list[Tensor]]:
        """In the thread: the answers to each of these."""
        x = xs[0] if len(xs) == 1 else torch.cat(xs)
        found: list[list[Tensor]] = []
        with torch.inference_mode():
            for part in x.split(self._max_batch):
                began = time.perf_counter()
                found.append(self._compute(kind, part))
                self._observe(len(part), time.perf_counter() - began)
        exits = found[0] if len(found) == 1 else [torch.cat(of) for of in zip(*found, strict=True)]
        by_request = [of_exit.split([len(one) for one in xs]) for of_exit in exits]
        return [list(of_all) for of_all in zip(*by_request, strict=True)]
