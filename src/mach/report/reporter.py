"""Where does a logged record go?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mach.config import Config
from mach.report import wandb_mode
from mach.report.jsonl import JsonLines
from mach.report.wandb_sink import WandbSink


class Sink(Protocol):
    """One place that records go to."""

    def log(self, record: dict[str, Any]) -> None: ...

    def close(self, failed: bool = False) -> None: ...


class Reporter:
    """Hands every record to all sinks, in their order.

    Use it in a `with`: an exception that passes through marks the run as failed.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def log(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(record)

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


def build(config: Config, run_dir: Path, component: int, resume_step: int) -> Reporter:
    """The reporter of one component.

    Args:
        run_dir: run folder; its name is the wandb group.
        resume_step: optimizer step the run goes on from, 0 for a new run.
    """
    # The file comes first: a record is safe before anything else is done with it.
    sinks: list[Sink] = [JsonLines(run_dir / f"component-{component}.jsonl", resume_step)]
    mode = wandb_mode.resolve(config.report.wandb, os.environ, Path.home())
    if mode != "off":
        sinks.append(
            WandbSink(
                mode=mode,
                project=config.report.project,
                group=run_dir.resolve().name,
                component=component,
                config=asdict(config) | {"component": component},
                run_dir=run_dir,
                resume=resume_step > 0,
            )
        )
    return Reporter(sinks)
