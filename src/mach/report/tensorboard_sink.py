"""How does TensorBoard see a run?

One folder of event files per component, below `<run>/tensorboard`; a component that comes back
writes one file more, and TensorBoard joins them by their steps. Look at them with

    tensorboard --logdir runs/<name>/tensorboard
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mach.report.background import CAPACITY, CLOSE_TIMEOUT_S, BackgroundSink

FLUSH_S = 10
"""Longest time until a line is in the file."""


class TensorBoardSink(BackgroundSink):
    """The event files of one component.

    Args:
        folder: `<run>/tensorboard`; the files go to a folder per component in it.
        component: k.
        config: what the run was started with, shown as text.
    """

    def __init__(
        self,
        folder: Path | str,
        component: int,
        config: str,
        capacity: int = CAPACITY,
        timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._folder = Path(folder) / f"component-{component}"
        self._config = config
        super().__init__(f"tensorboard: component {component}", capacity, timeout_s)

    # --- the sink thread --------------------------------------------------------------------

    def _open(self) -> None:
        # TensorBoard's own writer: torch.utils.tensorboard and tensorboardX import torch as well.
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder), flush_secs=FLUSH_S)
        text = text_pb("config", f"```\n{self._config}\n```")
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=text))
        self._event, self._summary = Event, Summary

    def _write(self, record: Any) -> None:
        values = [
            self._summary.Value(tag=key, simple_value=value)
            for key, value in record.items()
            if key not in ("step", "time") and isinstance(value, int | float)
        ]
        summary = self._summary(value=values)
        now = record.get("time", time.time())
        self._writer.add_event(self._event(wall_time=now, step=record["step"], summary=summary))

    def _finish(self, failed: bool) -> None:
        self._writer.close()
