"""Does `mach watch` show what runs do, whatever they have written, and end when they are done?"""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mach import runfolder
from mach.errors import RunFolderError
from mach.report.curve import Curve
from mach.report.state import RunState
from mach.report.watch import SeveralRuns, watch
from reported import DEADLINE_S, record
from runs import SMALL
from spawn import MACH, TRAIN, Command


def shown(path: Path, width: int = 130, **more: Any) -> list[str]:
    """What a pipe is shown, cells separated by single spaces."""
    pipe = io.StringIO()
    assert watch(path, console=Console(file=pipe, width=width), **more) == 0
    lines = pipe.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [" ".join(line.split()) for line in lines]


def write(run_dir: Path, components: int = 2, steps: int = 40, at: int = 12) -> Path:
    """A run that has come to step `at`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(f"components: {components}\nsteps: {steps}\n")
    now = time.time()
    for k in range(components):
        lines = [record(n, loss=2.0 / n, time=now - 2.0 * (at - n)) for n in range(1, at + 1)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_dir / f"component-{k}.jsonl").write_text(text)
    return run_dir


# --- a real run in a real terminal ------------------------------------------------------------


def test_watch_in_a_terminal_follows_a_run_that_trains_to_its_result(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()  # it begins before the run does
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    environ = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environ.pop(name, None)
    watching = subprocess.Popen(  # a short name, for the width of the terminal
        [*MACH, "watch", out.name],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ,
    )
    os.close(theirs)
    text = ""

    def read_until(wanted: str) -> None:
        nonlocal text
        end = time.monotonic() + 2 * DEADLINE_S
        while wanted not in text:
            left = max(0.0, end - time.monotonic())
            assert select.select([ours], [], [], left)[0], f"{wanted}: {text[-2000:]!r}"
            try:
                text += os.read(ours, 65536).decode()
            except OSError:  # how a terminal ends
                pytest.fail(f"watch has ended before {wanted}: {text}")

    try:
        read_until("waiting for a run")
        slow = ["steps=60", "report.every=5", "faults.pace_ms=15", f"out={out}"]
        with Command([*TRAIN, *SMALL, *slow], tmp_path) as training:
            read_until("training")
            read_until("5/60")
            assert training.process.poll() is None  # seen while it trains
            read_until("to go")
            read_until("▁")
            read_until("chain 0..1 (top exit)")
            assert training.wait().code == 0
        assert watching.wait(DEADLINE_S) == 0
        assert "60/60 100%" in text
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


# --- one run ------------------------------------------------------------------------------------


def test_a_run_that_is_over_is_shown_once_with_its_result(finished: Any) -> None:
    rows = shown(finished[0])
    assert any(row.startswith("0 done 100/100 100%") for row in rows), rows
    assert any("chain 0..1 (top exit)" in row for row in rows)
    assert rows[0].startswith("done ")
    assert "mlp on digits, delayed, components 2, delay 1" in rows[0]


def test_a_run_that_goes_on_is_shown_once_where_there_is_no_terminal(tmp_path: Path) -> None:
    rows = shown(write(tmp_path / "run"))
    assert rows[0].startswith("training, 0:56 to go")  # 28 steps of 2 s
    assert rows[2].startswith("0 training 12/40 30% 0.167")
    assert "█" in rows[2]
    assert shown(tmp_path / "run", once=True)[2] == rows[2]


def test_a_narrow_terminal_has_fewer_columns(tmp_path: Path) -> None:
    rows = shown(write(tmp_path / "run"), width=60)
    assert "loss" in rows[1]
    assert "waits" not in rows[1]


def test_an_empty_folder_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    assert shown(tmp_path) == [f"{tmp_path}: nothing in it yet; waiting for a run"]
    (tmp_path / "config.yaml").write_text("components: 2\nsteps: 40\n")
    assert shown(tmp_path)[2].startswith("0 starting 0/40 0% -")


@pytest.mark.parametrize("there", [False, True])
def test_no_run_is_one_clear_message(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "src"
    if there:
        path.mkdir()
        (path / "main.c").write_text("")
    with pytest.raises(RunFolderError, match="expected a run folder, or a folder with runs"):
        watch(path)


def test_damaged_lines_and_another_version_are_counted_and_said(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run")
    (run_dir / "config.yaml").write_text("components: 2\nsteps: many\nwarp: 9\n")
    with (run_dir / "component-1.jsonl").open("a") as log:
        log.write('not json\n[1, 2]\n{"step": "x", "loss": {}, "time": null}\n{"step": 13, "lo')
    rows = shown(run_dir, width=300)  # the folder's name may be long
    assert "2 damaged lines were left out" in rows
    assert any("written by another version" in row and "warp" in row for row in rows)
    assert rows[2].startswith("0 training 12 0.167")  # of how many steps is not known


def test_a_death_and_a_return_are_seen(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run")
    line = {"component": 1, "event": "died", "text": "component 1 died (signal 9)"}
    journal = run_dir / runfolder.EVENTS
    journal.write_text(json.dumps(line | {"time": time.time()}) + "\n")
    run = RunState(run_dir, 2, 40)
    run.look()
    assert (run.state(0), run.state(1)) == ("training", "down")
    assert run.components[1].deaths == 1
    assert "component 1 died (signal 9)" in shown(run_dir)
    with (run_dir / "component-1.jsonl").open("a") as log:  # it logs again
        log.write(json.dumps(record(13, time=time.time() + 1.0)) + "\n")
    run.look()
    assert run.state(1) == "training"


def test_what_an_earlier_launch_left_says_nothing_of_this_one(tmp_path: Path) -> None:
    """A component that had been given up is shown as gone until it logs again: for an hour once."""
    run_dir = write(tmp_path / "run")
    line = {"component": 1, "event": "exhausted", "text": "no restart left", "time": time.time()}
    (run_dir / runfolder.EVENTS).write_text(json.dumps(line) + "\n")
    assert shown(run_dir)[3].startswith("1 gone")
    with runfolder.hold(run_dir):
        os.utime(run_dir / runfolder.LOCK, (time.time() + 5, time.time() + 5))
        assert [row.split()[1] for row in shown(run_dir)[2:4]] == ["starting", "starting"]


def test_a_launcher_that_nobody_has_waited_for_has_ended(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        (run_dir / runfolder.LOCK).write_text(f"{zombie.pid} {os.uname().nodename}\n")
        assert shown(run_dir)[0].startswith("stopped")


def test_a_component_that_says_nothing_for_long_is_told(tmp_path: Path) -> None:
    run = RunState(write(tmp_path / "run"), 2, 40)
    run.look()
    assert run.state(0, time.time() + 50) == "training"
    assert run.state(0, time.time() + 70) == "silent"


def test_a_run_whose_launcher_left_without_a_result_has_stopped(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with runfolder.hold(run_dir):
        write(run_dir)
        assert "training" in shown(run_dir)[0]
    rows = shown(run_dir)
    assert rows[0].startswith("stopped")
    assert not [row for row in rows if "training" in row]
    assert "Nothing was saved" in rows[-1]
    (run_dir / "checkpoints" / "step-10").mkdir(parents=True)
    (run_dir / "checkpoints" / "step-10" / "manifest.json").write_text("{}")
    assert "resume=auto" in shown(run_dir)[-1]
    (run_dir / runfolder.LOCK).write_text(f"{2**22 + 1} {os.uname().nodename}\n")  # kill -9
    assert shown(run_dir)[0].startswith("stopped")


def test_a_rewritten_log_begins_the_curve_anew(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", components=1)
    run = RunState(run_dir, 1, 40)
    run.look()
    assert len(run.components[0].loss) == 12
    write(tmp_path / "again", components=1, at=5)
    (tmp_path / "again" / "component-0.jsonl").replace(run_dir / "component-0.jsonl")
    run.look()
    assert (run.step, len(run.components[0].loss)) == (5, 5)


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("components: 1\nsteps: 200000\n")
    line = json.dumps({"step": 1, "time": 1.5, "loss": 2.25}) + "\n"
    log = tmp_path / "component-0.jsonl"
    run = RunState(tmp_path, 1, 200_000)

    def peak_bytes(lines: int) -> int:
        with log.open("a") as file:
            for _ in range(lines):
                file.write(line)
        tracemalloc.reset_peak()
        run.look()
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        few = peak_bytes(1_000)
        many = peak_bytes(100_000)
    finally:
        tracemalloc.stop()
    assert log.stat().st_size > 3.9e6
    assert many < few + 100_000
    assert len(run.components[0].loss) < 64


# --- several runs ---------------------------------------------------------------------------------


def test_a_sweep_is_a_table_of_its_runs(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "2", ignore=shutil.ignore_patterns("checkpoints"))
    write(tmp_path / "10")
    rows = shown(tmp_path)
    assert rows[0] == f"{tmp_path} 1 of 2 runs done"
    assert rows[2].startswith("2 done 100/100 ")
    assert rows[3].startswith("10 training 12/40 0.167 - 2,364 0:56 0")


def test_scores_of_several_kinds_say_of_which_each_is(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "0", ignore=shutil.ignore_patterns("checkpoints"))
    assert "eval %" in shown(tmp_path)[1]
    log = write(tmp_path / "1") / "component-1.jsonl"
    log.write_text(log.read_text() + json.dumps(record(13, eval_bits_per_byte=2.5)) + "\n")
    rows = shown(tmp_path)
    assert "eval %" not in rows[1]
    assert "% " in rows[2]
    assert "2.500 bits/byte" in rows[3]


def test_a_sweep_is_over_when_nothing_new_begins(finished: Any, tmp_path: Path) -> None:
    now = [0.0]
    runs = SeveralRuns(tmp_path, clock=lambda: now[0])
    running = write(tmp_path / "0")
    runs.look()
    assert not runs.over
    shutil.copy(finished[0] / runfolder.RESULT, running)
    runs.look()
    assert not runs.over
    now[0] = 50.0
    write(tmp_path / "1")
    runs.look()
    now[0] = 200.0
    runs.look()
    assert not runs.over
    shutil.copy(finished[0] / runfolder.RESULT, tmp_path / "1")
    runs.look()
    now[0] = 300.0
    runs.look()
    assert runs.over


def test_a_run_that_cannot_be_read_hides_no_other(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "0", ignore=shutil.ignore_patterns("checkpoints"))
    broken = write(tmp_path / "1")
    (broken / "component-0.jsonl").unlink()
    (broken / "component-0.jsonl").mkdir()
    runs = SeveralRuns(tmp_path)
    runs.look()
    assert runs.over
    rows = shown(tmp_path, width=300)
    assert rows[2].startswith("0 done 100/100 ")
    assert rows[3].startswith("1 unread ")
    assert rows[4] == f"{broken / 'component-0.jsonl'}: cannot be read: Is a directory"
    (broken / "component-0.jsonl").rmdir()
    write(broken)
    runs.look()
    assert not runs.over


def test_what_does_not_fit_is_what_is_done(finished: Any, tmp_path: Path) -> None:
    for job in range(8):
        shutil.copy(finished[0] / runfolder.RESULT, write(tmp_path / str(job), components=1))
    write(tmp_path / "8")
    runs, pipe = SeveralRuns(tmp_path), io.StringIO()
    runs.look()
    Console(file=pipe, width=200).print(runs.frame(Console(file=pipe), most_rows=3))
    lines = pipe.getvalue().splitlines()
    assert lines[0].endswith("8 of 9 runs done, 6 of them not shown")
    assert [line.split()[0] for line in lines[2:]] == ["6", "7", "8"]


# --- curves ---------------------------------------------------------------------------------------


def test_a_curve_keeps_the_shape_of_a_curve_of_any_length() -> None:
    curve = Curve(most=64)
    for n in range(100_000):
        curve.add(1 / (n + 1_000))
    curve.add(float("nan"))
    assert len(curve) < 64
    drawn = curve.drawn(8)
    assert drawn[0] == "█"
    assert drawn[-1] == "▁"
    assert list(drawn) == sorted(drawn, reverse=True)


def test_a_flat_or_empty_curve_is_drawn_too() -> None:
    curve = Curve()
    assert curve.drawn(8) == ""
    for _ in range(3):
        curve.add(2.0)
    assert curve.drawn(8) == "▁▁▁"
