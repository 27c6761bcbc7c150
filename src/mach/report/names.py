"""What does wandb call the runs and artifacts of a component? The same in every life of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def run_id(group: str, member: int | str, run_dir: Path) -> str:
    """The same for every life of a component, different for two folders of one name.

    Args:
        member: which component, or the name of what was exported.
    """
    place = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    # 64 signs at most, none of /\#?%:
    readable, which = (re.sub(r"[^A-Za-z0-9_-]+", "-", str(name)) for name in (group, member))
    which = which[:30]
    return f"{readable[: min(40, 54 - len(which))]}-{which}-{place}"


def artifact_name(run: str, kind: str) -> str:
    """All versions of what a component's wandb run leaves of one kind."""
    return f"{run}-{kind}"


def step_alias(step: int) -> str:
    """Names the version of an artifact that was made after an optimizer step."""
    return f"step-{step}"
