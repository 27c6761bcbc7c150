"""How far is a run? Read from what it writes, while it writes it, in memory that does not grow."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mach import runfolder
from mach.report.curve import Curve
from mach.report.jsonl import Follower

SILENT_S = 60.0
"""A component that has logged nothing for so long, and for SILENT_LINES times as long as it took
for a line before, may hang."""
SILENT_LINES = 5
_RECENT = 16
_UP = {"back": "training", "finished": "done"}
_DOWN = {"died": "down", "hung": "down", "exhausted": "gone", "refused": "refused"}


class ComponentState:
    """What the log of one component says by now."""

    def __init__(self, log: Path, tail: int | None = None) -> None:
        """
        Args:
            log: its file.
            tail: take of what is there by now only the last so many bytes; None takes all.
        """
        self.latest: dict[str, Any] = {}
        """The last value of every key."""
        self.loss = Curve()
        self.deaths = 0
        self.event: str | None = None
        """What its launcher last said of it: down, gone, refused, training or done."""
        self.event_s = 0.0
        """When, in seconds since 1970."""
        self._follower = Follower(log, 0 if tail is None else _place(log, tail))
        self._times_read = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    @property
    def damaged(self) -> int:
        """Lines that could not be read."""
        return self._follower.skipped

    @property
    def step(self) -> int:
        return _whole(self.latest.get("step"))

    def read(self, begun_s: float = 0.0) -> None:
        """Take in what is new.

        Args:
            begun_s: what was logged before says nothing of the pace.

        Raises:
            OSError: the log is there and cannot be read.
        """
        for record in self._follower.stream():
            if self._follower.rewritten != self._times_read:  # it went on from a checkpoint
                self._times_read = self._follower.rewritten
                self.latest, self.loss = {}, Curve()
                self._recent.clear()
            self._take(record)
        while self._recent and self._recent[0][0] < begun_s:
            self._recent.popleft()

    def _take(self, record: Mapping[str, Any]) -> None:
        # An evaluation's line does not have what a step's line has.
        self.latest |= {key: value for key, value in record.items() if value is not None}
        loss, when = number(record.get("loss")), number(record.get("time"))
        if loss is not None:
            self.loss.add(loss)
        if when is not None:
            self._recent.append((when, self.step))

    def seconds_per_step(self) -> float | None:
        """Over the last lines; None where they do not tell."""
        if len(self._recent) < 2:
            return None
        (began, first), (now, last) = self._recent[0], self._recent[-1]
        return (now - began) / (last - first) if last > first and now > began else None

    def silent_s(self, now: float) -> float | None:
        """Seconds since its last line, where that is longer than it should be."""
        if not self._recent:
            return None
        (began, _), (last, _) = self._recent[0], self._recent[-1]
        usual_s = (last - began) / max(1, len(self._recent) - 1)
        silent_s = now - last
        return silent_s if silent_s > max(SILENT_S, SILENT_LINES * usual_s) else None


class RunState:
    """What a run folder says by now of all components.

    Args:
        run_dir: run folder with, sooner or later, a `component-<k>.jsonl` for each component.
        components: number of components.
        steps: optimizer steps of the whole run; None: not known.
        tail: as for a component.
    """

    def __init__(
        self, run_dir: Path, components: int, steps: int | None, tail: int | None = None
    ) -> None:
        self.run_dir, self.steps = run_dir, steps
        self.components = [
            ComponentState(run_dir / f"component-{k}.jsonl", tail) for k in range(components)
        ]
        self.events: deque[str] = deque(maxlen=3)
        """The last things its launcher said."""
        self.stopped = False
        """Whether its launcher has ended without a result, and nobody trains any more."""
        self.begun_s = 0.0
        """When the launcher that trains here now began: what is older is of one before it."""
        self._journal = Follower(run_dir / runfolder.EVENTS)

    def look(self) -> None:
        """Take in what is new.

        Raises:
            OSError: something is there and cannot be read.
        """
        for component in self.components:
            component.read(self.begun_s)
        for line in self._journal.stream():
            self._hear(line)

    def _hear(self, line: Mapping[str, Any]) -> None:
        k, kind = line.get("component"), line.get("event")
        self.events.append(str(line.get("text", "")))
        if not isinstance(k, int) or not 0 <= k < len(self.components):
            return
        one = self.components[k]
        one.deaths += kind == "died"
        if kind in _UP or kind in _DOWN:
            one.event, one.event_s = (_UP | _DOWN)[kind], number(line.get("time")) or 0.0

    def state(self, k: int, now: float | None = None) -> str:
        """One word: starting, training, silent, stopped, down, gone, refused or done."""
        one = self.components[k]
        if self.steps is not None and one.step >= self.steps:
            return "done"
        logged_s = number(one.latest.get("time")) or 0.0
        if one.event in _DOWN.values() and one.event_s >= max(logged_s, self.begun_s):
            return str(one.event)
        if self.stopped:
            return "stopped"
        if not one.latest or logged_s < self.begun_s:
            return "starting"
        now = time.time() if now is None else now
        return "training" if one.silent_s(now) is None else "silent"

    def eta_s(self) -> float | None:
        """Seconds until all have taken all steps, at the pace of the last lines."""
        if self.steps is None:
            return None
        left = [
            (self.steps - one.step) * pace
            for one in self.components
            if (pace := one.seconds_per_step()) is not None
        ]
        return max(left) if len(left) == len(self.components) else None

    @property
    def step(self) -> int:
        """Steps that all components have behind them."""
        return min((one.step for one in self.components), default=0)

    @property
    def damaged(self) -> int:
        return sum(one.damaged for one in self.components)


def _place(log: Path, tail: int) -> int:
    """Where the last `tail` bytes of a log begin, or a line in them."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= tail:
                return 0
            file.seek(size - tail)
            file.readline()  # the rest of a line
            return file.tell()
    except OSError:
        return 0


def number(value: Any) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: Any) -> int:
    found = number(value)
    return 0 if found is None else int(found)
