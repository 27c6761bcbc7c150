"""What does `sweep.csv` say?

One row for each job that has ended, well or not; a job that is run again replaces its row. The file
is whole at any time: each row is added under the sweep's lock, to a copy that takes the file's
place. These columns are a contract; others may be added. What does not apply is empty.

    job               number; the name of the job's folder
    <override> ..     one for each key that a job of the sweep overrides, as it was written
    exit_code         as `mach train` would have ended: 0 done, 1 went wrong while running,
                      2 refused, 130 and 143 stopped
    error             of a job that did not end well: the first line of what it said
    accuracy          of the top exit on the test split, a fraction; bits_per_byte or
                      bits_per_token instead for a language model
    loss              of the top exit; what sweepers that search make small
    exit_<k>_<value>  accuracy (or bits per byte) and loss of every exit, k = 0 nearest the input
    staleness_<k>     mean staleness of component k, in optimizer steps
    samples_per_s     while training
    wall_s            of the training, with the evaluations on its way
    job_s             of the whole job, start-up and final evaluation included

So what stands between `job` and `exit_code` are the overrides.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mach.errors import RunFolderError
from mach.runfolder import write_atomically
from mach.sweepfolder import locked

TABLE = "sweep.csv"
JOB, EXIT_CODE, ERROR, JOB_S = "job", "exit_code", "error", "job_s"
METRICS = ("accuracy", "bits_per_byte", "bits_per_token")


@dataclass(frozen=True)
class Row:
    """How one job ended."""

    job: str
    overrides: Mapping[str, str]
    exit_code: int
    error: str = ""
    results: Mapping[str, float | None] = field(default_factory=dict)
    job_s: float | None = None


def results_of(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns of a job's results, from its `result.json`; of another version, those it has."""
    chain, stale = result.get("chain", []), result.get("staleness_steps", [])
    kinds = (*METRICS, "loss")
    top = chain[-1] if chain else {}
    columns: dict[str, float | None] = {kind: top[kind] for kind in kinds if kind in top}
    for row in chain:
        columns |= {f"exit_{row['exit']}_{kind}": row[kind] for kind in kinds if kind in row}
    columns |= {f"staleness_{row['component']}": row.get("mean") for row in stale}
    return columns | {key: result.get(key) for key in ("samples_per_s", "wall_s")}


def write(sweep_dir: Path, row: Row) -> None:
    """Add a job's row, or put it in the place of the one it had.

    Raises:
        RunFolderError: the file cannot be read as a sweep's, or cannot be written.
    """
    path = sweep_dir / TABLE
    new = {
        JOB: row.job,
        **row.overrides,
        EXIT_CODE: str(row.exit_code),
        ERROR: row.error,
        **{key: "" if value is None else repr(value) for key, value in row.results.items()},
        JOB_S: "" if row.job_s is None else f"{row.job_s:.3f}",
    }
    with locked(sweep_dir):
        columns, rows = read(path)
        keys = [key for key in overrides_in(columns) if key not in row.overrides]
        keys += row.overrides
        others = {*columns, *new} - {*keys, JOB, EXIT_CODE, ERROR}
        header = [JOB, *sorted(keys, key=_order(columns, keys)), EXIT_CODE, ERROR]
        header += sorted(others, key=_place)
        jobs = [old[JOB] for old in rows]
        place = jobs.index(row.job) if row.job in jobs else len(rows)
        rows[place : place + 1] = [new]
        try:
            write_atomically(path, _to_csv(header, rows))
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror or error}") from error


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows; none of either where there is no file yet.

    Raises:
        RunFolderError: it is not the table of a sweep.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = list(reader.fieldnames or [])
            rows = [{key: row[key] for key in columns} for row in reader]
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if not {JOB, EXIT_CODE} <= set(columns):
        raise RunFolderError(
            f"{path}: expected the table of a sweep, with the columns {JOB} and {EXIT_CODE}; got "
            f"{', '.join(columns) or 'nothing'}. Move it away: it is written anew"
        )
    return columns, rows


def failed(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows of the jobs that did not end well."""
    return [row for row in rows if row[EXIT_CODE] != "0"]


def has_done(sweep_dir: Path, job: str) -> bool:
    """Whether the table says that this job ended well."""
    _, rows = read(sweep_dir / TABLE)
    return any(row[JOB] == job and row[EXIT_CODE] == "0" for row in rows)


def overrides_in(columns: list[str]) -> list[str]:
    """Those of the columns that are overrides."""
    return columns[columns.index(JOB) + 1 : columns.index(EXIT_CODE)] if columns else []


def _order(columns: list[str], keys: list[str]) -> Any:
    """Those that have a place keep it."""
    places = {key: n for n, key in enumerate([*columns, *(k for k in keys if k not in columns)])}
    return places.__getitem__


_PLACES = (
    *METRICS,
    "loss",
    r"exit_(\d+)_.*",
    r"staleness_(\d+)",
    "samples_per_s",
    "wall_s",
    JOB_S,
)


def _place(column: str) -> tuple[int, int, str]:
    """Where a column of results stands; those of another version are last."""
    for n, pattern in enumerate(_PLACES):
        found = re.fullmatch(pattern, column)
        if found:
            return n, int(found[1]) if found.groups() else 0, column
    return len(_PLACES), 0, column


def _to_csv(header: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
