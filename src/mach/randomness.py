"""Which random numbers does a component draw, of a head or a student that wants some?

Each component has streams of its own, whether it is a process or shares one: one of the CPU and, if
it lives on a GPU, one there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

RANDOM = "random_state"
"""What all names of `streams` begin with."""
_ON_GPU = RANDOM + "/gpu"
_APART = 0x9E3779B97F4A7C15
"""Far from the seeds of components, which are neighbours (the golden ratio of 64 bits)."""


def seed_of(seed: int, components: int, k: int) -> int:
    """What component k's streams begin with: eight bytes, as many as torch takes."""
    return (seed * components + k) % 2**64


def streams(device: torch.device) -> dict[str, Tensor]:
    """Where the streams are that modules on a device draw from, by name."""
    now = {RANDOM: torch.get_rng_state()}
    if device.type == "cuda":
        now[_ON_GPU] = torch.cuda.get_rng_state(device)
    return now


def first(seed: int, device: torch.device) -> dict[str, Tensor]:
    """Where the streams of a device are that begin with this seed."""
    states = {RANDOM: torch.Generator().manual_seed(seed).get_state()}
    if device.type == "cuda":
        states[_ON_GPU] = torch.Generator(device).manual_seed(seed).get_state()
    return states


def go_on_from(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the streams of a device where `streams` found them."""
    torch.set_rng_state(states[RANDOM])
    if device.type == "cuda" and _ON_GPU in states:  # a run may begin on CPU and go on here
        torch.cuda.set_rng_state(states[_ON_GPU], device)


@contextmanager
def drawn_again(device: torch.device) -> Iterator[None]:
    """What is drawn in here is drawn once more afterwards."""
    found = streams(device)
    try:
        yield
    finally:
        go_on_from(found, device)


@contextmanager
def apart(number: int, device: torch.device) -> Iterator[None]:
    """Draw from streams of their own in here, others for every number: outside it is as if nothing
    had been drawn."""
    seed = (torch.initial_seed() + _APART * (number + 1)) % 2**64
    with drawn_again(device):
        go_on_from(first(seed, device), device)
        yield


class Streams:
    """The streams of components that share a process."""

    def __init__(self, seed: int, components: int, device: torch.device) -> None:
        self._device = device
        seeds = [seed_of(seed, components, k) for k in range(components)]
        self._states = [first(own, device) for own in seeds]

    @contextmanager
    def of(self, k: int) -> Iterator[None]:
        """Let torch draw from, or set, component k's streams."""
        others = streams(self._device)
        go_on_from(self._states[k], self._device)
        try:
            yield
        finally:
            self._states[k] = streams(self._device)
            go_on_from(others, self._device)
