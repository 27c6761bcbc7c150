"""Is every logged line in the file at once, and read again as it was?"""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

from mach.report.jsonl import Follower, JsonLines
from reported import environment, lines, record


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "log.jsonl", resume_step=0)
    sink.log(record(1))
    assert lines(tmp_path / "log.jsonl") == [record(1)]
    sink.close()


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "log.jsonl", resume_step=0)
    sink.log({"step": 1, "loss": float("nan"), "norms": [float("inf"), 1.0]})
    sink.close()
    assert lines(tmp_path / "log.jsonl") == [{"step": 1, "loss": None, "norms": [None, 1.0]}]


def test_resume_drops_later_steps_and_a_half_written_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record(n)) + "\n" for n in (1, 2, 3, 4)) + '{"step": 2, "lo')
    sink = JsonLines(path, resume_step=2)
    sink.log(record(3, loss=0.5))
    sink.close()
    assert lines(path) == [record(1), record(2), record(3, loss=0.5)]
    assert list(tmp_path.iterdir()) == [path]


def test_resume_does_not_touch_a_log_that_ends_where_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record(1)) + "\n")
    before = path.stat()
    JsonLines(path, resume_step=1).close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_kill_9_leaves_whole_lines_and_at_most_one_partial(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = """
import itertools, sys
from pathlib import Path
from mach.report.jsonl import JsonLines
sink = JsonLines(Path(sys.argv[1]), 0)
for step in itertools.count(1):
    sink.log({"step": step, "loss": 0.1, "text": "x" * 2000})
    if step == 200:
        print("200 lines", flush=True)
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(tmp_path)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"200 lines\n"
        child.send_signal(signal.SIGKILL)
    *whole, rest = path.read_bytes().split(b"\n")
    steps = [json.loads(line)["step"] for line in whole]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 200
    JsonLines(path, resume_step=150).close()  # and the next life mends what is left
    assert [line["step"] for line in lines(path)] == list(range(1, 151)), rest


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path: Path, caplog) -> None:
    sink = JsonLines(tmp_path / "log.jsonl", resume_step=0)
    sink.log(record(1))
    file = sink._file
    with Path("/dev/full").open("wb", buffering=0) as sink._file:
        for step in (40, 41):
            sink.log(record(step))
    sink._file = file
    sink.log(record(42))
    sink.close()
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [1, 42]
    said = [entry.getMessage() for entry in caplog.records]
    assert len(said) == 2, said
    assert "log.jsonl: the line of step 40 could not be written: No space left" in said[0]
    assert "2 lines could not be written" in said[1]


def test_what_a_full_disk_left_of_a_line_costs_no_other(tmp_path: Path) -> None:
    class Fills(io.BytesIO):
        """Room for five bytes, then for none, then for all."""

        room = 5

        def write(self, line) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = super().write(line[: self.room])
            self.room -= written
            return written

    path = tmp_path / "log.jsonl"
    sink = JsonLines(path, resume_step=0)
    sink._file.close()
    sink._file = file = Fills()
    sink.log(record(1))
    sink.log(record(2))
    file.room = 1 << 20
    sink.log(record(3))
    sink.log(record(4))
    path.write_bytes(file.getvalue())
    assert path.read_text().splitlines()[0] == json.dumps(record(1))[:5]
    assert len(path.read_text().splitlines()) == 3, "no line for the one that left nothing"
    follower = Follower(path)
    assert follower.read() == [record(3), record(4)]
    assert follower.skipped == 1


def test_the_follower_waits_for_the_file_and_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text('{"step": 1}\n{"step"')
    assert follower.read() == [{"step": 1}]
    assert follower.read() == []
    with path.open("a") as file:
        file.write(': 2}\nnot json\n{"step": 3}\n')
    assert follower.read() == [{"step": 2}, {"step": 3}]


def test_the_follower_reads_a_rewritten_log_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    follower = Follower(path)
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3)))
    assert len(follower.read()) == 3
    sink = JsonLines(path, resume_step=1)
    sink.log({"step": 2, "again": True})
    sink.close()
    assert follower.read() == [{"step": 1}, {"step": 2, "again": True}]
