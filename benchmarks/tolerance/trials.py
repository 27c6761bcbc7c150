"""Which runs are made, and what is kept of one?

Rates are chosen on the validation split, from `CHOOSING` seeds, as in benchmarks/accuracy: half and
double of the best until it is neither the smallest nor the largest. What was chosen is then trained
from other seeds and asked on the test split, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from alignment import LAG, Alignment
from grid import Changes
from tuning import search
from ways import WAYS, stepping

from mach.data import Batches, open_dataset
from mach.errors import DivergedError
from mach.launcher.compose import compose
from mach.provenance import environment
from mach.trainer import Oracle

Run = dict[str, Any]
"""A `Spec` with what came of it."""
CHOOSING, TESTING = (0, 1), (2, 3, 4)
LISTENED = 10
"""Times a run compares its gradients with the exact ones."""


@dataclass(frozen=True)
class Spec:
    """One run."""

    way: str
    delay: int
    rate: float
    seed: int
    steps: int
    split: str
    """validation or test."""


def missing(wanted: Iterable[Spec], runs: Sequence[Run]) -> list[Spec]:
    """What has not been run yet."""
    known = {_spec_of(run) for run in runs}
    return [spec for spec in dict.fromkeys(wanted) if spec not in known]


def _spec_of(run: Run) -> Spec:
    return Spec(**{name: run[name] for name in Spec.__dataclass_fields__})


def choose(
    way: str, delay: int, steps: int, runs: Sequence[Run]
) -> tuple[float | None, list[Spec]]:
    """The rate, and what has to be run before it is known."""
    own = WAYS[way]
    where = {"way": way, "delay": delay, "steps": steps, "split": "validation"}
    mine = [run for run in runs if where.items() <= run.items()]

    def tries(changes: Changes) -> list[Spec]:
        rate = _rate(changes)
        return [Spec(way, delay, rate, seed, steps, "validation") for seed in CHOOSING]

    def score(changes: Changes) -> float | None:
        if missing(tries(changes), mine):
            return None
        values = [run["value"] for run in mine if run["rate"] == _rate(changes)]
        return float("-inf") if None in values else mean(values)

    best, more = search({own.rate: (own.first, own.first / 2, 2 * own.first)}, score)
    wanted = missing((spec for changes in more for spec in tries(changes)), mine)
    return (None if wanted else _rate(best)), wanted


def _rate(changes: Changes) -> float:
    """The one value that is chosen here."""
    (change,) = changes
    return float(change.partition("=")[2])


def tests_of(way: str, delay: int, steps: int, runs: Sequence[Run]) -> list[Spec]:
    """The runs with what was chosen; none before it is known."""
    rate, _ = choose(way, delay, steps, runs)
    return [] if rate is None else [Spec(way, delay, rate, s, steps, "test") for s in TESTING]


def run_of(spec: Spec, path: str) -> Run:
    """Train a chain whose bodies learn from late gradients alone, as they come."""
    torch.set_num_threads(1)
    way = WAYS[spec.way]
    config = compose(
        [
            "experiment=mnist1d",
            "method=features_replay",
            *way.words,
            f"{way.rate}={spec.rate}",
            f"delay={spec.delay}",
            f"seed={spec.seed}",
            f"steps={spec.steps}",
            f"data.path={path}",
            "data.validation=4000",
            f"eval.split={spec.split}",
            f"eval.every={spec.steps}",
        ]
    )
    dataset = open_dataset(config.data)
    with stepping(way):
        oracle = Oracle(config, dataset)
        batches = Batches(dataset, config.seed, config.microbatch_size, torch.device("cpu"))
        every = max(LAG + 1, spec.steps // LISTENED)
        alignment = Alignment(oracle, batches, range(every - 1, spec.steps, every))
        try:
            result = oracle.run()
        except DivergedError:
            value, staleness = None, None
        else:
            value = result["chain"][-1]["accuracy"]
            staleness = result["staleness_steps"][0]["mean"]
    heard = {"cosines": _in_order(alignment.cosines), "moved": _in_order(alignment.moved)}
    about = {key: environment()[key] for key in ("commit", "changed", "date", "torch")}
    return {**asdict(spec), "value": value, "staleness": staleness, **heard, **about}


def _in_order(heard: dict[int, dict[int, float]]) -> list[list[float]]:
    """Step by step, from the bottom to the top; a chain that diverges leaves steps unfinished."""
    return [[round(heard[s][k], 5) for k in sorted(heard[s])] for s in sorted(heard)]
