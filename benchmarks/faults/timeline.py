"""How fast was a component, where did it pause, when was it back? From its log lines alone.

    # step      1  2  3  4              5  6  7 ..
    # time   ---+--+--+--+--------------+--+--+--
    #                    ^ death        ^ back: alive, and all its links are up

Progress is read between two steps as on a straight line, so that a window of seconds need not begin
or end with one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Line:
    """What a component logged after an optimizer step."""

    time_s: float
    """Of the wall clock, which all processes of a machine share."""
    step: int
    life: int = 0
    links_up: int = 0
    age_s: float = 0.0
    imagined: int = 0
    alone: int = 0
    loss: float | None = None

    @staticmethod
    def of(record: Mapping[str, Any]) -> Line:
        """From a line of component-<k>.jsonl; schedules other than free count fewer things."""
        keys = ("life", "links_up", "age_s", "imagined", "alone", "loss")
        return Line(record["time"], record["step"], **{k: record[k] for k in keys if k in record})


Lines = Sequence[Line]


@dataclass(frozen=True)
class Window:
    """A stretch of time."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


def training_since(logs: Sequence[Lines]) -> float | None:
    """When the last component took its first step; None while one has not."""
    if not all(logs):
        return None
    return max(lines[0].time_s for lines in logs)


def reached(lines: Lines, step: int) -> float | None:
    """When a component took this step for the first time; None while it has not."""
    return next((line.time_s for line in lines if line.step >= step), None)


def death(lines: Lines) -> Line | None:
    """The last sign of the first life, once there is a second; None while there is none."""
    if not lines or lines[-1].life == lines[0].life:
        return None
    return [line for line in lines if line.life == lines[0].life][-1]


def back(lines: Lines, links: int) -> Line | None:
    """The first line of a later life with all links up; None while there is none."""
    later = (line for line in lines if line.life > lines[0].life)
    return next((line for line in later if line.links_up == links), None)


def rate(lines: Lines, window: Window) -> float | None:
    """Steps per second in a window; None where it is shorter than half a second.

    Steps are counted by their lines, so that one that is taken again after a restart counts again.
    """
    if not lines or window.length_s < 0.5:
        return None
    return (_progress(lines, window.end_s) - _progress(lines, window.begin_s)) / window.length_s


def longest_pause_ms(lines: Lines, window: Window) -> float | None:
    """Longest time between two steps, of which at least a part lies in the window."""
    pauses = [
        after.time_s - before.time_s
        for before, after in pairwise(lines)
        if after.time_s > window.begin_s and before.time_s < window.end_s
    ]
    return max(pauses) * 1e3 if pauses else None


def share(lines: Lines, window: Window, what: str, accumulate: int) -> float:
    """Part of the microbatches in a window that were `imagined` or trained `alone`."""
    inside = [line for line in lines if window.begin_s <= line.time_s <= window.end_s]
    if len(inside) < 2 or inside[0].life != inside[-1].life:
        return 0.0
    count = getattr(inside[-1], what) - getattr(inside[0], what)
    return float(count / ((len(inside) - 1) * accumulate))


def _progress(lines: Lines, time_s: float) -> float:
    """Lines up to a time, and the part of the next; none after the last, however long ago."""
    place = bisect_right(lines, time_s, key=lambda line: line.time_s) - 1
    if place < 0 or place + 1 == len(lines):
        return float(place)
    before, after = lines[place].time_s, lines[place + 1].time_s
    return place + (time_s - before) / (after - before)


# --- what is kept of a run ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretches:
    """Before, while and after something is wrong."""

    before: Window
    during: Window
    after: Window

    @staticmethod
    def around(during: Window, before_s: float, after_s: float) -> Stretches:
        """So many seconds before and after it."""
        return Stretches(
            Window(during.begin_s - before_s, during.begin_s),
            during,
            Window(during.end_s, during.end_s + after_s),
        )

    def measure(self, lines: Lines) -> dict[str, float | None]:
        """Steps per second in each, and the longest pause while something is wrong."""
        return {
            "before": rate(lines, self.before),
            "during": rate(lines, self.during),
            "after": rate(lines, self.after),
            "pause_ms": longest_pause_ms(lines, self.during),
        }
