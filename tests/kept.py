"""Runs that were trained in this process and kept in a folder, as processes keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mach import checkpoint, runfolder
from mach.config import Config
from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.trainer import Oracle, settle

CLASSES = 4
SHAPE = (6, 5)
"""Of the pictures that are asked about over HTTP."""


def save(
    oracle: Oracle, config: Config, run_dir: Path, steps: Sequence[int | None] | None = None
) -> None:
    """Write what a run leaves; with `steps`, each component alone after so many of them."""
    runfolder.claim(run_dir, config)
    preprocessing = open_dataset(config.data).preprocessing
    files: dict[str, str] = {}
    for k, trainer in enumerate(oracle.trainers):
        component = trainer.worker.component
        step = config.steps if steps is None else steps[k]
        if step is None:
            continue
        mine = checkpoint.save(run_dir, step, k, checkpoint.tensors_of(component, {}))
        files |= mine
        if steps is not None:
            checkpoint.seal(run_dir, step, k, mine, config, life=0, preprocessing=preprocessing)
    if steps is None:
        checkpoint.write_manifest(run_dir, config.steps, files, config, preprocessing)


def write_images(folder: Path, *shape: int, test: int = 20) -> Path:
    """Noisy pictures of four classes, bytes, in an .npz file."""
    random = np.random.default_rng(0)
    arrays = {}
    means = random.normal(size=(CLASSES, *shape))
    for split, count in (("train", 256), ("test", test)):
        y = random.integers(0, CLASSES, count)
        x = means[y] + 0.5 * random.normal(size=(count, *shape))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = (40 * x + 128).clip(0, 255).astype("u1"), y
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def keep(config: Config, run_dir: Path) -> Path:
    """Train in this process and write what a run leaves."""
    torch.manual_seed(0)
    dataset = open_dataset(config.data)
    config = settle(config, dataset, torch.device("cpu"))
    oracle = Oracle(config, dataset)
    result = oracle.run()
    save(oracle, config, run_dir)
    runfolder.write_result(run_dir, result)
    return run_dir


def of_images(folder: Path, *shape: int, test: int = 20, **overrides: object) -> Config:
    """A small run on pictures, with students."""
    values: dict = {
        "components": 3,
        "accumulate": 2,
        "steps": 4,
        "microbatch_size": 8,
        "model": {"name": "mlp", "width": 12},
        "data": {"name": "npz", "path": str(write_images(folder, *shape, test=test))},
        "student": {"width": 8},
    }
    return from_mapping({**values, **overrides})
