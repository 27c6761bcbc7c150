"""How long does a report of a large sweep take, and what does a trace cost?

python benchmarks/report/main.py [--jobs 100] [--lines 10000] [--folder FOLDER]
python benchmarks/report/main.py --markdown                print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mach import runfolder
from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.provenance import commit_of, environment, machine_of
from mach.report.jsonl import JsonLines
from mach.report.trace import Trace
from mach.trainer import Oracle, Trainer

RESULT = Path(__file__).parent / "result.json"
COMPONENTS = 4
AIM_S, AIM_MIB = 20.0, 1000.0
_BLOCK = 10
"""Steps with, and then without a trace."""


def main() -> None:
    """Measure, or print again what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--lines", type=int, default=10_000, help="of a job, all components'")
    parser.add_argument("--steps", type=int, default=400, help="to measure the trace's cost over")
    parser.add_argument("--folder", type=Path, help="keep the sweep here; default: nowhere")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if not options.markdown:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            made = make(folder / "sweep", options.jobs, options.lines)
            result = {
                "environment": environment(),
                "sweep": made | measure(folder / "sweep", folder / "page"),
                "trace": trace(options.steps, folder),
            }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(json.loads(options.out.read_text())))


# --- the report of a sweep -------------------------------------------------------------------


class Kept:
    """Hooks that write a component's log."""

    def __init__(self, path: Path) -> None:
        self.logged = JsonLines(path, 0).log

    def stepped(self, step: int) -> None:
        """Nothing to do."""

    def flushed(self, step: int, last: bool) -> None:
        """Not saved."""


def make(folder: Path, jobs: int, lines: int) -> dict[str, Any]:
    """A sweep of so many jobs: one is trained, the others have its lines, of other steps."""
    template = folder / "0"
    config = from_mapping(
        {"components": COMPONENTS, "steps": 20, "report": {"every": 1}, "out": str(template)}
    )
    runfolder.claim(template, config)
    hooks = [Kept(template / f"component-{k}.jsonl") for k in range(COMPONENTS)]
    result = Oracle(config, open_dataset(config.data), hooks).run()
    logs = [path.read_bytes().splitlines()[1:-1] for path in sorted(template.glob("*.jsonl"))]
    text = (template / runfolder.CONFIG).read_text()
    each = lines // COMPONENTS
    for number in range(jobs):
        job = folder / str(number)
        job.mkdir(exist_ok=True)
        asked = {"components": 4, "delay": number % 5, "accumulate": 4 << (number // 5 % 4)}
        asked |= {"seed": number // 20}
        own = text
        for key, value in asked.items():
            before = f"{key}: {getattr(config, key)}\n"
            own = own.replace(f"\n{before}", f"\n{key}: {value}\n", 1)
        (job / runfolder.CONFIG).write_text(own)
        for k, log in enumerate(logs):
            with (job / f"component-{k}.jsonl").open("wb") as file:
                for n in range(each):
                    line = log[n % len(log)]
                    file.write(b'{"step": %d' % (n + 1) + line[line.index(b",") :] + b"\n")
        (job / runfolder.RESULT).write_text(json.dumps(result | asked))
    size = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    return {"jobs": jobs, "lines": each * COMPONENTS, "mib": size / 2**20}


def measure(folder: Path, out: Path) -> dict[str, Any]:
    """`mach report` as a person calls it: how long, and the most memory it had."""
    command = [
        str(Path(sys.executable).with_name("mach")),
        "report",
        str(folder),
        "--out",
        str(out),
    ]
    began_s = time.monotonic()
    subprocess.run(command, check=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": time.monotonic() - began_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "page_kb": (out / "report.html").stat().st_size / 1e3,
    }


# --- what a trace costs ----------------------------------------------------------------------


def trace(steps: int, folder: Path) -> dict[str, Any]:
    """Train the default chain in one process, a few steps with and a few without a trace in turns.

    Times are of the whole chain, divided by its components.
    """
    config = from_mapping({"components": COMPONENTS, "steps": steps})
    oracle = Oracle(config, open_dataset(config.data))
    with_s: list[float] = []
    without_s: list[float] = []
    traced = 0
    for block, trainers in enumerate(_blocks(oracle, steps)):
        paths = [folder / f"trace-{k}.json" for k in range(COMPONENTS)]
        traces = []
        if block % 2:
            traces = [Trace(path, k) for k, path in enumerate(paths)]
            for one, trainer in zip(traces, trainers, strict=True):
                one.watch(trainer.worker)
        began_s = time.process_time()  # of the processor: the machine may be busy
        _advance(trainers, (block + 1) * _BLOCK)
        for one in traces:
            one.close()
        took_s = (time.process_time() - began_s) / _BLOCK / COMPONENTS
        (with_s if block % 2 else without_s).append(took_s)
        traced += _BLOCK if block % 2 else 0
    files = list(folder.glob("trace-[0-9].json"))
    size = sum(path.stat().st_size for path in files)
    slices = sum(path.read_bytes().count(b'"ph":"X"') for path in files)
    extra = [w - wo for w, wo in zip(with_s, without_s, strict=False)]
    return {
        "step_ms": 1e3 * statistics.median(without_s),
        "extra_us": 1e6 * statistics.median(extra),
        "least_us": 1e6 * statistics.quantiles(extra, n=4)[0],
        "most_us": 1e6 * statistics.quantiles(extra, n=4)[2],
        "slice_us": _slice_us(folder),
        "kb_a_step": size / 1e3 / traced / COMPONENTS,
        "slices_a_step": slices / traced / COMPONENTS,
    }


def _slice_us(folder: Path, number: int = 50_000) -> float:
    """What it takes to keep a slice and to write it, without what is traced."""
    path = folder / "slices.json"
    one = Trace(path, 0)
    nothing = one._timed("nothing", lambda: None)
    began_s = time.process_time()
    for _ in range(number):
        nothing()
        if len(one._slices) >= 512:
            one._flush()
    took_s = time.process_time() - began_s
    one.close()
    return 1e6 * took_s / number


def _blocks(oracle: Oracle, steps: int) -> Iterator[list[Trainer]]:
    for _ in range(steps // _BLOCK - 1):
        yield oracle.trainers


def _advance(trainers: list[Trainer], step: int) -> None:
    """Until every component has taken this step, each as far as it can go."""
    while any(t.worker.component.version < step for t in trainers):
        for trainer in trainers:
            while (
                trainer.worker.component.version < step
                and trainer.next is not None
                and trainer.worker.ready(trainer.next)
            ):
                trainer.advance()


# --- telling ---------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The README's tables."""
    sweep, cost, here = result["sweep"], result["trace"], result["environment"]
    rows = [
        ("wall time, s", sweep["wall_s"], AIM_S),
        ("processor time, s", sweep["cpu_s"], None),
        ("peak memory, MiB", sweep["peak_mib"], AIM_MIB),
        ("size of the page, kB", sweep["page_kb"], None),
    ]
    lines = [
        "## Result",
        "",
        f"{sweep['jobs']} jobs of {sweep['lines']:,} lines, {sweep['mib']:,.0f} MiB in all:",
        "",
        "| `mach report` | measured | aim | met |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, value, aim in rows:
        met = "" if aim is None else "yes" if value < aim else "no"
        lines.append(f"| {name} | {value:,.1f} | {f'< {aim:g}' if aim else ''} | {met} |")
    lines += [
        "",
        "| `report.trace=true` | measured |",
        "| --- | ---: |",
        f"| a step of one component without it, ms of the processor | {cost['step_ms']:.2f} |",
        f"| slices a step | {cost['slices_a_step']:.1f} |",
        f"| keeping and writing a slice, µs of the processor | {cost['slice_us']:.2f} |",
        f"| so a step takes more, µs | {cost['slices_a_step'] * cost['slice_us']:.0f} |",
        f"| steps with and without in turns, µs more, median (quartiles) | {cost['extra_us']:.0f} "
        f"({cost['least_us']:.0f} .. {cost['most_us']:.0f}) |",
        f"| file, kB a step | {cost['kb_a_step']:.2f} |",
        "",
        "## Environment",
        "",
        f"- {machine_of(here)}; load {here['load']:.1f} at the start",
        f"- commit {commit_of(here)}, {here['date']}: `{here['command']}`",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
