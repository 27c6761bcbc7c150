"""What must the methods reach, and do they?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from grid import ALONE, LONGER, METHOD, TASKS
from rows import (
    difference,
    like,
    lost,
    metric_of,
    of,
    reference,
    settled,
    tops,
    unit,
)
from stored import Row

Line = Sequence[str]
"""What is measured, the number, the aim, and whether it is met."""
AIMS = {
    "mnist1d": {1: 0.1, 4: 0.1, 8: 0.3, 16: 1},
    "mnist": {1: 0.1, 4: 0.1, 8: 0.3, 16: 1},
    "gpt": {1: 0.03},
}
"""By task and delay: points, or bits per byte, that `mach` may lose against `backprop`, on the mean
of the seeds."""
_ANY_STALENESS = ("mach", "backprop", "dgl")
"""`mach` itself, and what is not late."""


def goals(rows: Sequence[Row], name: str) -> list[Line]:
    """A line for each goal of a task, as far as it has been measured.

    Args:
        rows: of the task, whole runs.
        name: the task's.
    """
    usual = settled(of(rows, kind=METHOD, components=TASKS[name].components))
    return [*_not_behind(rows, usual, name), *_rivals(usual, name), *_small(rows, usual, name)]


def _not_behind(rows: Sequence[Row], usual: Sequence[Row], name: str) -> Iterator[Line]:
    """`mach` against back-propagation: with more samples, and with the same."""
    best, metric = reference(usual, TASKS[name].components), metric_of(usual)

    def line(mine: list[float], most: float, how: str) -> Iterator[Line]:
        if mine and best is not None:
            behind = lost(mean(mine), best, metric)
            what = f"{name}, {how}, {len(mine)} seeds"
            yield [what, difference(behind, metric), f"≤ {most}", _met(behind <= most)]

    for delay, times in TASKS[name].longer:
        mine, how = tops(settled(of(rows, kind=LONGER, delay=delay))), f"{times} times the samples"
        yield from line(mine, 0, f"delay {delay}: {unit(metric)} that `mach` loses with {how}")
    for delay, most in AIMS[name].items():
        mine = tops(of(usual, method="mach", delay=delay))
        yield from line(mine, most, f"delay {delay}: {unit(metric)} that `mach` loses")


def _rivals(usual: Sequence[Row], name: str) -> Iterator[Line]:
    """`mach` against every other method whose gradients are late."""
    metric = metric_of(usual)
    for delay in sorted({row["delay"] for row in usual if row["delay"] > 1}):
        mine = tops(of(usual, method="mach", delay=delay))
        others = {
            row["method"]: tops(of(usual, method=row["method"], delay=delay))
            for row in of(usual, delay=delay)
            if row["method"] not in _ANY_STALENESS
        }
        others = {method: values for method, values in others.items() if values}
        if mine and others:
            rival = min(others, key=lambda method: lost(mean(others[method]), 0.0, metric))
            ahead = -lost(mean(mine), mean(others[rival]), metric)
            how = f"`mach` ahead of the best other, `{rival}`, {unit(metric)}"
            what = f"{name}, delay {delay}: {how}"
            yield [what, difference(ahead, metric), "> 0", _met(ahead > 0)]


def _small(rows: Sequence[Row], usual: Sequence[Row], name: str) -> Iterator[Line]:
    """The smallest window, one student and one component, against a network of its cost."""
    metric, top = metric_of(usual), TASKS[name].components - 1
    known = [*of(rows, kind=ALONE), *of(rows, kind=METHOD, method="backprop")]
    for delay in AIMS[name]:
        mine = of(usual, method="mach", delay=delay)
        found = [entry for row in mine for entry in of(row["windows"], first=top, last=top)]
        alone = tops(like(known, "flops", found[0]["flops"])) if found else []
        if alone:
            ahead = -lost(mean(entry["value"] for entry in found), mean(alone), metric)
            how = f"window {top}..{top} ahead of a network of its cost alone, {unit(metric)}"
            what = f"{name}, delay {delay}: {how}"
            yield [what, difference(ahead, metric), "> 0", _met(ahead > 0)]


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"
