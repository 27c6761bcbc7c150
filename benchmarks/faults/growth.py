"""Does anything grow in a long run: memory, file descriptors, threads? Is the loss still falling?

A process that lives through the whole run is compared with itself. A component's process is killed
again and again, and grows at first as every process does; so lives are compared at the same age,
early and late in the run, and each with itself once it is past that age.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

WHAT = ("private_mib", "fds", "threads")
BIN_S = 5.0
"""Of the looks at a process within so many seconds one sample is kept."""
YOUNG_S = (14.0, 20.0)
"""The age at which lives are compared: they have come up, and not yet been killed again."""
LONG_S = 45.0
"""Lives at least as old as this are compared with themselves at YOUNG_S."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    t_s: float
    """Since the run began."""
    role: str
    """launcher, nursery, agent <k> or component <k>."""
    pid: int
    age_s: float
    private_mib: float
    """Resident memory that no file backs. Pages of a mapped data file, which the system takes back
    when it needs them, would grow with every sample that is read."""
    fds: int
    threads: int


@dataclass(frozen=True)
class Change:
    """Of one number, in medians."""

    first: float
    last: float

    @property
    def growth(self) -> float:
        return self.last - self.first


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """One sample of a process in BIN_S: when it was last seen, and the most that was seen."""
    bins: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        bins[int(sample.t_s / BIN_S), sample.pid].append(sample)
    return [
        replace(few[-1], **{what: max(getattr(one, what) for one in few) for what in WHAT})
        for few in bins.values()
    ]


def of_the_lasting(samples: Sequence[Sample], role: str, what: str) -> Change | None:
    """Of a process that lives through the run: its second fifth, and its last."""
    own = [sample for sample in samples if sample.role == role]
    fifth = len(own) // 5
    if not fifth:
        return None
    return Change(_median(own[fifth : 2 * fifth], what), _median(own[-fifth:], what))


def of_lives(samples: Sequence[Sample], role: str, what: str) -> Change | None:
    """Of a component's processes at the same age: those begun in the first half of the run, and
    those begun in the second."""
    end_s = max((sample.t_s for sample in samples), default=0.0)
    early: list[float] = []
    late: list[float] = []
    for life in _lives(samples, role):
        young = _young(life)
        if young:
            begun_s = life[0].t_s - life[0].age_s
            (early if begun_s < end_s / 2 else late).append(_median(young, what))
    return Change(median(early), median(late)) if early and late else None


def within_lives(samples: Sequence[Sample], role: str, what: str) -> list[float]:
    """Of each long life of a component: growth since it was young."""
    found = []
    for life in _lives(samples, role):
        young, old = _young(life), [one for one in life if one.age_s >= life[-1].age_s - 6.0]
        if young and life[-1].age_s >= LONG_S:
            found.append(_median(old, what) - _median(young, what))
    return found


def thirds(times_and_losses: Sequence[tuple[float, float]]) -> list[float]:
    """Median loss in each third of the run."""
    if not times_and_losses:
        return []
    end_s = max(t for t, _ in times_and_losses)
    parts: list[list[float]] = [[], [], []]
    for t, loss in times_and_losses:
        parts[min(2, int(3 * t / end_s))].append(loss)
    return [median(part) for part in parts if part]


def is_falling(losses: Sequence[float]) -> bool:
    """Whether each third is below the one before it."""
    return len(losses) == 3 and losses[0] > losses[1] > losses[2]


def roles(samples: Iterable[Sample], kind: str) -> list[str]:
    """Of these processes: those of a kind, in order."""
    return sorted({sample.role for sample in samples if sample.role.startswith(kind)})


def _lives(samples: Sequence[Sample], role: str) -> list[list[Sample]]:
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.role == role:
            lives[sample.pid].append(sample)
    return list(lives.values())


def _young(life: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in life if YOUNG_S[0] <= sample.age_s <= YOUNG_S[1]]


def _median(samples: Sequence[Sample], what: str) -> float:
    return float(median(getattr(sample, what) for sample in samples))
