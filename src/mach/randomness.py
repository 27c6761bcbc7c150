"""Which random numbers does a component draw, of a head or a student that wants some?

Each component has a stream of its own on the CPU, whether it is a process or shares one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, components: int, k: int) -> int:
    """What component k's stream begins with."""
    return seed * components + k


class Streams:
    """The streams of components that share a process."""

    def __init__(self, seed: int, components: int) -> None:
        seeds = [seed_of(seed, components, k) for k in range(components)]
        self._states = [torch.Generator().manual_seed(own).get_state() for own in seeds]

    @contextmanager
    def of(self, k: int) -> Iterator[None]:
        """Let torch draw from, or set, component k's stream."""
        others = torch.get_rng_state()
        torch.set_rng_state(self._states[k])
        try:
            yield
        finally:
            self._states[k] = torch.get_rng_state()
            torch.set_rng_state(others)
