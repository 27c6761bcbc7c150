"""Small runs, and what they leave in their folders."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

SMALL = [
    "components=2",
    "steps=20",
    "model.width=16",
    "student.width=16",
    "launch.device=cpu",
    "launch.threads=1",
    "report.wandb=off",
    "report.progress=false",
]
"""A run of two processes that trains for a second."""

LONG = [*SMALL, "steps=100", "checkpoint.every=20", "report.every=10"]
"""The same with five checkpoints: long enough to be interrupted after the first."""


def stored_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, optimizer state, random state, of all components."""
    tensors: dict[str, torch.Tensor] = {}
    for folder in sorted(checkpoint.glob("component-*/")):
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        part = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        assert len(part) == len(stored)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it works without a process group: meant so
            dcp.load(part, checkpoint_id=folder, no_dist=True)
        tensors |= {f"{folder.name}/{name}": value for name, value in part.items()}
    return tensors


def assert_same_tensors(a: Path, b: Path) -> None:
    """Two checkpoints hold the same tensors, bit by bit."""
    mine, other = stored_tensors(a), stored_tensors(b)
    assert mine.keys() == other.keys()
    assert mine, f"{a} is empty"
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Steps of the complete checkpoints of a run."""
    manifests = (run_dir / "checkpoints").glob("step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in manifests)


def result(run_dir: Path) -> dict:
    """The run's result.json."""
    return json.loads((run_dir / "result.json").read_text())


def scores(run_dir: Path) -> tuple:
    """What must be equal in two runs with the same numbers."""
    found = result(run_dir)
    return found["chain"], found["windows"], found["staleness_steps"]


def lines(run_dir: Path, component: int) -> list[dict]:
    """The log of one component."""
    text = (run_dir / f"component-{component}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def without_its_end(run_dir: Path, copy: Path, last: int) -> Path:
    """A copy of a run as if it had ended just before its last checkpoint, that of step `last`."""
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{last}")
    (copy / "result.json").unlink()
    return copy


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder, to show that nothing was touched."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
