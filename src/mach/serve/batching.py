"""How do requests that come at the same time share one run of the model?

While the model computes, requests wait; when it is free, those of one kind become its next batch.
So a lone request is computed at once, and batches grow by themselves as more come. One thread
computes, and takes its next batch by itself; the event loop goes on reading and writing meanwhile.

    event loop    ask ----> the queue                 answered ---->
    thread                      next -> run the model ----^
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

import torch
from torch import Tensor

from mach.errors import MachError

# B samples of a batch, N rows of logits, C classes

Compute = Callable[[Hashable, Tensor], list[Tensor]]
"""Of a kind of requests, and samples [B, ..]: an answer [B, ..] of each exit."""


class BusyError(MachError):
    """As many samples wait as may."""


class TooManyError(MachError):
    """More samples at once than may ever wait."""


@dataclass(eq=False)
class _Waiting:
    kind: tuple[Hashable, ...]
    """What must be the same in a batch, the request's own kind first."""
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
            observe: is told, in the thread, the size of each batch and how long it took.
        """
        self._compute, self._observe = compute, observe
        self._max_batch, self._wait_s, self._max_queue = max_batch, wait_s, max_queue
        self._queue: deque[_Waiting] = deque()
        self._samples = 0
        self._stopping = False
        self._changed = Condition()
        """Held to change these three."""
        self._thread = Thread(target=self._work, name="model", daemon=True)

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return self._samples

    def start(self) -> None:
        """Begin to compute."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Compute no more; what waits is never answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    async def ask(self, kind: Hashable, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        """The answers to each of some samples [B, ..], in batches with others of the same kind and
        shape. All of them wait together, or none does.

        Raises:
            TooManyError: they are too many, whoever else waits.
            BusyError: too many wait.
        """
        samples = sum(map(len, xs))
        self._refuse(samples)
        answers = [asyncio.get_running_loop().create_future() for _ in xs]
        with self._changed:
            for x, answer in zip(xs, answers, strict=True):
                self._queue.append(_Waiting((kind, x.shape[1:], x.dtype), x, answer))
            self._samples += samples
            self._changed.notify()
        try:
            return await asyncio.gather(*answers)
        finally:
            for answer in answers:  # where one failed, nobody waits for the others
                answer.cancel()

    def _refuse(self, samples: int) -> None:
        if samples > self._max_queue:
            raise TooManyError(
                f"expected at most {self._max_queue:,} samples at once; got {samples:,}. Send "
                "fewer at once."
            )
        if self._samples + samples > self._max_queue:
            raise BusyError(
                f"expected at most {self._max_queue:,} samples waiting; {self._samples:,} do. "
                "Come again in a moment."
            )

    # --- in the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                found = self._answers(batch)
                self._loop.call_soon_threadsafe(_answer, batch, found)

    def _next(self) -> list[_Waiting] | None:
        """The requests of the next batch, once there are some; none if nobody waits for them any
        more; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if self._wait_s > 0:
                self._changed.wait_for(self._enough, self._wait_s)
            return None if self._stopping else self._take()

    def _enough(self) -> bool:
        return self._samples >= self._max_batch or self._stopping

    def _take(self) -> list[_Waiting]:
        """Requests of one kind: the oldest, and as many of the others as fit."""
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
        return batch

    def _answers(self, batch: list[_Waiting]) -> list[list[Tensor]] | Exception:
        try:
            return self._run(batch[0].kind[0], [one.x for one in batch])
        except Exception as error:  # theirs: the next batch may do better
            return error

    def _run(self, kind: Hashable, xs: list[Tensor]) -> list[list[Tensor]]:
        """The answers to each of these."""
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


def _answer(batch: list[_Waiting], found: list[list[Tensor]] | Exception) -> None:
    """In the event loop."""
    for place, one in enumerate(batch):
        if one.answer.done():  # cancelled meanwhile
            continue
        if isinstance(found, Exception):
            one.answer.set_exception(found)
        else:
            one.answer.set_result(found[place])
