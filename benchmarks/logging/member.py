"""One component's training loop, as far as its log is concerned: it computes, then it logs.

    python benchmarks/logging/member.py SINKS FOLDER COMPONENT PRODUCTS

Says `ready` when it could begin, begins with the first line of stdin, and prints what it measured.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from variants import METRICS, SINKS, STEPS, WARM_UP

from mach.config import Config
from mach.configfile import from_mapping
from mach.report.reporter import Reporter, build

_SIZE = 256


def main() -> None:
    """Take all steps and print their times."""
    sinks, folder, component, products = sys.argv[1:]
    torch.set_num_threads(1)
    with reporting(SINKS[sinks], Path(folder), int(component)) as reporter:
        print("ready", flush=True)
        sys.stdin.readline()
        found = train(reporter, int(products))
        began_s = time.perf_counter()
    print(json.dumps({**found, "close_s": time.perf_counter() - began_s}), flush=True)


@contextmanager
def reporting(report: dict[str, Any] | None, folder: Path, component: int) -> Iterator[Reporter]:
    """The reporter that a rank has."""
    config: Config = from_mapping({"components": component + 1, "report": report or {}})
    with Reporter([]) if report is None else build(config, folder, component, 0) as reporter:
        yield reporter


def train(reporter: Reporter, products: int) -> dict[str, Any]:
    """Steps and the part of them that was logging, each in milliseconds of the clock."""
    made = record(0)
    names = [name for name in made if name.startswith("metric/")]
    steps: list[float] = []
    logging: list[float] = []
    for step in range(1, WARM_UP + STEPS + 1):
        began = time.perf_counter()
        compute(products)
        computed = time.perf_counter()
        made["step"] = step
        for name in names:
            made[name] = random.random()
        before = time.perf_counter()
        reporter.log(made)
        ended = time.perf_counter()
        if step > WARM_UP:  # by then wandb is loaded, and has begun
            steps.append(1e3 * (computed - began + ended - before))
            logging.append(1e3 * (ended - before))
    return {"steps_ms": steps, "logging_ms": logging}


def record(step: int) -> dict[str, Any]:
    """A line with as many numbers as are asked for."""
    about = {"step": step, "samples": 0, "wall_s": 0.0}
    return about | {f"metric/{n}": 0.0 for n in range(METRICS - len(about))}


def compute(products: int) -> None:
    """The rest of a step: products of matrices, on one core."""
    a = torch.full((_SIZE, _SIZE), 1e-3)
    for _ in range(products):
        a = a @ a + 1e-3


if __name__ == "__main__":
    main()
