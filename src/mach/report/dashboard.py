"""How is the dashboard of runs made: wandb's workspace, from the table of panels?

With wandb-workspaces (pip install 'mach[dashboards]'): saved to wandb where the user is logged in,
written to a file otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mach import runfolder
from mach.errors import ConfigError, MachError
from mach.extras import missing
from mach.records import read_run
from mach.report import panels, wandb_mode
from mach.report.wandb_sink import AXIS

SPEC = "dashboard.json"


def main(arguments: list[str]) -> int:
    """`mach dashboard`. Returns the exit code.

    Raises:
        MachError: see `dashboard`.
    """
    parser = argparse.ArgumentParser(
        prog="mach dashboard",
        description="Make wandb's workspace for mach's runs: upload it where you are logged in, "
        "else write it to a file.",
    )
    parser.add_argument("path", nargs="?", type=Path, help="run folder: show its group alone")
    parser.add_argument("--project", help="wandb's project (default: the run's, or mach)")
    parser.add_argument("--entity", help="wandb's user or team (default: your own)")
    parser.add_argument("--out", type=Path, help=f"file to write, in place of uploading ({SPEC})")
    parser.add_argument("--offline", action="store_true", help="write the file in any case")
    options = parser.parse_args(arguments)
    return dashboard(**vars(options))


def dashboard(
    path: Path | None, project: str | None, entity: str | None, out: Path | None, offline: bool
) -> int:
    """Upload the workspace, or write it to a file; say which. Returns the exit code.

    Args:
        path: run folder whose group is shown; None: all runs of the project.
        project: of wandb; None: the run's, or mach.
        entity: wandb's user or team; None: the user's own.
        out: file to write; None: dashboard.json in the run folder or here.
        offline: write the file whether or not somebody is logged in.

    Raises:
        MachError: a package is missing, there is no such run, or wandb refused.
    """
    if missing("wandb_workspaces"):
        raise ConfigError(
            "mach dashboard: expected the package wandb-workspaces, found none. "
            "pip install 'mach[dashboards]'"
        )
    values = {} if path is None else _values(path)
    report = values.get("report")
    report = report if isinstance(report, dict) else {}
    group = None if path is None else report.get("group") or path.resolve().name
    project = project or report.get("project") or "mach"
    online = not offline and out is None
    if online and wandb_mode.resolve("auto", os.environ, wandb_mode.home()) == "online":
        print(f"Dashboard: {_save(entity, project, group)}")
        return 0
    spec = specification(entity or "", project, group)
    target = out or (path or Path()) / SPEC
    try:
        runfolder.write_atomically(target, json.dumps(spec, indent=1))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written; {error.strerror}. Use --out") from error
    print(f"Dashboard: {target}")
    return 0


def specification(entity: str, project: str, group: str | None) -> dict[str, Any]:
    """The workspace as wandb stores it."""
    spec = json.loads(_workspace(entity, project, group)._to_model().model_dump_json(by_alias=True))
    assert isinstance(spec, dict)
    return spec


def _values(path: Path) -> dict[str, Any]:
    values = read_run(path).values
    if not values:
        raise ConfigError(
            f"{path}: expected a run folder, which has {runfolder.CONFIG}; none can be read"
        )
    return values


def _save(entity: str | None, project: str, group: str | None) -> str:
    import wandb

    try:
        entity = entity or wandb.Api().default_entity
        return str(_workspace(entity or "", project, group).save().url)
    except Exception as error:  # wandb's own are of many kinds
        said = " ".join(str(error).split())[:300]
        raise MachError(
            f"wandb: the dashboard cannot be uploaded: {said}. Use --offline to write it to a file."
        ) from error


def _workspace(entity: str, project: str, group: str | None) -> Any:
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    def plot(panel: panels.Panel) -> Any:
        keys: list[Any] = [metric.key for metric in panel.metrics]
        return wr.LinePlot(title=panel.title, x=AXIS, y=keys, metric_regex=panel.regex or None)

    filters = [] if group is None else [expr.Metric("Group") == group]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="mach" if group is None else f"mach: {group}",
        sections=[
            ws.Section(name=section.title, panels=[plot(p) for p in section.panels], is_open=True)
            for section in panels.SECTIONS
        ],
        settings=ws.WorkspaceSettings(x_axis=AXIS, max_runs=100),
        runset_settings=ws.RunsetSettings(filters=filters),
    )
