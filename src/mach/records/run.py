"""What did one run leave: its config, its result, its logs, what happened to its components?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mach import runfolder
from mach.config import Config
from mach.config.window import CONSOLIDATED
from mach.configfile import load, unknown_keys
from mach.errors import ConfigError
from mach.records.log import Log, read_log
from mach.records.notes import Notes
from mach.report.jsonl import parse

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where it is there: ten times as fast, and a sweep has a hundred configs."""


@dataclass(frozen=True)
class Event:
    """A line of `events.jsonl`: what happened to a component."""

    time_s: float
    """Seconds since 1970."""
    component: int
    kind: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """A run folder as far as it can be read."""

    folder: Path
    values: dict[str, Any]
    """The config as the file has it, nested; empty where there is none. Of a run of another version
    it may lack keys or have others."""
    result: dict[str, Any] | None
    """Content of `result.json`; None where there is none, or none that can be read."""
    notes: Notes

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The config by dotted keys, as in `model.width`."""
        return runfolder.flat(self.values)

    @cached_property
    def config(self) -> Config | None:
        """The config as this version of mach understands it; None where it does not. Takes 0.1 s
        and more: not for every run of a sweep."""
        try:
            return load(self.folder / runfolder.CONFIG)
        except ConfigError:
            return None

    @cached_property
    def components(self) -> int:
        """K: from the config or the result; else as many as have a log."""
        for known in (self.values, self.result or {}):
            count = known.get("components")
            if isinstance(count, int) and count > 0:
                return count
        return max(_logged(self.folder), default=-1) + 1

    def log(self, component: int, most: int | None = None) -> Log:
        """The log of one component; `most` as in `read_log`."""
        path = self.folder / f"component-{component}.jsonl"
        return read_log(path, component, self.notes, most)

    @cached_property
    def events(self) -> list[Event]:
        """Deaths and returns of a supervised run, in their order."""
        path = self.folder / runfolder.EVENTS
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            return []  # most runs have none
        found = [_event(parse(line)) for line in lines]
        self.notes.add(path, "event that is half-written or damaged; left out", found.count(None))
        return [event for event in found if event is not None]

    @cached_property
    def consolidated(self) -> list[dict[str, Any]]:
        """What `mach consolidate` has made, as rows like those of the result's windows."""
        rows = []
        for path in sorted((self.folder / CONSOLIDATED).glob(f"[!.]*/{CONSOLIDATED}.json")):
            try:
                kept = json.loads(path.read_bytes())
                row = {key: kept[key] for key in ("first", "last", "params", "flops")}
                rows.append({**row, **kept["metrics"]})
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self.notes.add(path, f"cannot be read as a window: {_first_line(error)}")
        return rows


def read_run(folder: Path, notes: Notes | None = None) -> RunRecord:
    """Read a run folder; logs and events are read when they are asked for.

    Args:
        notes: where problems are counted; None takes new ones.
    """
    notes = Notes() if notes is None else notes
    values = _config(folder / runfolder.CONFIG, notes)
    result = _result(folder / runfolder.RESULT, notes)
    record = RunRecord(folder, values, result, notes)
    if not _logged(folder):
        notes.add(folder, "an empty run: it has logged nothing")
    return record


def _config(path: Path, notes: Notes) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        notes.add(path, "no config")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.add(path, f"cannot be read as a config: {_first_line(error)}")
        return {}
    if not isinstance(values, dict):
        notes.add(path, "cannot be read as a config: expected keys and values")
        return {}
    values = {str(key): value for key, value in values.items()}
    for key in unknown_keys(values):
        notes.add(path, f"written by another version of mach: {key} is not known to this one")
    return values


def _result(path: Path, notes: Notes) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        notes.add(path, "no result: the run has not ended, or did not come to its end")
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.add(path, f"cannot be read as a result: {_first_line(error)}")
        return None
    if not isinstance(result, dict):
        notes.add(path, "cannot be read as a result: expected keys and values")
        return None
    for key, names in _ROWS.items():
        rows = result.get(key, [])
        rows = rows if isinstance(rows, list) else [rows]
        whole = [row for row in rows if _has_numbers(row, names)]
        notes.add(
            path, f"row of {key} without {' and '.join(names)}; left out", len(rows) - len(whole)
        )
        result[key] = whole
    return result


_ROWS = {
    "chain": ("exit",),
    "windows": ("first", "last"),
    "staleness_steps": ("component",),
    "busy_fraction": ("component",),
}


def _has_numbers(row: Any, names: tuple[str, ...]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), int) for name in names)


def _logged(folder: Path) -> list[int]:
    """Components that have a log."""
    names = (re.fullmatch(r"component-(\d+)\.jsonl", p.name) for p in folder.glob("component-*"))
    return sorted(int(name[1]) for name in names if name)


def _event(line: Mapping[str, Any] | None) -> Event | None:
    try:
        assert line is not None
        return Event(
            float(line["time"]), int(line["component"]), str(line["event"]), str(line["text"])
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
