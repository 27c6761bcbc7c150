"""One component's training loop, as far as its log is concerned: it computes, then it logs.

    python benchmarks/logging/member.py SINKS FOLDER COMPONENT PRODUCTS

PRODUCTS: of matrices, as long as a step; 0 waits for as long in their place.

Says `ready` when it could begin, begins with the first line of stdin, and prints what it measured.
In every other phase of the machine's clock it does not log, so what else goes on there meets both
alike, and several members change at the same time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from variants import LAG_S, MEASURED_S, METRICS, PHASE_S, SINKS, STEP_MS, WARM_UP_S

from mach.configfile import from_mapping
from mach.report.reporter import Reporter, build

_SIZE = 256


def main() -> None:
    """Take all steps and print their times."""
    sinks, folder, component, products = sys.argv[1:]
    torch.set_num_threads(1)
    config = from_mapping({"components": int(component) + 1, "report": SINKS[sinks]})
    with build(config, Path(folder), int(component), 0) as reporter:
        print("ready", flush=True)
        sys.stdin.readline()
        found = train(reporter, int(products))
        began_s = time.perf_counter()
    print(json.dumps({**found, "close_s": time.perf_counter() - began_s}), flush=True)


def train(reporter: Reporter, products: int) -> dict[str, Any]:
    """Steps with and without a line: their ratio in each two phases, and what logging took.

    Times are the clock's, in milliseconds.
    """
    line = {"step": 0, "samples": 0, "wall_s": 0.0}
    names = [f"metric/{n}" for n in range(METRICS - len(line))]
    phases: dict[int, list[float]] = {}
    logging: list[float] = []
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + WARM_UP_S + MEASURED_S:
        phase, into_s = divmod(now, PHASE_S)
        logs = now < begin + WARM_UP_S or phase % 2 == 1  # wandb is loaded and begins meanwhile
        line["step"] += 1
        values = {name: random.random() for name in names}
        before = time.perf_counter()
        compute(products)
        computed = time.perf_counter()
        if logs:
            reporter.log(line | values)
        ended = time.perf_counter()
        if now > begin + WARM_UP_S and into_s > LAG_S:
            phases.setdefault(int(phase), []).append(1e3 * (ended - before))
            if logs:
                logging.append(1e3 * (ended - computed))
    means = {phase: mean(steps) for phase, steps in phases.items()}
    return {
        "logging_ms": mean(logging),
        "step_ms": mean(ms for phase, ms in means.items() if phase % 2 == 0),
        "ratios": [(means[b] / means[a]) ** (1 if b % 2 else -1) for a, b in pairwise(means)],
    }


def compute(products: int) -> None:
    """The rest of a step: products of matrices on one core, or nothing for as long."""
    if not products:
        time.sleep(STEP_MS / 1e3)
    a = torch.full((_SIZE, _SIZE), 1e-3)
    for _ in range(products):
        a = a @ a + 1e-3


if __name__ == "__main__":
    main()
