"""In what do runs differ: in their configs, and in their results?

Few runs stand side by side, a column each; more than that have a row each, with what differs in
their configs in columns, or in a table of its own where the terminal is narrow. Of the configs what
differs is shown, of the results all; beside a result its difference to that of the first run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mach import sweeptable
from mach.errors import RunFolderError
from mach.records import Notes, RunRecord, find_runs, read_run

SIDE_BY_SIDE = 4
"""Most runs that have a column each."""
_NOT_COMPARED = ("out", "report.group")
"""Names of a run, which always differ: a sweep gives each job a group of its own."""
_ENDLESS = 100_000
_NONE = "-"
_MISSING = object()


def gather(paths: Iterable[Path], notes: Notes) -> list[RunRecord]:
    """The runs at and below these paths, each once, in this order.

    Args:
        notes: is told of paths without runs, of sweeps' jobs that failed, and of all that cannot be
            read.
    """
    found: dict[Path, RunRecord] = {}
    for path in paths:
        _note_jobs(path, notes)
        try:
            folders = find_runs(path, notes)
        except RunFolderError as error:
            notes.add(path, f"skipped: {str(error).removeprefix(f'{path}: ')}")
            continue
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = read_run(folder, notes)
    return list(found.values())


def show(runs: Sequence[RunRecord], console: Console) -> None:
    """Print how these runs differ."""
    config, results = config_lines(runs), result_lines(runs)
    if len(runs) <= SIDE_BY_SIDE:
        _print_columns(runs, config, results, console)
    else:
        _print_rows(runs, config, results, console)
    if not config:
        console.print("The configs are equal.")


def config_lines(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Keys of the config in which the runs differ, with what each has."""
    keys = dict.fromkeys(key for run in runs for key in run.flat if key not in _NOT_COMPARED)
    lines = {key: [run.flat.get(key, _MISSING) for run in runs] for key in keys}
    return {
        key: [_NONE if value is _MISSING else str(value) for value in values]
        for key, values in lines.items()
        if any(value != values[0] for value in values)
    }


def result_lines(runs: Sequence[RunRecord]) -> dict[str, list[float]]:
    """Results by name, with the number of each run; NaN where it has none."""
    numbers = [_numbers(run.result or {}) for run in runs]
    names = dict.fromkeys(name for one in numbers for name in one)
    return {name: [one.get(name, math.nan) for one in numbers] for name in names}


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    rows: dict[str, Any] = dict(sweeptable.results_of(result))
    for window in result.get("windows", []):
        name = f"window_{window['first']}..{window['last']}"
        rows |= {f"{name}_{kind}": window.get(kind) for kind in sweeptable.METRICS}
    chain = result.get("chain", [])
    rows |= {kind: chain[-1].get(kind) for kind in ("params", "flops") if chain}
    for busy in result.get("busy_fraction", []):
        rows[f"busy_{busy['component']}"] = busy.get("value")
    rows["restarts"] = result.get("restarts")
    return {
        name: float(value)
        for name, value in rows.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _note_jobs(path: Path, notes: Notes) -> None:
    """Say which jobs of a sweep failed, and which are told of more than once."""
    try:
        _, rows = sweeptable.read(path / sweeptable.TABLE)
    except RunFolderError as error:
        notes.add(path, f"skipped: {error}")
        return
    for row in sweeptable.failed(rows):
        job = path / row[sweeptable.JOB]
        notes.add(job, f"this job failed: {row.get(sweeptable.ERROR) or 'it does not say why'}")
    for name, count in Counter(row[sweeptable.JOB] for row in rows).items():
        if count > 1:
            told = f"{count} results for job {name} in {sweeptable.TABLE}"
            notes.add(path, f"{told}; its own folder's is taken")


# --- printing ------------------------------------------------------------------------------


def _print_columns(
    runs: Sequence[RunRecord],
    config: Mapping[str, list[str]],
    results: Mapping[str, list[float]],
    console: Console,
) -> None:
    table = Table(title_justify="left")
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(Text(str(run.folder)), justify="right", overflow="fold")
    for key, values in config.items():
        table.add_row(Text(key), *(Text(value) for value in values))
    table.add_section()
    for name, numbers in results.items():
        table.add_row(name, *_beside_the_first(name, numbers))
    console.print(table)


def _print_rows(
    runs: Sequence[RunRecord],
    config: Mapping[str, list[str]],
    results: Mapping[str, list[float]],
    console: Console,
) -> None:
    shown = [
        name for name in (*sweeptable.METRICS, "loss", "samples_per_s", "wall_s") if name in results
    ]
    found = {name: _beside_the_first(name, results[name]) for name in shown}
    table = _rows(runs, {**config, **found})
    unbounded = console.options.update(width=_ENDLESS)  # what it wants, not what it gets
    if config and Measurement.get(console, unbounded, table).minimum > console.width:
        words = [
            "  ".join(f"{key}={values[n]}" for key, values in config.items())
            for n in range(len(runs))
        ]
        console.print(_rows(runs, {"config": words}, justify="left"))
        table = _rows(runs, found)
    console.print(table)


def _rows(
    runs: Sequence[RunRecord],
    columns: Mapping[str, Sequence[str]],
    justify: Literal["left", "right"] = "right",
) -> Table:
    table = Table()
    table.add_column("run", overflow="fold")
    for key in columns:
        table.add_column(Text(key), justify=justify, overflow="fold")
    for n, run in enumerate(runs):
        table.add_row(Text(str(run.folder)), *(Text(column[n]) for column in columns.values()))
    return table


def _beside_the_first(name: str, numbers: Sequence[float]) -> list[str]:
    first = numbers[0]
    return [
        _written(name, number)
        if n == 0 or not math.isfinite(number - first)
        else f"{_written(name, number)} ({_written(name, number - first, sign='+')})"
        for n, number in enumerate(numbers)
    ]


def _written(name: str, number: float, sign: str = "") -> str:
    if not math.isfinite(number):
        return _NONE
    if name.endswith("accuracy"):  # of two percentages the difference is in points
        return f"{100 * number:{sign}.2f}" + ("" if sign else " %")
    if number == round(number):
        return f"{number:{sign},.0f}"
    return f"{number:{sign},.1f}" if name.endswith("_s") else f"{number:{sign}.4f}"
