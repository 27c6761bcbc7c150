"""Which runs belong together, and by how much is one better than another?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from grid import ALONE, NO_STUDENTS, Cell, Changes, order
from stored import Row

DASH = "–"
Values = dict[int, float | None]
"""By seed; None: it has diverged."""
_NEAR = 0.03
"""A network whose size differs by more than this is none of that size."""


# --- choosing -------------------------------------------------------------------------------


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def places(rows: Sequence[Row]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Method, components and changes of what was run, in the table's order."""
    found = {(r["method"], r["components"], chain_changes(r)) for r in rows}
    methods = order({method for method, _, _ in found})
    return sorted(found, key=lambda place: (place[1], methods.index(place[0]), place[2]))


def chain_changes(row: Row) -> tuple[str, ...]:
    """What a run's chain differs in from `conf/`: with and without students it is the same."""
    return tuple(change for change in row["changes"] if change != NO_STUDENTS)


def choice(row: Row) -> Changes:
    """What was chosen for a run: of a network that is trained alone the width is none of it, but
    its size."""
    given = chain_changes(row)
    return tuple(c for c in given if row["kind"] != ALONE or not c.startswith("model.width="))


def chains(rows: Iterable[Row]) -> list[Row]:
    """Each chain once: of one that was trained with students and without, the run with them."""
    kept: dict[tuple[object, ...], Row] = {}
    for row in rows:
        about = (row[name] for name in Cell.__dataclass_fields__ if name != "changes")
        key = (*about, row["cut_to"], chain_changes(row))
        if key not in kept or row["windows"]:
            kept[key] = row
    return list(kept.values())


def at(rows: Iterable[Row], place: tuple[str, int, tuple[str, ...]]) -> list[Row]:
    """Rows of one place of the table."""
    method, components, changes = place
    mine = of(rows, method=method, components=components)
    return [row for row in mine if chain_changes(row) == changes]


def settled(rows: Iterable[Row]) -> list[Row]:
    """Of what has been run with several choices, method by method and delay by delay, the runs with
    one."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        late = None if row["undelayed"] else row["delay"]
        groups.setdefault((row["method"], row["components"], late), []).append(row)
    return [row for group in groups.values() for row in one_choice(group)]


def one_choice(rows: Sequence[Row]) -> list[Row]:
    """The runs with the choice that most seeds have, of equals with the last: a new choice counts
    as soon as it is known as well as the old one."""
    seeds: dict[Changes, set[int]] = {}
    for row in rows:
        mine = choice(row)
        seeds[mine] = seeds.pop(mine, set()) | {row["seed"]}  # the last one to the end
    most = max(reversed(seeds), key=lambda changes: len(seeds[changes]), default=())
    return [row for row in rows if choice(row) == most]


def tops(rows: Iterable[Row]) -> list[float]:
    """The top exit of every run that has not diverged."""
    return [row["exits"][-1]["value"] for row in rows if row["exits"]]


def by_seed(rows: Iterable[Row], part: str = "exits", **which: int) -> Values:
    """An exit or a window of each seed, on the mean where a seed has several runs.

    Args:
        part: exits or windows. Of a run without students nothing is known of the windows, except
            that they are none where it diverges.
        which: the exit's index or the window's ends; default: the top exit.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        entries = of(row[part], **which) if which else row[part][-1:]
        if entries or not row["exits"]:
            found.setdefault(row["seed"], []).extend(entry["value"] for entry in entries)
    return {seed: mean(values) if values else None for seed, values in found.items()}


def reference(rows: Iterable[Row], components: int) -> list[Row]:
    """The runs of back-propagation that others are compared with."""
    return settled(of(rows, method="backprop", components=components))


def like(rows: Sequence[Row], what: str, size: int) -> list[Row]:
    """Runs with one choice whose whole network is of a size: the nearest there is.

    Args:
        what: params or flops.
    """
    apart = [(abs(row["exits"][-1][what] / size - 1), row) for row in rows if row["exits"]]
    least = min((distance for distance, _ in apart), default=0.0)
    return one_choice([row for distance, row in apart if distance == least <= _NEAR])


# --- comparing -------------------------------------------------------------------------------


def metric_of(rows: Iterable[Row]) -> str:
    """What a task is measured by."""
    return next((row["metric"] for row in rows if row["exits"]), "accuracy")


def unit(metric: str) -> str:
    """Of what is lost."""
    return "points" if better_is_more(metric) else "bits per byte"


def difference(value: float, metric: str) -> str:
    """With its sign."""
    return f"{value:+.{2 if better_is_more(metric) else 3}f}"


def better_is_more(metric: str) -> bool:
    """Accuracy, in contrast to bits per byte."""
    return metric == "accuracy"


def lost(value: float, reference: float, metric: str) -> float:
    """How much worse than the reference: points of accuracy, or bits per byte."""
    return 100 * (reference - value) if better_is_more(metric) else value - reference


@dataclass(frozen=True)
class Paired:
    """Two groups of runs, compared seed by seed."""

    lost: float | None
    """By the first group against the second, on the mean of the pairs; None: there is none."""
    pairs: int
    """Seeds that both have brought to an end."""
    of: int
    """Seeds of the group that has more."""
    diverged: int
    """Seeds of the first group."""

    @property
    def counted(self) -> str:
        """How many seeds it is from."""
        return f"{self.pairs}" if self.pairs == self.of else f"{self.pairs} of {self.of}"


def paired(mine: Values, others: Values, metric: str) -> Paired:
    """The difference on the seeds that both have: two means of different seeds differ by the luck
    of the seeds, too, and who diverges from the unlucky ones would gain."""
    found = [
        lost(value, other, metric)
        for seed, value in mine.items()
        if value is not None and (other := others.get(seed)) is not None
    ]
    diverged = sum(value is None for value in mine.values())
    most = max(len(mine), len(others))
    return Paired(mean(found) if found else None, len(found), most, diverged)


def reached_after(curve: Sequence[Sequence[float]], goal: float, metric: str) -> int | None:
    """Samples after which a curve is for the first time as good as `goal`; None: never."""
    for samples, value in curve:
        if value >= goal if better_is_more(metric) else value <= goal:
            return int(samples)
    return None


def shown(value: float, metric: str) -> str:
    """In per cent, or in bits per byte."""
    return f"{100 * value:.2f}" if better_is_more(metric) else f"{value:.3f}"
