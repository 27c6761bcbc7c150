"""Where did a component's time and messages go?"""

from __future__ import annotations

import time
from typing import Any

from mach.trainer.step import Worker


class Account:
    """Where a component's time and messages went, over the run and since the last line."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._started = self._marked = time.perf_counter()
        self._mark = self._counters()
        self._first = dict(self._mark)
        self._samples: int | None = None

    @property
    def wall_s(self) -> float:
        """Seconds since the component began."""
        return time.perf_counter() - self._started

    @property
    def busy_fraction(self) -> float:
        """Part of the run's time that was not spent waiting for a neighbour."""
        now = self._counters()
        waited = sum(now[key] - self._first[key] for key in ("wait_child_s", "wait_parent_s"))
        return 1 - waited / self.wall_s

    def interval(self, samples: int) -> dict[str, Any]:
        """What happened since the last call, with `samples` seen so far."""
        now_s, counters = time.perf_counter(), self._counters()
        elapsed_s = now_s - self._marked
        change = {key: counters[key] - self._mark[key] for key in counters}
        waited_s = change["wait_child_s"] + change["wait_parent_s"]
        totals = self._worker.component.read_totals()
        new_samples = samples - self._samples if self._samples is not None else None
        self._marked, self._mark, self._samples = now_s, counters, samples
        return {
            "time": time.time(),
            "wall_s": now_s - self._started,
            "loss": totals.loss.item() / max(1, totals.backwards),
            "student_loss": totals.student_loss.item() / totals.distillations
            if totals.distillations
            else None,
            **(
                {"predictor_loss": totals.predictor_loss.item() / totals.predictions}
                if totals.predictions
                else {}
            ),
            "staleness_steps": totals.staleness / max(1, totals.backwards),
            "wait_child_ms": change["wait_child_s"] * 1e3,
            "wait_parent_ms": change["wait_parent_s"] * 1e3,
            "wait_data_ms": change["wait_data_s"] * 1e3,
            "busy_fraction": 1 - waited_s / elapsed_s,
            "samples_per_s": new_samples / elapsed_s if new_samples is not None else None,
            "bytes_up": change["bytes_up"],
            "bytes_down": change["bytes_down"],
        }

    def _counters(self) -> dict[str, float]:
        channels = self._worker.channels
        child = (channels.from_child, channels.to_child)
        parent = (channels.from_parent, channels.to_parent)
        return {
            "wait_child_s": sum(end.wait_s for end in child if end is not None),
            "wait_parent_s": sum(end.wait_s for end in parent if end is not None),
            "wait_data_s": self._worker.wait_data_s,
            "bytes_up": channels.to_parent.bytes_sent if channels.to_parent else 0,
            "bytes_down": channels.to_child.bytes_sent if channels.to_child else 0,
        }
