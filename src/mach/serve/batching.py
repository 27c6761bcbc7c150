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
from mach.inference import computed_together

# B samples of a batch, N rows of logits, C classes

Compute = Callable[[Hashable, Tensor], list[Tensor]]
"""Of a kind of requests, and samples [B, ..]: an answer [B, ..] of each exit."""


class BusyError(MachError):
    """As many samples wait as may."""


class TooManyError(MachError):
    """More at once than may ever wait, or than is kept of an answer."""


@dataclass(eq=False)
class _Waiting:
    kind: tuple[Hashable, torch.Size, torch.dtype]
    """What must be the same in a batch: the request's own kind, and that of its samples."""
    x: Tensor
    answer: asyncio.Future[list[Tensor]]
    since_s: float
    """When it came, by the batcher's clock."""


class Batcher:
    """Gathers requests; to be used within one event loop, between `start` and `stop`."""

    def __init__(
        self,
        compute: Compute,
        *,
        max_batch: int,
        wait_s: float,
        max_queue: int,
        logits: Callable[[Hashable, torch.Size], int] = lambda kind, shape: 1,
        observe: Callable[[int, float], None] = lambda samples, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            compute: runs the model; is called in a thread, never twice at a time.
            max_batch: samples in one call.
            wait_s: how long the first request of a batch waits for others.
            max_queue: samples that may wait.
            logits: of a sample of this kind and shape; where they are many, fewer samples are in
                one call.
            observe: is told, in the thread, the size of each batch and how long it took.
            clock: seconds; by it requests wait for others.
        """
        self._compute, self._logits = compute, logits
        self._observe, self._clock = observe, clock
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
                its = (kind, x.shape[1:], x.dtype)
                self._queue.append(_Waiting(its, x, answer, self._clock()))
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
            if self._wait_s > 0 and self._queue:  # its first may have waited for the model, too
                left_s = self._queue[0].since_s + self._wait_s - self._clock()
                self._changed.wait_for(self._enough, max(0.0, left_s))
            return None if self._stopping else self._take()

    def _enough(self) -> bool:
        return self._samples >= self._max_batch or self._stopping

    def _take(self) -> list[_Waiting]:
        """Requests of one kind: the oldest, and as many of the others as fit."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        size, most = 0, 1
        while self._queue and size < most:
            one = self._queue.popleft()
            if one.answer.done():  # nobody waits for it any more
                self._samples -= len(one.x)
            elif batch and (one.kind != batch[0].kind or size + len(one.x) > most):
                left.append(one)
            else:
                batch.append(one)
                size, most = size + len(one.x), self._together(one)
        self._queue.extendleft(reversed(left))
        self._samples -= size
        return batch

    def _together(self, one: _Waiting) -> int:
        kind, shape, _ = one.kind
        return computed_together(self._logits(kind, shape), self._max_batch)

    def _answers(self, batch: list[_Waiting]) -> list[list[Tensor]] | Exception:
        try:
            return self._run(batch)
        except Exception as error:  # theirs: the next batch may do better
            return error

    def _run(self, batch: list[_Waiting]) -> list[list[Tensor]]:
        """The answers to each of these."""
        xs = [one.x for one in batch]
        whole = self._by_exit(batch, xs[0] if len(xs) == 1 else torch.cat(xs))
        by_request = [of_exit.split([len(x) for x in xs]) for of_exit in whole]
        return [list(of_all) for of_all in zip(*by_request, strict=True)]

    def _by_exit(self, batch: list[_Waiting], x: Tensor) -> list[Tensor]:
        """Of all samples of a batch, computed in parts; none once nobody waits for them."""
        whole: list[Tensor] = []
        done = 0
        with torch.inference_mode():
            for part in x.split(self._together(batch[0])):
                if all(one.answer.done() for one in batch):  # given up meanwhile
                    return []
                began = time.perf_counter()
                found = self._compute(batch[0].kind[0], part)
                self._observe(len(part), time.perf_counter() - began)
                if len(part) == len(x):
                    return found
                # One place for all, had early: what is kept of each part would lie behind its
                # logits, and their memory could not be used again for those of the next.
                whole = whole or [one.new_empty((len(x), *one.shape[1:])) for one in found]
                for of_all, one in zip(whole, found, strict=True):
                    of_all[done : done + len(part)] = one
                done += len(part)
        return whole


def _answer(batch: list[_Waiting], found: list[list[Tensor]] | Exception) -> None:
    """In the event loop."""
    for place, one in enumerate(batch):
        if one.answer.done():  # cancelled meanwhile
            continue
        if isinstance(found, Exception):
            one.answer.set_exception(found)
        else:
            one.answer.set_result(found[place])
