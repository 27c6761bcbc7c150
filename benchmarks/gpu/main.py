"""How fast is a chain whose components share one GPU, beside the same network in one process?

python benchmarks/gpu/main.py                                 ResNet-56 and GPT, on one GPU
python benchmarks/gpu/main.py --device cpu --quick            small, on CPU: does it work?
python benchmarks/gpu/main.py --markdown                      print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

RESULT = Path(__file__).parent / "result.json"
MACH = [sys.executable, "-c", "import mach.cli; mach.cli.main()", "train"]
DEADLINE_S = 600.0
_console = Console(stderr=True)


@dataclass(frozen=True)
class Task:
    """A network, its data (random: only time is measured) and its microbatch."""

    about: str
    model: tuple[str, ...]
    blocks: int
    microbatch_size: int
    context: int = 0


TASKS = {
    "resnet": Task("ResNet-56, images 3 x 32 x 32", ("model=resnet", "model.layers=56"), 27, 128),
    "gpt": Task(
        "GPT of 14 blocks, width 768 (99 million parameters), 512 bytes",
        ("model=gpt", "model.width=768", "model.heads=12"),
        14,
        8,
        512,
    ),
}
QUICK = {
    "resnet": Task(
        "ResNet-14, width 8, images 3 x 32 x 32",
        ("model=resnet", "model.layers=14", "model.width=8"),
        6,
        4,
    ),
    "gpt": Task(
        "GPT of 4 blocks, width 32, 32 bytes",
        ("model=gpt", "model.width=32", "model.heads=2"),
        4,
        4,
        32,
    ),
}


def main() -> None:
    """Measure, or print again what was measured."""
    options = _options()
    if options.markdown:
        print(markdown(json.loads((options.out or RESULT).read_text())))
        return
    out = options.out or (None if options.quick or options.device == "cpu" else RESULT)
    tasks, steps = (QUICK, 6) if options.quick else (TASKS, options.steps)
    found: dict[str, Any] = {"environment": _environment(options.device), "runs": []}
    chosen = {name: tasks[name] for name in options.tasks}
    with tempfile.TemporaryDirectory(prefix="mach-gpu-") as scratch:
        data = {name: _data(task, Path(scratch) / name) for name, task in chosen.items()}
        turns = product(range(1 if options.quick else options.rounds), chosen, options.components)
        for turn, name, components in turns:
            folder = Path(scratch) / f"{name}-{components}-{turn}"
            task = chosen[name]
            speed = _run(task, data[name], components, steps, options, folder)
            shutil.rmtree(folder)  # the checkpoint of 100 million parameters among other things
            run = {"round": turn, "task": name, "about": task.about, "components": components}
            found["runs"].append({**run, "samples_per_s": speed})
            _console.print(f"{name}, {components} components: {speed:,.1f} samples/s")
            if out is not None:
                out.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, a few steps")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--components", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="times that each takes its turn")
    parser.add_argument("--wire-dtype", default="float32")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help=f"default {RESULT.name} beside this file")
    parser.add_argument("--markdown", action="store_true", help="print --out as Markdown")
    options = parser.parse_args()
    if options.device == "cuda" and not options.markdown and not torch.cuda.is_available():
        parser.error("expected a GPU, found none; --device cpu --quick shows that this works")
    return options


def _data(task: Task, path: Path) -> list[str]:
    random = np.random.default_rng(0)
    if task.context:
        path.write_bytes(random.integers(0, 256, 2_000_000, dtype=np.uint8).tobytes())
        context = [f"data.context={task.context}", "data.test_samples=16"]
        return ["data=text", f"data.path={path}", *context]
    file = path.with_suffix(".npz")
    images = random.integers(0, 256, (2016, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 10, 2016)
    np.savez(
        file,
        x_train=images[:2000],
        y_train=labels[:2000],
        x_test=images[2000:],
        y_test=labels[-16:],
    )
    return ["data=npz", f"data.path={file}", "data.classes=10"]


def _run(
    task: Task,
    data: list[str],
    components: int,
    steps: int,
    options: argparse.Namespace,
    folder: Path,
) -> float:
    """Samples per second of one run, its first quarter aside."""
    depth = [] if "model=resnet" in task.model else [f"model.depth={task.blocks}"]
    command = [
        *MACH,
        *task.model,
        *data,
        *depth,
        f"components={components}",
        f"microbatch_size={task.microbatch_size}",
        f"steps={steps}",
        f"optim.precision={options.precision}",
        f"model.compile={str(options.compile).lower()}",
        "transport=gloo",
        f"transport.wire_dtype={options.wire_dtype}",
        f"launch.device={options.device}",
        "student=none",
        "head.weight=0",
        "report=quiet",
        "report.every=1",
        f"out={folder}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    lines = (folder / f"component-{components - 1}.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "samples" in record]
    first, last = records[len(records) // 4], records[-1]
    return float((last["samples"] - first["samples"]) / (last["wall_s"] - first["wall_s"]))


def markdown(found: dict[str, Any]) -> str:
    """The README's table."""
    lines = ["| | components | samples/s | of one process |", "| --- | ---: | ---: | ---: |"]
    alone = {
        (r["about"], r["round"]): r["samples_per_s"] for r in found["runs"] if r["components"] == 1
    }
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        groups.setdefault((run["about"], run["components"]), []).append(run)
    for (about, components), runs in groups.items():
        speeds = [run["samples_per_s"] for run in runs]
        # Within a round: from one to the next the machine may change its speed.
        pairs = [(run["samples_per_s"], alone.get((about, run["round"]))) for run in runs]
        ratios = [speed / one for speed, one in pairs if one is not None]
        ratio = f"{median(ratios):.2f}" if ratios else ""
        spread = f"{median(speeds):,.1f} ({min(speeds):,.1f} .. {max(speeds):,.1f})"
        lines.append(f"| {about} | {components} | {spread} | {ratio} |")
    e = found["environment"]
    return "\n".join([*lines, "", f"{e['device']}; torch {e['torch']}; `{e['command']}`"])


def _environment(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    command = " ".join(["python benchmarks/gpu/main.py", *sys.argv[1:]])
    return {"device": name, "torch": torch.__version__, "command": command}


if __name__ == "__main__":
    main()
