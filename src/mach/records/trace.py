"""What do the traces of a run's components say, on one clock?

Every component stamps its slices with its own idea of the time. Components of one machine share a
monotonic clock, so theirs are brought onto the first one's idea exactly; machines among each other
agree as well as their clocks do.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.records.notes import Notes
from mach.report.jsonl import parse

# N slices

_ONE_CLOCK_NS = 60 * 10**9
"""Beginnings of a machine's clock that are further apart are of two: it has been started again."""


@dataclass(frozen=True)
class Slices:
    """What one component did, in the order of its file."""

    component: int
    names: list[str]
    """What slices are called: forward, wait child .."""
    name: NDArray[np.int64]
    """[N], index into `names`."""
    start_s: NDArray[np.float64]
    """[N], since the first slice of any component."""
    duration_s: NDArray[np.float64]
    """[N]."""

    def waits(self) -> NDArray[np.bool_]:
        """Which slices are waits, [N]."""
        wait = np.array([name.startswith("wait") for name in self.names], dtype=bool)
        return wait[self.name] if len(self.name) else np.zeros(0, dtype=bool)


def traces_of(folder: Path) -> list[Path]:
    """The trace files of a run, component 0 first."""
    found = {
        int(name[1]): path
        for path in folder.glob("trace-*.json")
        if (name := re.fullmatch(r"trace-(\d+)\.json", path.name))
    }
    return [found[k] for k in sorted(found)]


def read_traces(folder: Path, notes: Notes) -> list[Slices]:
    """The slices of every component that has a trace."""
    tables = [_table(events) for events in _aligned(folder, notes)]
    origin_s = min((min(t.start_s) for t in tables if t.start_s), default=0.0)
    return [
        Slices(
            table.component,
            list(table.names),
            np.array(table.name, dtype=np.int64),
            np.array(table.start_s) - origin_s,
            np.array(table.duration_s),
        )
        for table in tables
    ]


def export(folder: Path, path: Path, notes: Notes) -> int:
    """Merge a run's traces, clocks aligned, into one file that Perfetto opens. Returns its number
    of events; where there is no trace, no file is written."""
    events = [event for component in _aligned(folder, notes) for event in component]
    if events:
        with path.open("w") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            file.write(",\n".join(json.dumps(event, separators=(",", ":")) for event in events))
            file.write("\n]}\n")
    return len(events)


def _aligned(folder: Path, notes: Notes) -> Iterator[list[dict[str, Any]]]:
    """The events of one component after the other, their `ts` on one clock."""
    epochs: defaultdict[str, list[int]] = defaultdict(list)
    for path in traces_of(folder):
        yield list(_events(path, epochs, notes))


def _events(path: Path, epochs: Mapping[str, list[int]], notes: Notes) -> Iterator[dict[str, Any]]:
    """
    Args:
        epochs: by host, when the clocks began that its components are put on. It has a new one
            when it is started again.
    """
    shift_us, damaged = 0.0, 0
    try:
        with path.open("rb") as file:
            for line in file:
                text = line.strip(b" \r\n,[]")
                if not text:
                    continue
                event = parse(text)
                if event is None or not _is_event(event):
                    damaged += 1
                    continue
                if event["name"] == "clock":  # of the life whose slices follow
                    known, epoch_ns = epochs[event["args"]["host"]], event["args"]["epoch_ns"]
                    same = (ns for ns in known if abs(ns - epoch_ns) < _ONE_CLOCK_NS)
                    began_ns = next(same, epoch_ns)
                    known.append(began_ns)
                    shift_us = (began_ns - epoch_ns) / 1e3
                if event["ph"] == "X":
                    event["ts"] += shift_us
                yield event
    except OSError as error:
        notes.add(path, f"cannot be read: {error.strerror or error}")
    notes.add(path, "slice that is half-written or damaged; left out", damaged)


def _is_event(event: dict[str, Any]) -> bool:
    try:
        whole = isinstance(event["name"], str) and isinstance(event["pid"], int)
        if event["name"] == "clock":
            return (
                whole
                and isinstance(event["args"]["host"] + "", str)
                and event["args"]["epoch_ns"] >= 0
            )
        if event["ph"] == "X":
            return whole and event["ts"] >= 0 and event["dur"] >= 0
        return whole and event["ph"] == "M"
    except (KeyError, TypeError):
        return False


class _Table:
    def __init__(self) -> None:
        self.component = 0
        self.names: dict[str, int] = {}
        self.name, self.start_s, self.duration_s = array("q"), array("d"), array("d")


def _table(events: list[dict[str, Any]]) -> _Table:
    table = _Table()
    for event in events:
        table.component = event["pid"]
        if event["ph"] == "X":
            table.name.append(table.names.setdefault(event["name"], len(table.names)))
            table.start_s.append(event["ts"] / 1e6)
            table.duration_s.append(event["dur"] / 1e6)
    return table
