"""How much of a model's own speed is left when it answers over HTTP, and how long does one wait?

python benchmarks/serve/main.py RUN [--window 1..3] [--batches 1 64 1024] [--rounds 3] [--quick]
python benchmarks/serve/main.py --markdown                     print the README's tables again
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mach.config import ServeConfig
from mach.predictor import Predictor, open_predictor
from mach.provenance import commit_of, environment, machine_of
from mach.rank import available_cores
from mach.serve.server import threads_of

HERE = Path(__file__).parent
RESULT = HERE / "result.json"
AIM_RATE, AIM_P99_MS = 0.8, 50.0


def main() -> None:
    """Measure, or print again what was measured."""
    options = _options()
    if options.markdown:
        print(markdown(json.loads(RESULT.read_text())))
        return
    seconds, rounds = (2.0, 1) if options.quick else (options.seconds, options.rounds)
    predictor = open_predictor(options.run, options.window)
    torch.set_num_threads(options.threads)
    here = environment()
    with tempfile.TemporaryDirectory() as folder, serving(options, Path(folder)) as url:
        rows = [
            measure(predictor, url, batch, seconds, rounds, options.users, Path(folder))
            for batch in options.batches
        ]
    settings = {"users": options.users, "threads": options.threads, "seconds": seconds}
    result = {"environment": here, "settings": settings, "rows": rows}
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", help="a run folder")
    parser.add_argument("--window", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--users", type=int, default=4)
    usual = threads_of(ServeConfig(""), len(available_cores()))
    parser.add_argument("--threads", type=int, default=usual, help="of the model, both ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="does it work?")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.run is None and not options.markdown:
        parser.error("expected a run folder")
    return options


def measure(
    predictor: Predictor,
    url: str,
    batch: int,
    seconds: float,
    rounds: int,
    users: int,
    folder: Path,
) -> dict[str, Any]:
    """The bare model and the service in turns, with the same batches of bytes."""
    x = np.random.default_rng(0).integers(0, 256, (batch, *predictor.signature.shape), "u1")
    body = folder / f"{batch}.npy"
    np.save(body, x)
    bare: list[float] = []
    served: list[float] = []
    half: list[dict[str, float]] = []
    for _ in range(rounds):
        bare.append(_bare(predictor, x, seconds))
        served.append(_load(url, body, 0, seconds, users, folder)["rate"])
        half.append(_load(url, body, served[-1] / 2 / users, seconds, users, folder))
    return {
        "batch": batch,
        "bare_samples_per_s": [batch * rate for rate in bare],
        "served_samples_per_s": [batch * rate for rate in served],
        "ratio": [s / b for s, b in zip(served, bare, strict=True)],
        "half_load_p50_ms": [one["p50_ms"] for one in half],
        "half_load_p99_ms": [one["p99_ms"] for one in half],
    }


def _bare(predictor: Predictor, x: np.ndarray, seconds: float) -> float:
    """Batches a second of the model alone, as it is called in a loop."""
    batch, count = torch.from_numpy(x), 0
    with torch.inference_mode():
        for _ in range(3):
            predictor.module(batch)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            predictor.module(batch).softmax(-1)
            count += 1
    return count / (time.perf_counter() - began)


def _load(
    url: str, body: Path, rate: float, seconds: float, users: int, folder: Path
) -> dict[str, float]:
    """What locust measures: answers a second, and milliseconds of waiting."""
    prefix = folder / "locust"
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "users.py"), "--headless"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--host", url.rstrip("/")]
    command += ["--run-time", f"{max(2, round(seconds))}s", "--csv", str(prefix), "--only-summary"]
    environment = {**os.environ, "SERVE_BODY": str(body), "SERVE_RATE": str(rate)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with Path(f"{prefix}_stats.csv").open() as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "/predict")
    assert total["Failure Count"] == "0", total
    return {
        "rate": float(total["Requests/s"]),
        "p50_ms": float(total["50%"]),
        "p99_ms": float(total["99%"]),
    }


@contextmanager
def serving(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The service in a process of its own; its address."""
    command = [sys.executable, "-c", "import sys; from mach.cli import main; main()", "serve"]
    command += [options.run, "port=0", "max_body_mb=64"]
    command += [f"threads={options.threads}"]
    command += [f"window={options.window}"] if options.window else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "it did not start"
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


def markdown(result: dict[str, Any]) -> str:
    """The README's tables."""
    lines = [
        "## Result",
        "",
        "| samples in a request | bare model, samples/s | served, samples/s | served / bare | p50 "
        "ms at half load | p99 ms at half load |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['batch']:,} | {median(row['bare_samples_per_s']):,.0f} | "
            f"{median(row['served_samples_per_s']):,.0f} | {_spread(row['ratio'], 2)} | "
            f"{_spread(row['half_load_p50_ms'], 0)} | {_spread(row['half_load_p99_ms'], 0)} |"
        )
    here, settings = result["environment"], result["settings"]
    lines += [
        "",
        f"Medians (least .. most) of rounds of {settings['seconds']:g} s, the bare model and "
        f"the service in turns; {settings['users']} users; threads of the model: "
        f"{settings['threads']}.",
        "",
        "## Environment",
        "",
        f"- {machine_of(here)}; load {here['load']:.1f} at the start; the load generator ran on "
        "the same cores",
        f"- commit {commit_of(here)}, {here['date']}: `{here['command']}`",
    ]
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    middle, least, most = median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} .. {most:.{digits}f})"


if __name__ == "__main__":
    main()
