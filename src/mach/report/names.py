"""What does wandb call the runs and artifacts of a component? The same in every life of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def run_id(group: str, component: int, run_dir: Path) -> str:
    """The same for every life of a component, different for two folders of one name."""
    place = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", group)[:40]  # 64 signs at most, none of /\#?%:
    return f"{readable}-{component}-{place}"


def artifact_name(run: str, kind: str) -> str:
    """All versions of what a component's wandb run leaves of one kind."""
    return f"{run}-{kind}"


def step_alias(step: int) -> str:
    """Names the version of an artifact that was made after an optimizer step."""
    return f"step-{step}"
