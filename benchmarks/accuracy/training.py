"""What is kept of one cell's run?

A cell runs in one process, in the oracle, whose numbers are those of a run of processes, bit by
bit.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from grid import Cell, overrides
from stored import Row

from mach.config import Config
from mach.data import open_dataset
from mach.errors import DivergedError
from mach.launcher.compose import compose
from mach.provenance import environment
from mach.results import Costs
from mach.trainer import Oracle
from mach.trainer.oracle import Quiet

METRICS = ("accuracy", "bits_per_byte")


class Ear(Quiet):
    """Hears how good an exit is, on the way and at the end."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, float]] = []
        """Steps, and the metric."""

    def logged(self, record: dict[str, Any]) -> None:
        for metric in METRICS:
            if f"eval_{metric}" in record:
                self.heard.append((record["step"], record[f"eval_{metric}"]))


def train(cell: Cell, path: str, cache: str, steps: int | None = None) -> Row:
    """Run a cell to its end, on one thread.

    Args:
        path: the task's data.
        cache: folder for unpacked data.
        steps: fewer than the experiment's.

    Returns:
        The cell, what it reached, and with what. A run that diverges is a row, too.
    """
    torch.set_num_threads(1)
    began_s = time.monotonic()
    words = [*overrides(cell, path, steps), f"data.cache={cache}", "report.every=1000000"]
    config = compose(words)
    row: Row = {**asdict(cell), "cut_to": steps, "samples": _samples(config, config.steps)}
    row["undelayed"] = replace(config, delay=1).effective_delay == 0  # it is nothing to the method
    ears = [Ear() for _ in range(config.components)]
    oracle = Oracle(config, open_dataset(config.data), list(ears))
    row["trained_params"] = _trained(oracle.assembly.costs())
    try:
        result = oracle.run()
    except DivergedError as error:
        row |= {"diverged": str(error), "exits": [], "windows": [], "staleness": []}
    else:
        row |= _reached(result)
    row["curve"] = [[_samples(config, step), value] for step, value in ears[-1].heard]
    return row | _environment(round(time.monotonic() - began_s))


def _reached(result: dict[str, Any]) -> Row:
    top = result["chain"][-1]
    metric = next(name for name in METRICS if name in top)
    about = {"value": metric, "params": "params", "flops": "flops"}

    def kept(row: dict[str, Any], *names: str) -> dict[str, Any]:
        return {**{n: row[n] for n in names}, **{key: row[name] for key, name in about.items()}}

    return {
        "split": result["split"],
        "metric": metric,
        "exits": [kept(row, "exit") for row in result["chain"]],
        "windows": [kept(row, "first", "last") for row in result["windows"]],
        "staleness": [round(part["mean"], 3) for part in result["staleness_steps"]],
    }


def _samples(config: Config, step: int) -> int:
    return step * config.accumulate * config.microbatch_size


def _trained(costs: Costs) -> int:
    """Parameters of all that is trained: bodies, heads and students."""
    parts = [*costs.bodies, *costs.heads, *costs.students.values()]
    return sum(part.params for part in parts)


def _environment(seconds: int) -> Row:
    here = environment()
    return {
        **{key: here[key] for key in ("commit", "changed", "date", "torch", "cpu")},
        "seconds": seconds,
    }
