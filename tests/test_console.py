"""What does a run show in the terminal while it trains, and at its end?"""

from __future__ import annotations

import io
import logging
import os
import pty
import select
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mach.report.console import Progress, result_table
from mach.report.jsonl import JsonLines
from reported import DEADLINE_S, record


class Terminal:
    """A real terminal of 100 x 24, and what has been written on it."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self.file = os.fdopen(theirs, "w")
        self.console = Console(file=self.file)
        self.text = ""

    def read_until(self, *wanted: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not all(text in self.text for text in wanted):
            left = deadline - time.monotonic()
            assert select.select([self._ours], [], [], max(left, 0))[0], f"{wanted}: {self.text!r}"
            self.text += os.read(self._ours, 65536).decode()

    def rest(self) -> str:
        """What is left to read, without waiting."""
        found = b""
        while select.select([self._ours], [], [], 0)[0]:
            found += os.read(self._ours, 65536)
        return found.decode()

    def close(self) -> None:
        self.file.close()
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    found = Terminal()
    yield found
    found.close()


def test_progress_shows_one_line_per_component_and_leaves_the_terminal_clean(
    terminal: Terminal, tmp_path: Path
) -> None:
    with Progress(tmp_path, components=2, steps=40, console=terminal.console):
        terminal.read_until("component 0", "component 1", "0/40")  # nothing is logged yet
        logs = [JsonLines(tmp_path / f"component-{k}.jsonl", 0) for k in (0, 1)]
        logs[0].log(record(12, loss=1.25))
        logs[1].log(record(13, loss=1.5, student_loss=0.75, staleness_steps=0.0))
        logs[1].log({"step": 13, "eval_loss": 0.3, "eval_accuracy": 0.9})
        terminal.read_until("12/40", "loss  1.250", "student      -", "stale  2", "2,364/s")
        terminal.read_until("13/40", "loss  1.500", "student  0.750", "stale  0")
        logs[0].log(record(40))  # seen although the run ends at once
        for log in logs:
            log.close()
    terminal.text += terminal.rest()
    assert "40/40" in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # cursor is back
    assert terminal.text.endswith("\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K")  # both lines are erased
    assert "mach-progress" not in [thread.name for thread in threading.enumerate()]


def test_a_disabled_progress_writes_nothing_on_a_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    JsonLines(tmp_path / "component-0.jsonl", 0).close()
    with Progress(tmp_path, 1, 40, enabled=False, console=terminal.console):
        pass
    assert terminal.rest() == ""


@pytest.mark.parametrize("colour", [None, "1"])
def test_progress_is_silent_where_there_is_no_terminal(
    colour: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With FORCE_COLOR, as many CI machines set it, rich takes a pipe for a terminal.
    if colour:
        monkeypatch.setenv("FORCE_COLOR", colour)
    pipe = io.StringIO()
    with Progress(tmp_path, 1, 40, console=Console(file=pipe)):
        pass
    assert pipe.getvalue() == ""


def test_a_log_that_cannot_be_read_ends_the_progress_and_not_the_run(
    terminal: Terminal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "component-0.jsonl").mkdir()
    with Progress(tmp_path, 1, 40, console=terminal.console):
        pass
    assert "progress: no longer shown" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def result(**metric: float) -> dict[str, Any]:
    row = {"loss": 0.1234, "params": 34567, "flops": 1234567} | metric
    return {
        "components": 2,
        "wall_s": 81.24,
        "samples_per_s": 2364.2,
        "chain": [{"exit": k} | row for k in (0, 1)],
        "windows": [{"first": 1, "last": 1} | row],
        "staleness_steps": [{"component": 0, "mean": 2.0, "max": 2}, {"component": 1, "mean": 0.0}],
    }


def printed(result: dict[str, Any], width: int = 100) -> list[str]:
    """The table as a pipe sees it, cells separated by single spaces."""
    pipe = io.StringIO()
    Console(file=pipe, width=width).print(result_table(result))
    assert "\x1b" not in pipe.getvalue()
    assert max(map(len, pipe.getvalue().splitlines())) <= width
    return [" ".join(line.replace("│", " ").split()) for line in pipe.getvalue().splitlines()]


def test_the_table_has_a_row_per_exit_and_window_and_marks_the_top() -> None:
    rows = printed(result(accuracy=0.9664))
    assert "chain 0..0 96.64 0.1234 34,567 1.23 M" in rows
    assert "chain 0..1 (top exit) 96.64 0.1234 34,567 1.23 M" in rows
    assert "window 1..1 96.64 0.1234 34,567 1.23 M" in rows
    assert "2,364 samples/s, 81.2 s" in rows
    assert "staleness in steps, component 0 first: 2, 0" in rows
    assert printed(result(accuracy=0.9664), width=80)


def test_the_table_of_a_language_model_has_bits_per_byte() -> None:
    rows = printed(result(bits_per_byte=2.5041))
    assert any("bits per byte" in row for row in rows)
    assert "chain 0..1 (top exit) 2.504 0.1234 34,567 1.23 M" in rows


def test_the_table_of_tokens_of_unknown_text_does_not_speak_of_bytes() -> None:
    rows = printed(result(bits_per_token=2.5041))
    assert any("bits per token" in row for row in rows)
    assert not any("per byte" in row for row in rows)
    assert "chain 0..1 (top exit) 2.504 0.1234 34,567 1.23 M" in rows


def test_the_table_of_a_run_that_could_not_evaluate_still_prints() -> None:
    assert printed(result() | {"chain": [], "windows": [], "samples_per_s": None})
