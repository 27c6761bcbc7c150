"""How long does a part of a network take for one microbatch, on this device?

Medians over a few microbatches, after one that warms up, and never for long: what is measured here
says how a run will be cut or what it will cost, and somebody is waiting for it to begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from mach.config import Config
from mach.rank import available_cores
from mach.topology import share_cores

_REPEATS = 7


@dataclass(frozen=True)
class Times:
    """Seconds for one microbatch."""

    forward_s: float
    backward_s: float
    """Gradients of the parameters, and of the input where it has any."""
    through_s: float
    """The gradient of the input alone: what a frozen module costs a student."""


class Stopwatch:
    """Times things until a deadline; each thing once at least."""

    def __init__(self, device: torch.device, longest_s: float, things: int) -> None:
        """
        Args:
            longest_s: for all things together.
            things: how many will be timed.
        """
        self._device = device
        self._left_s, self._things = longest_s, max(1, things)

    def medians(self, laps: Callable[[Callable[[], None]], None]) -> list[float]:
        """Run `laps` several times. Returns the median seconds between its calls of `lap`.

        Args:
            laps: is given `lap`, which it calls at the beginning and after each part.
        """
        began = time.perf_counter()
        share_s = self._left_s / self._things
        rows: list[list[float]] = []
        while len(rows) < 2 or (len(rows) <= _REPEATS and time.perf_counter() - began < share_s):
            marks: list[float] = []
            laps(partial(self._mark, marks))
            rows.append([b - a for a, b in pairwise(marks)])
            # A first run may be long for what it loads: while there is time the second one tells.
            if len(rows) == 1 and time.perf_counter() - began > self._left_s:
                break
        self._left_s = max(0.0, self._left_s - (time.perf_counter() - began))
        self._things = max(1, self._things - 1)
        warm = rows[1:] or rows
        return [median(column) for column in zip(*warm, strict=True)]

    def times(
        self, module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, gradient: bool
    ) -> Times:
        """Times of a module.

        Args:
            run: calls it; its result is back-propagated, as it is or, if it is a scalar, as a loss.
            x: one microbatch of its input.
            gradient: whether the input has a gradient, as all have but the raw samples.
        """
        trained = any(p.requires_grad for p in module.parameters())

        def laps(lap: Callable[[], None]) -> None:
            leaf = x.detach().requires_grad_(gradient)
            given = leaf.clone()  # may be changed in place, as inside a component; not timed
            lap()
            out = run(given)
            lap()
            if trained or gradient:
                torch.autograd.backward(out, None if out.ndim == 0 else torch.ones_like(out))
            lap()
            module.zero_grad()
            if gradient:
                again = run(leaf.clone())
                lap()
                seed = None if again.ndim == 0 else torch.ones_like(again)
                torch.autograd.grad(again, leaf, seed)
                lap()

        forward_s, backward_s, *rest = self.medians(laps)
        return Times(forward_s, backward_s, rest[1] if rest else 0.0)

    def _mark(self, marks: list[float]) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        marks.append(time.perf_counter())


def computing(config: Config, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What makes the context in which a component of this run computes."""
    if config.optim.precision != "bf16":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


@contextmanager
def threads_of_a_rank(config: Config, places: int) -> Iterator[None]:
    """Compute with as many threads as a component of the run will have.

    Args:
        places: components on this machine.
    """
    before = torch.get_num_threads()
    launch = config.launch
    cores = share_cores(available_cores(), 0, places, launch.threads, launch.pin)
    torch.set_num_threads(cores.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
