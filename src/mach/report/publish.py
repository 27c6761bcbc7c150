"""How does an exported model get to wandb? With its lineage: the checkpoints it was made of."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mach.checkpoint import consolidated
from mach.config import ExportConfig
from mach.configfile import shown
from mach.export.folder import DESCRIPTION
from mach.inference import open_model
from mach.report import wandb_mode
from mach.report.artifact import Artifact
from mach.report.lineage import artifact_of, group_of
from mach.report.wandb_sink import WandbSink


def publish(folder: Path, asked: ExportConfig) -> None:
    """Log an exported folder as an artifact, where the run's own checkpoints are logged, too.

    It gets a wandb run in the group of the components, with job type `export`. What goes wrong is
    a warning: the folder is complete whatever becomes of its copy.

    Args:
        asked: what it was exported by.
    """
    run, name = open_model(asked.run, asked.window)
    config, report = run.config, run.config.report
    mode = wandb_mode.resolve(report.wandb, os.environ, wandb_mode.home())
    if mode == "off" or report.artifacts == "off":
        return
    if mode == "offline" and report.artifacts != "always":
        return
    made_of = (
        consolidated.find(run.run_dir, name).made_of()
        if name.consolidated
        else run.checkpoints(name.first, name.last)
    )
    description = json.loads((folder / DESCRIPTION).read_text())
    sink = WandbSink(
        mode,
        report.project,
        group_of(config, run.run_dir),
        f"export-{folder.name}",
        shown(config) | {"model_json": description},
        run.run_dir,
        resume=True,
        tags=report.tags,
        artifacts=report.artifacts,
        began_from=[artifact_of(found.path, k) for k, found in made_of.items()],
        timeout_s=report.finish_timeout_s,
        job_type="export",
    )
    sink.saved(Artifact("model", max(found.step for found in made_of.values()), folder))
    sink.close()
