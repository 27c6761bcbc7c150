"""How much of a model's own speed is left when it answers over HTTP, and how long does one wait?

python benchmarks/serve/main.py RUN [--window 1..3] [--batches 1 64 1024] [--users 4 8 16] [--quick]
python benchmarks/serve/main.py --markdown                     print the README's tables again

Requests are sent by hey (apt-get install hey, brew install hey).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import resource
import shutil
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

RESULT = Path(__file__).parent / "result.json"
NPY = "application/x-npy"
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
    with tempfile.TemporaryDirectory() as folder, serving(options) as url:
        rows = [
            measure(predictor, url, batch, seconds, rounds, users, Path(folder))
            for batch in options.batches
            for users in options.users
        ]
        idle = _load(f"{url}healthz", seconds, max(options.users))
    settings = {"threads": options.threads, "seconds": seconds, "healthz_per_s": idle["rate"]}
    result = {"environment": here, "settings": settings, "rows": rows}
    if not options.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", help="a run folder")
    parser.add_argument("--window", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--users", type=int, nargs="+", default=[4, 8, 16], help="at a time")
    usual = threads_of(ServeConfig(""), len(available_cores()))
    parser.add_argument("--threads", type=int, default=usual, help="of the model, both ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="does it work?")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.run is None and not options.markdown:
        parser.error("expected a run folder")
    if not options.markdown and shutil.which("hey") is None:
        parser.error("expected the load generator hey: apt-get install hey, or brew install hey")
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
    full: list[dict[str, float]] = []
    half: list[dict[str, float]] = []
    for _ in range(rounds):
        bare.append(_bare(predictor, x, seconds))
        full.append(_load(f"{url}predict", seconds, users, body))
        half.append(_load(f"{url}predict", seconds, users, body, full[-1]["rate"] / 2))
    return {
        "batch": batch,
        "users": users,
        "bare_samples_per_s": [batch * rate for rate in bare],
        "served_samples_per_s": [batch * one["rate"] for one in full],
        "ratio": [one["rate"] / b for one, b in zip(full, bare, strict=True)],
        "generator_cpu_ms": [one["cpu_ms"] for one in full],
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
    url: str, seconds: float, users: int, body: Path | None = None, rate: float = 0
) -> dict[str, float]:
    """What hey measures: answers a second, milliseconds of waiting, and its own CPU a request.

    Args:
        body: is sent by POST. None: nothing, by GET.
        rate: requests a second of all users together, who send at the same moments; 0: as many as
            are answered.
    """
    command = ["hey", "-z", f"{seconds}s", "-c", str(users), "-o", "csv"]
    command += ["-m", "POST", "-D", str(body), "-T", NPY, "-A", NPY] if body else []
    command += ["-q", str(rate / users)] if rate else []
    before = _children_s()
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=300, check=True)
    cpu_s = _children_s() - before
    answers = list(csv.DictReader(io.StringIO(done.stdout)))
    refused = [one for one in answers if one["status-code"] != "200"]
    assert answers, done.stderr
    assert not refused, refused[0]
    waited = [float(one["response-time"]) for one in answers]
    span = max(float(one["offset"]) + wait for one, wait in zip(answers, waited, strict=True))
    return {
        "rate": len(answers) / span,
        "p50_ms": 1e3 * float(np.percentile(waited, 50)),
        "p99_ms": 1e3 * float(np.percentile(waited, 99)),
        "cpu_ms": 1e3 * cpu_s / len(answers),
    }


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[str]:
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
    head = ["samples in a request", "users", "bare model, samples/s", "served, samples/s"]
    head += ["served / bare", "p50 ms at half load", "p99 ms at half load", "both aims"]
    lines = ["## Result", "", f"| {' | '.join(head)} |", "| ---: " * len(head) + "|"]
    for row in result["rows"]:
        met = median(row["ratio"]) >= AIM_RATE and median(row["half_load_p99_ms"]) < AIM_P99_MS
        cells = [
            f"{row['batch']:,}",
            str(row["users"]),
            f"{median(row['bare_samples_per_s']):,.0f}",
            f"{median(row['served_samples_per_s']):,.0f}",
            _spread(row["ratio"], 2),
            _spread(row["half_load_p50_ms"], 0),
            _spread(row["half_load_p99_ms"], 0),
            "yes" if met else "**no**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    here, settings = result["environment"], result["settings"]
    generator = [median(row["generator_cpu_ms"]) for row in result["rows"]]
    lines += [
        "",
        f"Medians (least .. most) of rounds of {settings['seconds']:g} s, the bare model and the "
        f"service in turns; threads of the model: {settings['threads']}. The load generator took "
        f"{min(generator):.2f} to {max(generator):.2f} ms of CPU a request. With nothing to "
        f"compute (`/healthz`) the service answers {settings['healthz_per_s']:,.0f} requests a "
        "second.",
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
