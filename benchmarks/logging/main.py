"""What does logging cost a step of training: 100 metrics a line, 20 lines a second?

python benchmarks/logging/main.py [--rounds 3] [--quick]
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
from statistics import median, quantiles
from typing import Any

import torch
from member import compute
from variants import MEASURED_S, METRICS, PHASE_S, SINKS, STEP_MS, STEPS

from mach.provenance import commit_of, environment, machine_of

RESULT = Path(__file__).parent / "result.json"
MEMBER = Path(__file__).parent / "member.py"
AIM = 0.01
_DEADLINE_S = 300.0


def main() -> None:
    """Measure, or print again what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round: does it work?")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(RESULT.read_text())))
        return
    members = os.cpu_count() or 1
    result: dict[str, Any] = {"environment": environment(), "members": members, "steps": {}}
    for step in STEPS:
        products = calibrate() if step == "computes" else 0
        result["steps"][step] = [
            {sinks: together(sinks, members, products) for sinks in SINKS}
            for _ in range(1 if options.quick else options.rounds)
        ]
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


def together(sinks: str, members: int, products: int) -> list[dict[str, Any]]:
    """So many components side by side, each with a log of its own: what each found."""
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
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            outputs = [process.communicate(timeout=_DEADLINE_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for _, errors in outputs:
        # A line that was dropped, or a sink that gave up, would have been told there.
        assert not errors, errors
    return [json.loads(output) for output, _ in outputs]


# --- tables --------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The README's tables."""
    e = result["environment"]
    lines = ["## Result", ""]
    for step, rounds in result["steps"].items():
        lines += [
            f"{STEPS[step]}: {result['members']} of them, a line of {METRICS} metrics after every "
            f"step of {STEP_MS:g} ms:",
            "",
            "| lines go to | the call, ms | part of a step, % | a step with a line, times one "
            "without | pairs of phases | < 1 % | s to finish |",
            "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
            *(_row([one for found in rounds for one in found[sinks]], sinks) for sinks in SINKS),
            "",
        ]
    return "\n".join(
        [
            *lines,
            f"{len(rounds)} rounds of {MEASURED_S:g} s in which the sinks took turns. The call is "
            "on the clock of the thread that trains, median (least .. most) of the rounds. The "
            f"ratio compares phases of {PHASE_S:g} s with lines and without that follow each "
            "other, median (quartiles) of the pairs.",
            "",
            "## Environment",
            "",
            f"- {machine_of(e)}; load {e['load']:.2f} at the start",
            f"- commit {commit_of(e)}, {e['date']}: `{e['command']}`",
        ]
    )


def _row(runs: list[dict[str, Any]], sinks: str) -> str:
    call = [run["logging_ms"] for run in runs]
    part = [100 * run["logging_ms"] / run["step_ms"] for run in runs]
    ratios = [ratio for run in runs for ratio in run["ratios"]]
    low, middle, high = quantiles(ratios, n=4)
    met = "yes" if median(part) < 100 * AIM and middle < 1 + AIM else "no"
    cells = [_spread(call, 2), _spread(part, 2), f"{middle:.3f} ({low:.3f} .. {high:.3f})"]
    cells += [str(len(ratios)), met, _spread([run["close_s"] for run in runs], 1)]
    return f"| {' | '.join([sinks, *cells])} |"


def _spread(values: list[float], digits: int) -> str:
    middle, least, most = median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} .. {most:.{digits}f})"


if __name__ == "__main__":
    main()
