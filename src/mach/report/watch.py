"""How are runs watched from a terminal, while they run or when they are over?

    mach watch runs/mine        one run: a row for each component
    mach watch runs/sweep-..    several: a row for each run

Everything is read from what runs write, so it does not matter who started them or from where this
is looked at. Nothing is written and nobody is disturbed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mach import runfolder
from mach.errors import RunFolderError
from mach.records import find_runs, is_run, read_run
from mach.report.console import result_table
from mach.report.numbers import duration, fixed
from mach.report.screen import Row, exit_score, run_screen, runs_table
from mach.report.state import RunState, number

REFRESH_S = 0.5
"""Time between two looks."""
RESCAN_S = 5.0
"""Time between two looks for new runs."""
TAIL_BYTES = 1 << 16
"""Of each log, where there are several runs: some hundred lines."""
LINGER_S = 60.0
"""A folder whose runs have all ended is watched so long for the next one to begin."""


def main(arguments: list[str]) -> int:
    """`mach watch`. Returns the exit code.

    Raises:
        MachError: see `watch`.
    """
    parser = argparse.ArgumentParser(
        prog="mach watch",
        description="Show a run, or the runs below a folder, while they run or when they are over. "
        "Reads what they write, so it works from another terminal and over ssh.",
    )
    parser.add_argument("path", type=Path, help="run folder, or a folder with runs, as of a sweep")
    parser.add_argument("--once", action="store_true", help="show it as it is now, and end")
    options = parser.parse_args(arguments)
    return watch(options.path, options.once)


def watch(path: Path, once: bool = False, console: Console | None = None) -> int:
    """Show the run at `path`, or the runs below it, until they are done. Returns the exit code.

    Args:
        once: show it as it is now, and end. So it is where the output is no terminal, too.

    Raises:
        RunFolderError: there is no run, or it cannot be read.
    """
    console = console or Console()
    live = not once and console.is_terminal and console.file.isatty()
    view = _open(path)
    try:
        _look(view)
        if live and not view.over:
            _follow(view, console)
    except KeyboardInterrupt:
        return 130
    console.print(view.frame(console, None))
    for last in view.last_words():
        console.print(last)
    return 0


def _open(path: Path) -> OneRun | SeveralRuns:
    """
    Raises:
        RunFolderError: no such path, or a folder with other things in it.
    """
    try:
        if path.is_dir() and (is_run(path) or not any(path.iterdir())):
            return OneRun(path)
    except OSError as error:
        raise RunFolderError(
            f"{path}: expected a folder that can be read; {error.strerror}"
        ) from error
    find_runs(path)
    return SeveralRuns(path)


def _follow(view: OneRun | SeveralRuns, console: Console) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while not view.over:
            screen.update(view.frame(console, console.height - 3), refresh=True)
            time.sleep(REFRESH_S)
            _look(view)


def _look(view: OneRun | SeveralRuns) -> None:
    try:
        view.look()
    except OSError as error:
        raise RunFolderError(
            f"{error.filename}: expected a log that can be read; {error.strerror}"
        ) from error


def _about(values: Mapping[str, Any]) -> str:
    """What a run is, from its config, which may be of another version."""

    def name(group: str) -> str:
        part = values.get(group)
        return str(part.get("name", "?")) if isinstance(part, Mapping) else "?"

    if not values:
        return ""
    words = [f"{name('model')} on {name('data')}", str(values.get("schedule", "?"))]
    words += [f"{key} {values[key]}" for key in ("components", "delay") if key in values]
    return ", ".join(words)


class OneRun:
    """A run folder, from before it has anything in it to its result."""

    def __init__(self, run_dir: Path, among_others: bool = False) -> None:
        """
        Args:
            among_others: shown as a row, for which a log's end is enough.
        """
        self.run_dir = run_dir
        self._tail = TAIL_BYTES if among_others else None
        self.state: RunState | None = None
        """None while the folder is empty."""
        self.result: dict[str, Any] | None = None
        self.stopped = False
        """Its launcher has ended without a result."""
        self.unread = ""
        """Why what it left cannot be read, where it cannot."""
        self._about = ""
        self._notes: list[str] = []

    @property
    def over(self) -> bool:
        return self.result is not None or self.stopped

    @property
    def word(self) -> str:
        """Its state, in a word."""
        if self.result is not None:
            return "done"
        if self.unread:
            return "unread"
        if self.stopped:
            return "stopped"
        if self.state is None:
            return "empty"
        states = {self.state.state(k) for k in range(len(self.state.components))}
        worst = ("refused", "gone", "down", "silent", "training", "starting", "done")
        return next((word for word in worst if word in states), "starting")

    def look(self) -> None:
        """Take in what is new."""
        ended = runfolder.launcher_ended(self.run_dir)  # before the result: it is written earlier
        if self.result is None and (self.run_dir / runfolder.RESULT).exists():
            self.result = read_run(self.run_dir).result
        if self.state is None and is_run(self.run_dir):
            self._begin()
        if self.state is not None:
            self.state.begun_s = runfolder.begun_s(self.run_dir)
            self.state.look()
        self.stopped = ended and self.result is None
        if self.state is not None:
            self.state.stopped = self.stopped

    def _begin(self) -> None:
        record = read_run(self.run_dir)
        values, config = record.values, self.run_dir / runfolder.CONFIG
        steps = values.get("steps", (record.result or {}).get("steps"))
        steps = steps if isinstance(steps, int) and not isinstance(steps, bool) else None
        self.state = RunState(self.run_dir, record.components, steps, self._tail)
        self._about = _about(values)
        self._notes = [str(note) for note in record.notes if note.where == str(config)]

    def frame(self, console: Console, most_rows: int | None) -> RenderableType:
        """What to show now."""
        if self.state is None:
            return Text(f"{self.run_dir}: nothing in it yet; waiting for a run")
        curves = console.encoding.lower().startswith("utf")
        return run_screen(
            self.state, self._about, self.word, console.width, curves, self._notes[:3]
        )

    def last_words(self) -> list[RenderableType]:
        """What to show beneath it when it is over."""
        if self.result is not None:
            return [result_table(self.result)]
        if self.stopped:
            go_on = f"Go on: out={self.run_dir} resume=auto"
            saved = runfolder.has_checkpoint(self.run_dir)
            text = (
                f"mach train has ended without a result. {go_on if saved else 'Nothing was saved.'}"
            )
            return [Text(text, style="yellow")]
        return []

    def score(self) -> tuple[str, str]:
        """Of the top exit: what it is measured in, and the value; `-` for none."""
        if self.result is not None and self.result.get("chain"):
            return exit_score(self.result["chain"][-1], prefix="")
        if self.state is None or not self.state.components:
            return exit_score({})
        return exit_score(self.state.components[-1].latest)

    def row(self, name: str) -> Row:
        """It among others."""
        if self.state is None:
            return Row(name, self.word)
        state, top = self.state, self.state.components[-1] if self.state.components else None
        steps = f"/{state.steps:,}" if state.steps is not None else ""
        eta_s = state.eta_s() if self.word == "training" else None
        latest = top.latest if top is not None else {}
        return Row(
            name=name,
            state=self.word,
            step=f"{state.step:,}{steps}",
            loss=fixed(number(latest.get("loss")), 3),
            score=self.score(),
            rate=fixed(number(latest.get("samples_per_s"))),
            eta=duration(eta_s) if eta_s is not None else "-",
            deaths=str(sum(one.deaths for one in state.components)),
        )


class SeveralRuns:
    """A folder with runs in it; more may come."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._runs: dict[Path, OneRun] = {}
        self._scanned_s: float | None = None
        self._ended_s: float | None = None
        self._first = True

    @property
    def over(self) -> bool:
        """All have ended, and had when this began, or nothing new has come for a while."""
        return self._ended_s is not None and (
            self._first or self._clock() - self._ended_s > LINGER_S
        )

    def look(self) -> None:
        """Take in what is new."""
        now = self._clock()
        if self._scanned_s is None or now - self._scanned_s > RESCAN_S:
            self._first = self._scanned_s is None
            self._scanned_s = now
            for folder in find_runs(self._path):
                self._runs.setdefault(folder, OneRun(folder, among_others=True))
        running = [run for run in self._runs.values() if not run.over]
        for run in running:
            try:
                run.look()
                run.unread = ""
            except OSError as error:  # no reason not to show the others
                run.unread = f"{error.filename}: cannot be read: {error.strerror}"
        if all(run.over or run.unread for run in running):
            self._ended_s = now if self._ended_s is None else self._ended_s
        else:
            self._ended_s, self._first = None, False

    def frame(self, console: Console, most_rows: int | None) -> RenderableType:
        """What to show now; where not all fit, what is not done and what was done last."""
        rows = [run.row(str(folder.relative_to(self._path))) for folder, run in self._runs.items()]
        done = [row for row in rows if row.state == "done"]
        head = Text(f"{self._path}  {len(done):,} of {len(rows):,} runs done", style="bold")
        left_out = done[: max(0, len(rows) - most_rows)] if most_rows is not None else []
        if left_out:
            head.append(f", {len(left_out):,} of them not shown")
            rows = [row for row in rows if row not in left_out]
        return Group(head, runs_table(rows))

    def last_words(self) -> list[RenderableType]:
        """What could not be read."""
        return [Text(run.unread, style="yellow") for run in self._runs.values() if run.unread]
