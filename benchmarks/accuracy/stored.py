"""What is kept of the runs that have ended, and how does an interrupted table go on?

One line of JSON for each run, written when it ends. A run that was interrupted has none, and is
made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grid import Cell, without_students

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Every row; none where there is no file. A line that was not finished is no row."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def append(path: Path, row: Row) -> None:
    """Keep a row, whatever happens next."""
    with path.open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.truncate(_end_of_last_line(path))
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def cell_of(row: Row) -> Cell:
    """The cell that a row is of."""
    values = {key: row[key] for key in Cell.__dataclass_fields__}
    return Cell(**{**values, "changes": tuple(row["changes"])})


def key_of(cell: Cell, steps: int | None) -> str:
    """Two runs with the same one are the same run."""
    return json.dumps([asdict(cell), steps], sort_keys=True)


def missing(cells: Iterable[Cell], rows: Sequence[Row], steps: int | None = None) -> list[Cell]:
    """Cells that are yet to be run, each once, in their order.

    A chain that was trained with students need not be trained without them.
    """
    known = {
        key_of(cell, row["cut_to"])
        for row in rows
        for cell in (cell_of(row), *without_students([cell_of(row)]))
    }
    wanted = {key_of(cell, steps): cell for cell in cells}
    return [cell for key, cell in wanted.items() if key not in known]


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _end_of_last_line(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
