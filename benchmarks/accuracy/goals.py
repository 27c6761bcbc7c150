"""What must the methods reach, and do they?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grid import ALONE, LONGER, METHOD, TASKS
from origins import CONF, Origins
from rows import (
    DASH,
    Paired,
    at,
    by_seed,
    difference,
    like,
    metric_of,
    of,
    paired,
    places,
    reference,
    settled,
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
of the seeds that both have."""
_ANY_STALENESS = ("mach", "backprop", "dgl")
"""`mach` itself, and what is not late."""


def goals(rows: Sequence[Row], name: str, origins: Origins) -> list[Line]:
    """A line for each goal of a task, as far as it has been measured.

    Args:
        rows: of the task, whole runs.
        name: the task's.
        origins: of the values that they have.
    """
    whole = of(rows, kind=METHOD, components=TASKS[name].components)
    usual = settled(whole)
    return [
        *_not_behind(rows, usual, name),
        *_rivals(usual, whole, name, origins),
        *_small(rows, usual, name),
    ]


def _not_behind(rows: Sequence[Row], usual: Sequence[Row], name: str) -> Iterator[Line]:
    """`mach` against back-propagation: with more samples, and with the same."""
    best, metric = reference(usual, TASKS[name].components), metric_of(usual)

    def line(mine: Sequence[Row], most: float, how: str) -> Iterator[Line]:
        if mine and best:
            found = paired(by_seed(mine), by_seed(best), metric)
            yield _line(f"{name}, {how}", found, metric, most)

    for delay, times in TASKS[name].longer:
        mine, how = settled(of(rows, kind=LONGER, delay=delay)), f"{times} times the samples"
        yield from line(mine, 0, f"delay {delay}: {unit(metric)} that `mach` loses with {how}")
    for delay, most in AIMS[name].items():
        mine = of(usual, method="mach", delay=delay)
        yield from line(mine, most, f"delay {delay}: {unit(metric)} that `mach` loses")


def _rivals(
    usual: Sequence[Row], whole: Sequence[Row], name: str, origins: Origins
) -> Iterator[Line]:
    """`mach` against every other method whose gradients are late, with all that was chosen for it.

    Who was tuned is told: from rivals with the values of `conf/` a tuned `mach` wins too easily.

    Args:
        usual: the runs of `mach`, with one choice.
        whole: those of the others, with every choice: the best on the test split counts, which is
            more than `mach` is given.
    """
    metric = metric_of(usual)
    for delay in sorted({row["delay"] for row in usual if row["delay"] > 1}):
        mine, late = of(usual, method="mach", delay=delay), of(whole, delay=delay)
        theirs = {
            place: at(late, place) for place in places(late) if place[0] not in _ANY_STALENESS
        }
        found = {o: paired(by_seed(mine), by_seed(theirs[o]), metric) for o in theirs}
        if mine and theirs:
            rival = max(found, key=lambda other: _nearness(found[other]))
            of_whom = [f"({origins.of_all(rows)})" for rows in (mine, theirs[rival])]
            best = f"`{rival[0]}` {of_whom[1]}"
            how = f"`mach` {of_whom[0]} ahead of the best other, {best}, {unit(metric)}"
            unfair = origins.of(mine[0]) != CONF and not origins.was_tuned(theirs[rival][0])
            but = ", rival not tuned" * unfair
            yield _line(f"{name}, delay {delay}: {how}", found[rival], metric, but=but)


def _nearness(found: Paired) -> float:
    """How good a rival is."""
    return float("-inf") if found.lost is None else found.lost


def _small(rows: Sequence[Row], usual: Sequence[Row], name: str) -> Iterator[Line]:
    """The smallest window, one student and one component, against a network of its cost."""
    metric, top = metric_of(usual), TASKS[name].components - 1
    known = [*of(rows, kind=ALONE), *of(rows, kind=METHOD, method="backprop")]
    by_mach, window = of(usual, method="mach"), {"first": top, "last": top}
    costs = [entry["flops"] for row in by_mach for entry in of(row["windows"], **window)]
    alone = by_seed(like(known, "flops", costs[0])) if costs else {}
    for delay in AIMS[name]:
        mine = by_seed(of(by_mach, delay=delay), "windows", **window)
        if mine and alone:
            how = f"window {top}..{top} ahead of a network of its cost alone, {unit(metric)}"
            yield _line(f"{name}, delay {delay}: {how}", paired(mine, alone, metric), metric)


def _line(what: str, found: Paired, metric: str, most: float | None = None, but: str = "") -> Line:
    """A goal and whether it is met, which a run that diverges does not allow.

    Args:
        most: that may be lost; None: `mach` must be ahead.
        but: what is to be said where it is met.
    """
    behind, measured = found.lost, [f"{found.diverged} diverged"] * (found.diverged > 0)
    is_met = False if found.diverged else None
    if behind is not None:
        measured.insert(0, difference(behind if most is not None else -behind, metric))
        is_met = not found.diverged and (behind < 0 if most is None else behind <= most)
    aim = "> 0" if most is None else f"≤ {most}"
    return [f"{what}, {found.counted} seeds", ", ".join(measured) or DASH, aim, _met(is_met, but)]


def _met(is_met: bool | None, but: str) -> str:
    """None: not known."""
    return DASH if is_met is None else f"yes{but}" if is_met else "**no**"
