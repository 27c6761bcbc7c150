"""What does logging cost a step of training: 100 metrics a line, 20 lines a second?

python benchmarks/logging/main.py [--rounds 5] [--quick]
python benchmarks/logging/main.py --markdown                print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from member import compute
from variants import METRICS, SINKS, STEP_MS, STEPS

from mach.provenance import commit_of, environment, machine_of

RESULT = Path(__file__).parent / "result.json"
MEMBER = Path(__file__).parent / "member.py"
AIM = 1.01
_DEADLINE_S = 300.0


def main() -> None:
    """Measure, or print again what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round: does it work?")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(RESULT.read_text())))
        return
    result: dict[str, Any] = {"environment": environment(), "members": {}}
    products = calibrate()
    for members in (1, os.cpu_count() or 1):
        rounds: list[dict[str, Any]] = []
        for _ in range(1 if options.quick else options.rounds):
            rounds.append({sinks: together(sinks, members, products) for sinks in SINKS})
        result["members"][str(members)] = rounds
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


def calibrate() -> int:
    """Products of matrices that take as long as a step."""
    torch.set_num_threads(1)
    compute(100)
    took_ms = []
    for _ in range(20):
        began = time.perf_counter()
        compute(10)
        took_ms.append(1e3 * (time.perf_counter() - began) / 10)
    return round(STEP_MS / median(took_ms))


def together(sinks: str, members: int, products: int) -> list[dict[str, float]]:
    """So many components side by side, each with a log of its own."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, str(MEMBER), sinks, folder, str(k), str(products)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for k in range(members)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", process.communicate()
            outputs = [process.communicate("go\n", _DEADLINE_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for _, errors in outputs:
        # A line that was dropped, or a sink that gave up, would have been told there.
        assert not errors, errors
    return [summed(json.loads(output)) for output, _ in outputs]


def summed(found: dict[str, Any]) -> dict[str, float]:
    """The steps of one member in a few numbers."""
    return {
        "step_median_ms": median(found["steps_ms"]),
        "step_mean_ms": mean(found["steps_ms"]),
        "logging_median_ms": median(found["logging_ms"]),
        "logging_mean_ms": mean(found["logging_ms"]),
        "close_s": found["close_s"],
    }


# --- tables --------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The README's tables."""
    e = result["environment"]
    lines = ["## Result", ""]
    for members, rounds in result["members"].items():
        many = f"{members} components, one for each core," if members != "1" else "One component"
        lines += [
            f"{many} with {METRICS} metrics in a line after every step of {STEP_MS:g} ms:",
            "",
            "| lines go to | of a step, ms | part of a step, % | step's median, times that without "
            "| step's mean, times that without | < 1 % | s to finish |",
            "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
            *(_row(sinks, rounds) for sinks in SINKS if sinks != "nothing"),
            "",
        ]
    return "\n".join(
        [
            *lines,
            f"Medians (least .. most) of {len(rounds)} rounds in which the sinks took turns; each "
            f"{STEPS} steps long. The first two columns are the calls that log, on the clock of "
            "the thread that trains; the ratios compare whole steps with those that log nothing.",
            "",
            "## Environment",
            "",
            f"- {machine_of(e)}; load {e['load']:.2f} at the start",
            f"- commit {commit_of(e)}, {e['date']}: `{e['command']}`",
        ]
    )


def _row(sinks: str, rounds: list[dict[str, Any]]) -> str:
    logging = [m["logging_mean_ms"] for one in rounds for m in one[sinks]]
    part = [100 * m["logging_mean_ms"] / m["step_mean_ms"] for one in rounds for m in one[sinks]]
    medians, means = (_ratios(sinks, rounds, key) for key in ("step_median_ms", "step_mean_ms"))
    close = [m["close_s"] for one in rounds for m in one[sinks]]
    met = "yes" if median(part) < 1 and median(means) < AIM else "no"
    cells = [_spread(logging, 2), _spread(part, 2), _spread(medians, 3), _spread(means, 3), met]
    return f"| {' | '.join([sinks, *cells, _spread(close, 1)])} |"


def _ratios(sinks: str, rounds: list[dict[str, Any]], key: str) -> list[float]:
    """Of each round: this one's step, times that of the same round without a log."""
    return [
        mean(m[key] for m in one[sinks]) / mean(m[key] for m in one["nothing"]) for one in rounds
    ]


def _spread(values: list[float], digits: int) -> str:
    middle, least, most = median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} .. {most:.{digits}f})"


if __name__ == "__main__":
    main()
