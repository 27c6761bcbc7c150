"""How is a microbatch ready before it is asked for?

Who was given microbatch b of a stream will ask for b + 1 next. A thread makes the next few of the
stream that was asked last; as many of those it made for another stream are kept, as under `free` a
component goes back and forth between its child's stream and its own. What was not foreseen, or not
begun in time, is made where it is asked for. The numbers are the same either way, because a
microbatch is a pure function of its name.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

Microbatch = tuple[Tensor, Tensor]


class Name(NamedTuple):
    """Names a microbatch: its number, in the stream of a life of the component that chose it."""

    number: int
    origin: int
    life: int


class Prefetch:
    """Makes microbatches in a thread of its own, ahead of who asks.

    The thread ends with this object, and with the process.
    """

    def __init__(
        self, make: Callable[[Name], Microbatch], ahead: int, device: torch.device
    ) -> None:
        """
        Args:
            make: makes a microbatch; called in several threads.
            ahead: how many are made before they are asked for, 1 or more.
            device: where they go.
        """
        self._make = make
        self._ahead = ahead
        self._kept: OrderedDict[Name, Future[Microbatch]] = OrderedDict()
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="mach-prefetch",
            initializer=_begin,
            initargs=(device, torch.get_num_threads()),
        )
        weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)

    def take(self, name: Name) -> Microbatch:
        """Microbatch `name`; the thread goes on with those after it.

        Whatever went wrong when it was made is raised here.
        """
        future = self._kept.pop(name, None)
        made = self._make(name) if future is None or future.cancel() else future.result()
        for number in range(name.number + 1, name.number + 1 + self._ahead):
            coming = name._replace(number=number)
            if coming in self._kept:
                self._kept.move_to_end(coming)
            else:
                self._kept[coming] = self._thread.submit(self._make, coming)
        while len(self._kept) > 2 * self._ahead:
            self._kept.popitem(last=False)[1].cancel()
        return made


def _begin(device: torch.device, threads: int) -> None:
    """Settings that belong to a thread rather than to the process."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
