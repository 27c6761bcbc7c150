"""Which values are tried for a method, and which are chosen?

One value after the other, from what the experiment has: all candidates of the first one, then with
the best of these all of the second, and so on. A choice that one seed made is then compared with
what the experiment has from several, since one may be lucky. Every method is offered the same. What
is compared is the top exit on samples that are never trained on; the test split is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from grid import TUNING, Cell, Changes
from rows import better_is_more, chain_changes, chains, of, tops
from stored import Row

from mach.config import Config

Grid = dict[str, tuple[float | int | None, ...]]


def _grid(muon_lr: float, lr: float) -> Grid:
    """Around an experiment's own rates."""
    return {
        "optim.muon_lr": (muon_lr, muon_lr / 2, 2 * muon_lr, 4 * muon_lr),
        "optim.lr": (lr, 2 * lr, 4 * lr),
        "optim.clip": (1.0, 0.0),
        "optim.layer_decay": (1.0, 0.7, 1.4),
    }


SLOWED: Grid = {"optim.correction_fraction": (0.3, 0.6, 1.0)}
"""What is tried beside, of a method whose rate follows its staleness."""
ASKED: Grid = {"optim.surrogate": (2.0, 1.0, 1.5, 3.0), "head.weight": (0.1, 0.3, 1.0)}
"""And of one whose heads stand in for the parents."""
GUESSED: Grid = {"predictor.lr": (2.5e-4, 1.25e-4, 5e-4, 1e-3)}
"""And of one that learns from predicted gradients."""
MIXED: Grid = {"student.muon_lr": (0.02, 0.01, 0.04)}
"""And of one whose bodies learn on what students make."""

RATES = ("optim.muon_lr", "optim.lr", "predictor.lr", "student.muon_lr")
"""Where the best one that was tried is the largest or the smallest, its double or half is tried as
well, and so on."""

CONFIRMING_SEEDS = (0, 1, 2)
GRIDS: dict[str, Grid] = {
    "mnist1d": _grid(0.01, 1e-3),
    "mnist": _grid(0.01, 1e-3),
    "gpt": {**_grid(0.08, 0.016), "optim.muon_momentum": (0.8, 0.9, 0.7)},
    "resnet": _grid(0.06, 0.032),
}
"""The first candidate of each is where the search begins, and wins where another is not better."""


def grid_of(name: str, config: Config | None) -> Grid:
    """What is tried of a method: first what all that its bodies learn rests on.

    Args:
        name: the task's.
        config: the method at a delay; None where the task refuses it.
    """
    grid: Grid = {}
    if config is not None:
        grid |= GUESSED if config.unlocked else {}
        grid |= MIXED if config.student.mix > 0 else {}
    grid |= GRIDS[name]
    if config is not None and config.effective_delay > 0:
        grid |= SLOWED if config.optim.slows else {}
        grid |= ASKED if config.optim.asks_head else {}
    return grid


Score = Callable[[Changes], float | None]
"""How good a choice is, the more the better; None: not known yet."""


def search(grid: Grid, score: Score) -> tuple[Changes, list[Changes]]:
    """The best so far, and what has to be tried before the search can go on.

    Where nothing is left to try the first is the choice.
    """
    best: dict[str, float | int | None] = {key: values[0] for key, values in grid.items()}
    for key, candidates in grid.items():
        values = list(candidates)
        while True:
            tries = {value: said({**best, key: value}) for value in values}
            scores = {value: score(changes) for value, changes in tries.items()}
            known = {value: found for value, found in scores.items() if found is not None}
            if len(known) < len(values):
                return said(best), [tries[value] for value in values if value not in known]
            chosen = max(values, key=lambda value: known[value])
            beyond = _beyond(values, chosen) if key in RATES else None
            if beyond is None:
                break
            values.append(beyond)
        best[key] = chosen
    return said(best), []


def _beyond(values: Sequence[float | int | None], best: float | int | None) -> float | None:
    """The next candidate, where the best is the last on its side."""
    rates = [value for value in values if value is not None]
    if best is None or min(rates) < best < max(rates):
        return None
    return 2 * best if best == max(rates) else best / 2


def confirm(grid: Grid, score: Score, best: Changes) -> tuple[Changes, list[Changes]]:
    """The better of a choice and of where the search began, and what has to be tried to know it.

    Args:
        score: from more seeds than the search had.
    """
    first = first_of(grid)
    known = {} if best == first else {changes: score(changes) for changes in (first, best)}
    scores = {changes: found for changes, found in known.items() if found is not None}
    if len(scores) < len(known):
        return first, [changes for changes in known if changes not in scores]
    return (max(scores, key=lambda changes: scores[changes]) if scores else first), []


def first_of(grid: Grid) -> Changes:
    """Where a search begins: what the experiment has."""
    return said({key: values[0] for key, values in grid.items()})


def said(values: dict[str, float | int | None]) -> Changes:
    """As overrides."""
    return tuple(f"{key}={'null' if v is None else f'{v:g}'}" for key, v in values.items())


def tuning_cells(
    name: str, method: str, components: int, delay: int, seeds: Sequence[int], tries: list[Changes]
) -> list[Cell]:
    """Runs that decide between some choices."""
    return [
        Cell(name, method, components, delay, seed, TUNING, changes)
        for changes in tries
        for seed in seeds
    ]


def validated(
    rows: Sequence[Row],
    name: str,
    method: str,
    components: int,
    delay: int,
    cut_to: int | None,
    seeds: Sequence[int],
    grid: Grid,
) -> Score:
    """How good the choices are that have been tried there from all seeds; one that diverges is the
    worst. What the experiment has anyway need not be among the changes of a run."""
    anyway = set(first_of(grid))
    where = {"task": name, "method": method, "components": components, "delay": delay}
    tried = chains(of(rows, kind=TUNING, cut_to=cut_to, **where))

    def score(changes: Changes) -> float | None:
        wanted = set(changes) - anyway
        mine = (row for row in tried if set(chain_changes(row)) - anyway == wanted)
        group = [row for row in mine if row["seed"] in seeds]
        if {row["seed"] for row in group} != set(seeds):
            return None
        values = tops(group)
        if len(values) < len(group):
            return float("-inf")
        return mean(values) if better_is_more(group[0]["metric"]) else -mean(values)

    return score
