"""What runs tell, as tests make it and read it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60.0


def record(step: int, **more: Any) -> dict[str, Any]:
    """A line as the trainer writes it."""
    return {
        "step": step,
        "microbatch": 4 * step,
        "samples": 64 * step,
        "wall_s": 0.1 * step,
        "loss": 2.3 / step,
        "student_loss": None,
        "gradient_norm": 0.9,
        "lr": 1e-3,
        "staleness_steps": 2.0,
        "wait_child_ms": 0.0,
        "wait_data_ms": 0.5,
        "wait_parent_ms": 1.5,
        "busy_fraction": 0.93,
        "samples_per_s": 2364.0,
        "bytes_up": 1024,
        "bytes_down": 1024,
    } | more


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who is not logged in to wandb."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    clean |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "PYTHONUNBUFFERED": "1"}
    return clean | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more


def inspect(path: Path) -> list[dict[str, Any]]:
    """Records of a .wandb file, read by wandb itself."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    found = subprocess.run(
        command, env=environment(path.parent), capture_output=True, timeout=DEADLINE_S, check=False
    )
    if b"No such command" in found.stderr:
        pytest.skip("this wandb is older than 0.31 and has no `wandb leet inspect`")
    assert found.returncode == 0, found.stderr.decode()
    return [json.loads(line) for line in found.stdout.splitlines()]
