"""How does wandb see a run?

One wandb run per component, all in one group, and one for each model that is exported. wandb is
slow to import (0.5 s and more) and to start (0.6 s; 15 s where the server does not answer), and
takes about a millisecond for a line: all of it happens on the thread of a BackgroundSink.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mach.provenance import commit
from mach.report import panels
from mach.report.artifact import Artifact
from mach.report.background import CAPACITY, CLOSE_TIMEOUT_S, BackgroundSink, one_line
from mach.report.names import artifact_name, run_id, step_alias

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
"""Longest wait for the wandb server when a run starts; wandb's own default is 90. Well below
CLOSE_TIMEOUT_S, so that even the shortest run can still turn offline."""
AXIS = "optimizer_step"
"""What wandb draws everything over; `samples` and `wall_s` are in every line beside it."""
_ABOUT = ("component", "git", "cut", "model_json")
"""What of the config is said of an artifact, too."""


class WandbSink(BackgroundSink):
    """The wandb run of one component, or of a model that was exported.

    Args:
        mode: online or offline.
        group: all components of one launch; this one's wandb run is called `<group>-<member>`.
        member: which component, or the name of what was exported.
        config: what the run was started with, shown beside it.
        run_dir: run folder; wandb's files go to `<run_dir>/wandb`.
        resume: go on with this member's earlier wandb run, if there is one.
        tags: of the wandb run.
        artifacts: whether checkpoints and models are kept: online, always or off.
        began_from: artifacts of the checkpoints that this run goes on from, as `name:alias`.
        trainer: process whose load is measured; None is this one.
        job_type: component or export.
        alone: this process is there for the sink only, and will end without exit hooks.
    """

    def __init__(
        self,
        mode: str,
        project: str,
        group: str,
        member: int | str,
        config: dict[str, Any],
        run_dir: Path | str,
        resume: bool,
        capacity: int = CAPACITY,
        tags: Sequence[str] = (),
        artifacts: str = "online",
        began_from: Sequence[str] = (),
        timeout_s: float = CLOSE_TIMEOUT_S,
        trainer: int | None = None,
        job_type: str = "component",
        alone: bool = False,
    ) -> None:
        self._member = member
        self._alone = alone
        self._artifacts = artifacts
        self._began_from = began_from
        self._trainer = trainer
        self._arguments: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "group": group,
            "name": f"{group}-{member}",
            "id": run_id(group, member, Path(run_dir)),
            "job_type": job_type,
            "tags": list(tags) or None,
            "dir": str(run_dir),
            "config": config,
            "resume": "allow" if resume else None,
            # Whatever else this process does with wandb keeps a run of its own.
            "reinit": "create_new",
        }
        self._run: Any = None
        super().__init__(f"wandb: run {group}-{member}", capacity, timeout_s)

    def saved(self, artifact: Artifact) -> None:
        """Queue a checkpoint or a model; never waits, never raises."""
        self._put(artifact)

    # --- the sink thread --------------------------------------------------------------------

    def _write(self, item: Any) -> None:
        if isinstance(item, Artifact):
            self._keep(item)
        else:
            self._run.log(_view(item))

    def _finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        if self._alone:
            # wandb's file is whole when its service has ended. `finish` does not wait for that; the
            # exit hook would.
            import wandb

            wandb.teardown()

    def _open(self) -> None:
        # wandb counts its own use and sends that at exit, offline too (0.31.0): a DNS lookup, or
        # 12 s of waiting at the end of the process where nothing answers. Off, unless asked for.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Not only the run is to be silent: without this, "Loaded credentials .." is printed.
        wandb.setup(wandb.Settings(mode=self._arguments["mode"], silent=True))
        self._arguments["config"] |= {"git": commit()}
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or START_TIMEOUT_S),
            # One machine, one set of curves of its load.
            x_disable_stats=self._member != 0,
            x_stats_pid=self._trainer or os.getpid(),
        )
        try:
            self._run = wandb.init(settings=settings, **self._arguments)
        except Exception as error:
            if self._arguments["mode"] == "offline" or self._given_up:
                raise
            # Logged in, but on a machine without a way out: common on clusters.
            _log.warning(
                "%s cannot go online (%s); it is kept in %s for `wandb sync`.",
                self._title,
                one_line(error),
                self._folder,
            )
            # The service still holds the id of the run that did not start ("run ID .. is in use").
            wandb.teardown()
            self._arguments["mode"] = "offline"
            self._run = wandb.init(settings=settings, **self._arguments)
        if self._arguments["job_type"] == "component":
            self._define_metrics()
        if self._arguments["mode"] == "online":
            for checkpoint in self._began_from:
                missing = f"it does not know {checkpoint}, which this began from"
                self._try(missing, self._run.use_artifact, checkpoint)

    def _define_metrics(self) -> None:
        # wandb's own step restarts at 0 when an offline run is resumed; ours does not.
        self._run.define_metric(AXIS)
        for metric in panels.metrics():
            if metric.summary:
                summary = f"{metric.summary},last"
                self._run.define_metric(metric.key, step_metric=AXIS, summary=summary)
        self._run.define_metric("*", step_metric=AXIS)

    def _keep(self, artifact: Artifact) -> None:
        online = self._arguments["mode"] == "online"
        if self._artifacts == "always" or (self._artifacts == "online" and online):
            lost = f"{artifact.folder} is not kept as an artifact"
            self._try(lost, self._upload, artifact)

    def _upload(self, artifact: Artifact) -> None:
        import wandb

        name = artifact_name(self._arguments["id"], artifact.kind)
        config = self._arguments["config"]
        about = {key: config[key] for key in _ABOUT if key in config}
        kept = wandb.Artifact(name, artifact.kind, metadata=about | {"step": artifact.step})
        kept.add_dir(str(artifact.folder))  # copied: the run may soon prune what is there
        self._run.log_artifact(kept, aliases=["latest", step_alias(artifact.step)])

    def _try(self, otherwise: str, do: Callable[..., Any], *arguments: Any) -> None:
        """An artifact that cannot be kept costs nothing but itself."""
        try:
            do(*arguments)
        except Exception as error:
            _log.warning("%s: %s: %s", self._title, otherwise, one_line(error))

    @property
    def _folder(self) -> Path:
        return Path(self._arguments["dir"]) / "wandb"

    # --- the end ----------------------------------------------------------------------------

    def _advice(self) -> str:
        return f"; upload what wandb has with: wandb sync {self._folder / '*'}"

    def _give_up(self) -> None:
        _stop_service()


def _view(record: dict[str, Any]) -> dict[str, Any]:
    """A record as wandb is to draw it: over our step, without what this component does not have."""
    view = {key: value for key, value in record.items() if key != "step" and value is not None}
    return view | {"optimizer_step": record["step"]}


def _stop_service() -> None:
    """End the process wandb works in (a child named wandb-core; found on Linux only).

    Otherwise wandb waits for it when the interpreter exits: 90 s with 0.31.0 and a server that
    accepts connections and never answers.
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent ..; the name may hold spaces and brackets
            pid, _, rest = stat.read_text().partition(" (")
            name, _, rest = rest.rpartition(") ")
            if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                os.kill(int(pid), signal.SIGTERM)
