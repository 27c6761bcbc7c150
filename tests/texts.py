"""A small text and the configs of language models that train on it in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

from mach.config import Config
from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.trainer import Oracle

LINE = "The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "


def write_text(folder: Path) -> Path:
    """Some 8,000 bytes that repeat themselves, not quite."""
    path = folder / "text.txt"
    path.write_text("".join(f"{number} {LINE}" for number in range(100)))
    return path


def make(path: Path, components: int = 2, **overrides: object) -> Config:
    """A small language model; a mapping among the overrides changes single values of its part, and
    drops those it has as None."""
    values: dict = {
        "components": components,
        "delay": 0,
        "accumulate": 2,
        "steps": 5,
        "microbatch_size": 3,
        "model": {"name": "gpt", "width": 16, "heads": 2, "blocks": 1},
        "data": {"name": "text", "path": str(path), "context": 12, "test_samples": 7},
        "head": {"weight": 0.0},
        "student": {"enabled": False, "width": 8},
        "optim": {"clip": 0.0},
    }
    for key, value in overrides.items():
        part = values.get(key)
        if isinstance(part, dict) and isinstance(value, dict):
            value = {name: v for name, v in {**part, **value}.items() if v is not None}
        values[key] = value
    return from_mapping(values)


def train(config: Config) -> tuple[Oracle, dict]:
    """Train in this process."""
    torch.manual_seed(0)
    oracle = Oracle(config, open_dataset(config.data))
    return oracle, oracle.run()
