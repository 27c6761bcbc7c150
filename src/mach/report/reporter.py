"""Where does a logged record go?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from mach.config import Config
from mach.configfile import shown, shown_yaml
from mach.report import wandb_mode
from mach.report.artifact import Artifact
from mach.report.companion import Companion
from mach.report.jsonl import JsonLines
from mach.report.lineage import artifact_of, group_of


class Sink(Protocol):
    """One place that records go to."""

    def log(self, record: dict[str, Any]) -> None: ...

    def close(self, failed: bool = False) -> None: ...


@runtime_checkable
class Archive(Protocol):
    """A sink that keeps files, too."""

    def saved(self, artifact: Artifact) -> None: ...


class Reporter:
    """Hands every record to all sinks, in their order.

    Use it in a `with`: an exception that passes through marks the run as failed.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def log(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(record)

    def saved(self, artifact: Artifact) -> None:
        """Hand files to the sinks that keep files. From any thread."""
        for sink in self._sinks:
            if isinstance(sink, Archive):
                sink.saved(artifact)

    def close(self, failed: bool = False) -> None:
        with ExitStack() as stack:  # one that cannot close does not keep the others open
            for sink in reversed(self._sinks):
                stack.callback(sink.close, failed)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)


def build(
    config: Config,
    run_dir: Path,
    component: int,
    resume_step: int,
    began_from: Path | None = None,
) -> Reporter:
    """The reporter of one component.

    Args:
        run_dir: run folder; its name is the wandb group, unless `report.group` is another.
        resume_step: optimizer step the run goes on from, 0 for a new run.
        began_from: checkpoint it goes on from, as `<run>/checkpoints/step-<n>`.
    """
    report = config.report
    # The file comes first: a record is safe before anything else is done with it.
    log = run_dir / f"component-{component}.jsonl"
    sinks: list[Sink] = [JsonLines(log, resume_step)]
    slow: dict[str, dict[str, Any]] = {}
    mode = wandb_mode.resolve(report.wandb, os.environ, wandb_mode.home())
    if mode != "off":
        slow["wandb"] = {
            "mode": mode,
            "project": report.project,
            "group": group_of(config, run_dir),
            "member": component,
            "config": shown(config) | {"component": component, "cut": _cut(config)},
            "run_dir": str(run_dir),
            "resume": resume_step > 0,
            "tags": report.tags,
            "artifacts": report.artifacts,
            "began_from": [] if began_from is None else [artifact_of(began_from, component)],
            "trainer": os.getpid(),
            "alone": True,
        }
    if report.tensorboard:
        slow["tensorboard"] = {
            "folder": str(run_dir / "tensorboard"),
            "component": component,
            "config": shown_yaml(config),
        }
    if slow:
        sinks.append(Companion(log, slow, report.finish_timeout_s))
    return Reporter(sinks)


def _cut(config: Config) -> list[str] | None:
    """First and last block of each component; None where that is yet to be found."""
    if not config.model.settled:
        return None
    return [f"{blocks.start}..{blocks.stop - 1}" for blocks in config.bodies()]
