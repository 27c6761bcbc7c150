"""Which cores, and which GPU, does each component get, and how many of them at a time?"""

from __future__ import annotations

from dataclasses import dataclass

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""The variable that tells a process which GPUs it may use."""


@dataclass(frozen=True)
class Cores:
    """A component's share of the machine's cores."""

    bound: tuple[int, ...] | None
    """Cores it is bound to; None leaves it to the scheduler."""
    threads: int
    """Compute threads."""


def share_cores(
    available: list[int], place: int, places: int, threads: int | None, pin: bool
) -> Cores:
    """Divide the cores of one machine among its components.

    Args:
        available: cores this machine lets us use.
        place: which of the components on this machine, 0 <= place < places.
        places: components on this machine.
        threads: compute threads asked for; None takes the share.
        pin: bind to cores where every component gets one of its own.
    """
    share, rest = divmod(len(available), places)
    if share == 0:  # more components than cores: binding would only keep some waiting
        return Cores(None, threads or 1)
    start = place * share + min(place, rest)
    own = tuple(available[start : start + share + (place < rest)])
    # The same number of threads everywhere: on CPU the numbers depend on it.
    return Cores(own if pin else None, threads or share)


def lanes_of(cores: int, places: int, threads: int | None, gpus: int) -> int:
    """How many of the components on one machine can compute at the same time.

    Args:
        cores: those this machine lets us use.
        places: components on this machine.
        threads: compute threads of each that are asked for; None takes the share.
        gpus: GPUs they use; 0 on CPU.
    """
    if gpus:
        return min(gpus, places)
    each = threads or max(1, cores // places)
    return max(1, min(places, cores // each))


def gpu_of(place: int, gpus: int) -> int:
    """GPU of a component: one each where there are enough, else shared in turn."""
    return place % gpus


def transport_of(asked: str, places: int, gpus: int, device: str) -> str:
    """What `auto` means: nccl where every component has a GPU of its own, else gloo."""
    if asked != "auto":
        return asked
    return "nccl" if device == "cuda" and gpus >= places else "gloo"
