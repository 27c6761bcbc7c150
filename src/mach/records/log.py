"""What do the lines of a component's log say, as columns of numbers?

A line as a dict takes kilobytes; a column of float64 takes 8 bytes a line. Lines are read one by
one and never kept.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.records.notes import Notes
from mach.report.jsonl import parse

# N lines

Column = NDArray[np.float64]

DAMAGED = "line that is half-written or damaged; left out"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Log:
    """The log of one component."""

    component: int
    lines: int
    """In the file, the damaged ones too."""
    damaged: int
    columns: dict[str, Column]
    """By key, float64 [N]: one value for each line that was taken; NaN where a line lacks it."""

    def __len__(self) -> int:
        return len(self.columns["step"]) if self.columns else 0

    def column(self, key: str) -> Column:
        """Values of one key, [N]; all NaN where no line has it."""
        found = self.columns.get(key)
        return np.full(len(self), np.nan) if found is None else found

    def curve(self, key: str, over: str = "step") -> tuple[Column, Column]:
        """The lines that have both keys: x and y, equally long."""
        x, y = self.column(over), self.column(key)
        both = np.isfinite(x) & np.isfinite(y)
        return x[both], y[both]

    @property
    def wall_s(self) -> float:
        """Seconds of training behind these lines; each life of a component counts from 0."""
        wall_s = self.column("wall_s")
        told = np.isfinite(wall_s)
        now_s = wall_s[told]
        before_s = np.concatenate([[0.0], now_s[:-1]])[: len(now_s)]
        # The first line of a life has no rate yet; its time may be beyond that of the line above.
        rate = self.columns.get("samples_per_s", wall_s)[told]
        begins = ~np.isfinite(rate) | (now_s < before_s)
        return float(np.sum(now_s - np.where(begins, 0.0, before_s)))

    def last(self, key: str) -> float | None:
        """The last finite value of a key."""
        values = self.column(key)
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def read_log(path: Path, component: int, notes: Notes, most: int | None = None) -> Log:
    """Read a `component-<k>.jsonl`.

    Args:
        notes: is told of damaged lines, and of a file that cannot be read.
        most: take about so many lines, evenly spaced, with the first, the last and all that hold an
            evaluation; the others are only looked at for whether they are whole. None takes all.
    """
    try:
        lines = _count_lines(path)
        stride = 1 if most is None else max(1, math.ceil(lines / most))
        with path.open("rb") as file:
            table, damaged = _read(file, lines, stride)
    except FileNotFoundError:
        notes.add(path, "no such log")
        return Log(component, 0, 0, {})
    except OSError as error:
        notes.add(path, f"cannot be read: {error.strerror or error}")
        return Log(component, 0, 0, {})
    notes.add(path, DAMAGED, damaged)
    if not lines:
        notes.add(path, "an empty log")
    return Log(component, lines, damaged, table.columns())


def _count_lines(path: Path) -> int:
    """A last line without its end counts, too."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def _read(file: Iterator[bytes], lines: int, stride: int) -> tuple[_Table, int]:
    table, damaged, met = _Table(), 0, {True: 0, False: 0}
    for number, line in enumerate(file):
        # Lines of steps by themselves: every second one may be of an evaluation or of salience.
        own = b'"loss"' in line
        taken = met[own] % stride == 0 or number == lines - 1 or b'"eval_' in line
        met[own] += 1
        if not taken:
            damaged += not (line.startswith(b"{") and line.endswith(b"}\n"))
            continue
        record = parse(line)
        if record is None or not isinstance(record.get("step"), int):
            damaged += 1
        else:
            table.append(record)
    return table, damaged


class _Table:
    """Columns that grow line by line; a key may turn up late or be missing."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {}
        self._rows = 0

    def append(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            number = _number(value)
            if number is None:
                continue
            column = self._columns.get(key)
            if column is None:
                column = self._columns[key] = array("d")
            self._fill(column)
            column.append(number)
        self._rows += 1

    def columns(self) -> dict[str, Column]:
        for column in self._columns.values():
            self._fill(column)
        return {key: np.frombuffer(c, dtype=np.float64) for key, c in self._columns.items()}

    def _fill(self, column: array[float]) -> None:
        missing = self._rows - len(column)
        if missing:
            column.extend([math.nan] * missing)


def _number(value: Any) -> float | None:
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return None
    return None
