"""Which wandb artifacts is something made of?"""

from __future__ import annotations

from pathlib import Path

from mach import runfolder
from mach.config import Config
from mach.configfile import load
from mach.errors import MachError
from mach.report.names import artifact_name, run_id, step_alias


def group_of(config: Config, run_dir: Path) -> str:
    """What wandb groups the components of a run under."""
    return config.report.group or run_dir.resolve().name


def artifact_of(checkpoint: Path, component: int) -> str:
    """The name wandb knows a component's part of a checkpoint by, as `name:alias`.

    Args:
        checkpoint: as `<run>/checkpoints/step-<n>`.
    """
    run_dir = checkpoint.resolve().parents[1]
    try:
        group = group_of(load(run_dir / runfolder.CONFIG), run_dir)
    except (MachError, OSError):  # moved away from its run
        group = run_dir.name
    step = int(checkpoint.name.removeprefix("step-"))
    return f"{artifact_name(run_id(group, component, run_dir), 'checkpoint')}:{step_alias(step)}"
