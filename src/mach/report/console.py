"""What does a person at the terminal see of a run?

While it runs, one line per component, read from the components' logs: the launcher shows them all
on one screen and no component writes to the terminal. At the end, one table.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from mach.report.numbers import fixed, short
from mach.report.state import RunState

_log = logging.getLogger(__name__)

REFRESH_S = 0.25
"""Time between two looks at the logs."""


# --- while it runs --------------------------------------------------------------------------


class Watched(Protocol):
    """What a supervisor knows of a component, sooner than the logs do."""

    @property
    def state(self) -> str: ...

    @property
    def step(self) -> int: ...


class Progress:
    """Live lines of all components, one each.

    Silent when the console is not a terminal: a log file is no place for a moving bar.

    Args:
        run_dir: run folder with, sooner or later, a `component-<k>.jsonl` for each component.
        components: number of components.
        steps: optimizer steps of the whole run.
        enabled: False shows nothing at all.
        watch: what a supervisor knows of each component; None where nobody watches.
    """

    def __init__(
        self,
        run_dir: Path,
        components: int,
        steps: int,
        enabled: bool = True,
        console: Console | None = None,
        watch: Callable[[], Sequence[Watched]] | None = None,
    ) -> None:
        self._watch = watch
        self._console = console or Console()
        # FORCE_COLOR makes rich call a pipe a terminal; a bar cannot move there all the same.
        self._shown = enabled and self._console.is_terminal and self._console.file.isatty()
        self._shown = self._shown and not self._console.is_dumb_terminal
        self._run_dir = run_dir
        self._components = components
        self._steps = steps
        self._done = threading.Event()

    def __enter__(self) -> Progress:
        if not self._shown:
            return self
        self._bars = Bars(
            TextColumn("component {task.fields[component]}"),
            *([TextColumn("{task.fields[state]:<10}")] if self._watch else []),  # restarting
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,  # the result table is what stays
            expand=True,
            # Lines that ranks write appear above the bars, but only where they go to the terminal
            # anyway: `2> file` stays in the file.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._tasks = [
            self._bars.add_task("", total=self._steps, component=k, state="", numbers=_numbers({}))
            for k in range(self._components)
        ]
        self._bars.start()
        self._thread = threading.Thread(target=self._follow, name="mach-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._shown:
            return
        self._done.set()
        self._thread.join(5.0)  # it looks once more at the logs, then ends
        self._bars.stop()

    def _follow(self) -> None:
        run = RunState(self._run_dir, self._components, self._steps)
        try:
            last = False
            while not last:
                last = self._done.wait(REFRESH_S)
                run.look()
                for task, component in zip(self._tasks, run.components, strict=True):
                    self._show(task, component.latest)
                for k, one in enumerate(self._watch() if self._watch else ()):
                    self._bars.update(self._tasks[k], completed=one.step, state=one.state)
                self._bars.refresh()
        except Exception:  # a view that breaks is no reason to stop a run
            _log.warning("progress: no longer shown, the run goes on", exc_info=True)

    def _show(self, task: TaskID, record: dict[str, Any]) -> None:
        self._bars.update(task, completed=record.get("step", 0), numbers=_numbers(record))


def _numbers(record: Mapping[str, Any]) -> str:
    """The few numbers one looks at while waiting; each has its place so that nothing jumps."""
    loss, student = fixed(record.get("loss"), 3), fixed(record.get("student_loss"), 3)
    staleness, rate = fixed(record.get("staleness_steps")), fixed(record.get("samples_per_s"))
    return f"loss {loss:>6} student {student:>6} stale {staleness:>2} {rate:>7}/s"


# --- at the end -----------------------------------------------------------------------------

METRICS = {
    "bits_per_byte": "bits per byte",
    "bits_per_token": "bits per token",
    "accuracy": "accuracy %",
}


def result_table(result: Mapping[str, Any]) -> Table:
    """The models a run has made, from its `result.json`; at most 100 columns wide.

    Each exit of the chain, then each window: a student and the bodies above it.
    """
    chain, windows = result["chain"], result["windows"]
    metric = next((key for key in METRICS for row in [*chain, *windows] if key in row), "accuracy")
    table = Table(
        title=_title(result), caption=_caption(result), caption_justify="left", title_justify="left"
    )
    table.add_column("model", no_wrap=True)
    for name in (METRICS[metric], "loss", "params", "flops"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, row: Mapping[str, Any], style: str | None = None) -> None:
        value = row.get(metric)
        shown = _percent(value) if metric == "accuracy" else fixed(value, 3)
        params, flops = fixed(row.get("params"), 0), short(row.get("flops"))
        table.add_row(name, shown, fixed(row.get("loss"), 4), params, flops, style=style)

    top = max((row["exit"] for row in chain), default=None)
    for row in chain:
        name = f"chain 0..{row['exit']}"
        if row["exit"] == top:
            add(f"{name} (top exit)", row, style="bold")
        else:
            add(name, row)
    table.add_section()
    for row in windows:
        add(f"window {row['first']}..{row['last']}", row)
    return table


def _title(result: Mapping[str, Any]) -> str:
    split = result.get("split", "test")
    return "Result" if split == "test" else f"Result on the {split} split"


def _caption(result: Mapping[str, Any]) -> str:
    """What the result cost, one fact per line."""
    staleness = [fixed(row.get("mean")) for row in result.get("staleness_steps", [])]
    return "\n".join(
        [
            f"{fixed(result.get('samples_per_s'))} samples/s, {fixed(result.get('wall_s'), 1)} s",
            f"staleness in steps, component 0 first: {', '.join(staleness) or '-'}",
        ]
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"
