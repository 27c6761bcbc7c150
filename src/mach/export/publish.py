"""How does an exported model get to wandb? With its lineage: the checkpoints it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mach.checkpoint import Checkpoint
from mach.config import Config
from mach.report import wandb_mode
from mach.report.artifact import Artifact
from mach.report.lineage import artifact_of, group_of
from mach.report.wandb_sink import WandbSink


def publish(
    folder: Path,
    description: Mapping[str, Any],
    config: Config,
    run_dir: Path,
    made_of: Mapping[int, Checkpoint],
) -> None:
    """Log an exported folder as an artifact, where the run's own checkpoints are logged, too.

    It gets a wandb run in the group of the components, with job type `export`. What goes wrong is
    a warning: the folder is complete whatever becomes of its copy.

    Args:
        description: the content of model.json.
        made_of: the checkpoint each component was taken from, by its index.
    """
    report = config.report
    mode = wandb_mode.resolve(report.wandb, os.environ, Path.home())
    if mode == "off" or report.artifacts == "off":
        return
    if mode == "offline" and report.artifacts != "always":
        return
    sink = WandbSink(
        mode,
        report.project,
        group_of(config, run_dir),
        f"export-{folder.name}",
        asdict(config) | {"model_json": dict(description)},
        run_dir,
        resume=True,
        tags=report.tags,
        artifacts=report.artifacts,
        began_from=[artifact_of(found.path, k) for k, found in made_of.items()],
        timeout_s=report.finish_timeout_s,
        job_type="export",
    )
    sink.saved(Artifact("model", max(found.step for found in made_of.values()), folder))
    sink.close()
