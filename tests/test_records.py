"""Whatever lies in a run folder is read as far as it can be, and what is wrong is counted."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mach.cli import answer
from mach.errors import RunFolderError
from mach.records import Notes, find_runs, read_log, read_run


def problems(notes: Notes) -> list[str]:
    return [str(note).rpartition("/")[2] for note in notes]


def write_log(path: Path, steps: int, **more: float) -> Path:
    path.write_text(
        "".join(json.dumps({"step": n, "loss": 1 / n, **more}) + "\n" for n in range(1, steps + 1))
    )
    return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def test_a_finished_run_is_read_without_a_note(finished):
    record = read_run(finished[0])
    log = record.log(1)
    assert record.components == 2
    assert record.config is not None
    assert record.flat["model.width"] == 16
    assert record.result is not None
    assert log.lines == len(log) == 12
    assert list(log.column("step")[:3]) == [1, 10, 20]
    x, y = log.curve("student_loss", over="samples")
    assert len(x) == len(y) == 11
    assert not record.events
    assert not problems(record.notes)


def test_a_half_written_line_is_left_out_and_counted(tmp_path):
    path = write_log(tmp_path / "component-0.jsonl", 3)
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo\n[1]\n' + b"[" * 100_000 + b'\n{"step": 5, "loss": 2.0}\n{"st')
    notes = Notes()
    log = read_log(path, 0, notes)
    assert list(log.column("step")) == [1, 2, 3, 5]
    assert (log.lines, log.damaged) == (8, 4)
    assert problems(notes) == [
        "component-0.jsonl: line that is half-written or damaged; left out (4 times)"
    ]


def test_a_key_that_comes_late_or_is_missing_is_nan(tmp_path):
    path = tmp_path / "component-0.jsonl"
    path.write_text(
        '{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5, "note": "x", "huge": 1'
        + "0" * 400
        + '}\n{"step": 3, "eval_loss": 0.25}\n'
    )
    log = read_log(path, 0, Notes())
    np.testing.assert_equal(log.column("loss"), [np.nan, 0.5, np.nan])
    np.testing.assert_equal(log.column("eval_loss"), [np.nan, np.nan, 0.25])
    assert [list(axis) for axis in log.curve("eval_loss")] == [[3], [0.25]]
    assert log.last("loss") == 0.5
    assert log.last("student_loss") is None
    assert log.columns.keys() == {"step", "loss", "eval_loss"}


def test_a_thinned_log_keeps_evaluations_and_ends_and_counts_damaged_lines(tmp_path):
    path = write_log(tmp_path / "component-0.jsonl", 1000)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[554] = b'{"step": 555, "eval_loss": 0.5}\n'
    lines[777] = b'{"step": 778, "lo\n'
    path.write_bytes(b"".join(lines))
    log = read_log(path, 0, Notes(), most=10)
    assert list(log.column("step")) == [*range(1, 502, 100), 555, 602, 702, 803, 903, 1000]
    assert (log.lines, log.damaged) == (1000, 1)


@pytest.mark.parametrize("between", ["eval_loss", "salience/child/gradient"])
def test_a_thinned_log_keeps_steps_between_which_there_is_something_else(tmp_path, between):
    # Of a line for a step and one for something else by turns, all that were taken were the others.
    path = tmp_path / "component-0.jsonl"
    steps = "".join(
        f'{{"step": {n}, "loss": 0.5}}\n{{"step": {n}, "{between}": 0.5}}\n' for n in range(1, 501)
    )
    path.write_text('{"step": 0, "loss": 0.5}\n' + steps)
    log = read_log(path, 0, Notes(), most=100)
    assert list(log.curve("loss")[0]) == list(range(0, 501, 11))
    assert np.isfinite(log.column(between)).sum() == (500 if between == "eval_loss" else 47)


def test_the_time_behind_a_log_is_that_of_all_lives(tmp_path):
    # wall_s begins at 0 in every life. The second life's first line comes later in it than the last
    # line of the first did; what tells it is that it has no rate.
    path = tmp_path / "component-0.jsonl"
    lives = [(0.5, None), (2.0, 640.0), (3.0, None), (4.0, 640.0), (1.0, 640.0), (1.5, 640.0)]
    lines = [{"wall_s": wall_s, "samples_per_s": rate} for wall_s, rate in lives]
    lines.insert(2, {"eval_loss": 0.25})
    path.write_text("".join(json.dumps({"step": 10} | line) + "\n" for line in lines))
    assert read_log(path, 0, Notes()).wall_s == 2.0 + 4.0 + 1.5
    path.write_text("".join(f'{{"step": 1, "wall_s": {wall_s}}}\n' for wall_s in (1.0, 2.0, 0.5)))
    assert read_log(path, 0, Notes()).wall_s == 2.5
    path.write_text("")
    assert read_log(path, 0, Notes()).wall_s == 0.0


def test_an_empty_run_is_counted(tmp_path):
    (tmp_path / "config.yaml").write_text("components: 2\n")
    record = read_run(tmp_path)
    assert len(record.log(0)) == 0
    assert record.log(0).last("loss") is None
    assert any("has logged nothing" in problem for problem in problems(record.notes))
    (tmp_path / "component-0.jsonl").touch()
    assert len(read_run(tmp_path).log(0)) == 0


def test_a_run_of_another_version_is_read_as_it_stands(run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("delay:", "lateness: 3\ndelay:") + "novel: {a: 1}")
    record = read_run(run)
    assert record.flat["lateness"] == 3
    assert record.components == 2
    assert record.config is None
    assert problems(record.notes) == [
        "config.yaml: written by another version of mach: lateness is not known to this one",
        "config.yaml: written by another version of mach: novel is not known to this one",
    ]
    config.write_text("model: {name: perceptron, size: 3}\ndata: {name: digits, colour: red}\n")
    assert [p.rpartition(": ")[2] for p in problems(read_run(run).notes)] == [
        "model.name=perceptron is not known to this one",
        "data.colour is not known to this one",
    ]


@pytest.mark.parametrize("text", ["", "[1]", ": : :", "\x00", "- 1\n- 2", "a: [", "\ud800"])
def test_a_config_that_is_none_is_said(run, text):
    (run / "config.yaml").write_bytes(text.encode(errors="surrogatepass"))
    record = read_run(run)
    assert record.values == {}
    assert record.components == 2
    assert "cannot be read as a config" in problems(record.notes)[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "[" * 100_000])
def test_a_result_that_is_none_is_said(run, text):
    (run / "result.json").write_text(text)
    record = read_run(run)
    assert record.result is None
    assert "cannot be read as a result" in problems(record.notes)[0]


def test_a_missing_result_and_a_damaged_row_of_one_are_said(run):
    result = json.loads((run / "result.json").read_text())
    result["chain"][0] = {"loss": 1}
    result["windows"] = 7
    (run / "result.json").write_text(json.dumps(result))
    record = read_run(run)
    assert [row["exit"] for row in record.result["chain"]] == [1]
    assert len(problems(record.notes)) == 2
    (run / "result.json").unlink()
    assert "no result" in problems(read_run(run).notes)[0]


def test_events_are_read_in_their_order(run):
    (run / "events.jsonl").write_text(
        '{"time": 1.0, "component": 1, "event": "died", "text": "it died"}\n'
        '{"time": 2.0, "component": 1, "ev\n{"time": "x"}\n'
        '{"time": 3.0, "component": 1, "event": "started", "text": "again"}\n'
    )
    record = read_run(run)
    assert [(event.kind, event.text) for event in record.events] == [
        ("died", "it died"),
        ("started", "again"),
    ]
    assert record.notes.total == 2


def test_runs_are_found_below_a_folder_in_the_order_of_their_numbers(tmp_path):
    for name in ("sweep/10", "sweep/2", "sweep/2/checkpoints/step-1", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("components: 2\n")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("theme: dark\n")
    names = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert names == ["other", "sweep/2", "sweep/10"]
    assert find_runs(tmp_path / "other") == [tmp_path / "other"]


def test_a_folder_that_cannot_be_read_is_told_and_not_a_traceback(tmp_path, monkeypatch, capsys):
    for name in ("0", "1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("components: 2\n")
    closed = tmp_path / "1"
    (closed / "config.yaml").unlink()

    def guard(name, itself):
        # Whoever runs the tests may be root, to whom no folder is closed.
        do = getattr(os, name)

        def guarded(path, *args, **kwargs):
            inside = not isinstance(path, int) and Path(path).is_relative_to(closed)
            if inside and (itself or Path(path) != closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return do(path, *args, **kwargs)

        monkeypatch.setattr(os, name, guarded)

    guard("scandir", itself=True)
    guard("listdir", itself=True)
    guard("stat", itself=False)
    notes = Notes()
    assert [path.name for path in find_runs(tmp_path, notes)] == ["0", "2"]
    assert [str(note) for note in notes] == [
        f"{closed}: cannot be read: Permission denied; left out"
    ]
    with pytest.raises(RunFolderError, match="1 cannot be read: Permission denied"):
        find_runs(closed)
    assert answer("watch", [str(closed), "--once"]) == 2
    assert answer("compare", [str(closed)]) == 2
    told = capsys.readouterr().err
    assert "expected a folder that can be read; Permission denied" in told
    assert "Traceback" not in told


def test_a_folder_without_runs_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    for path, got in (
        (tmp_path, "no run in it"),
        (tmp_path / "a", "nothing"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(RunFolderError, match=got):
            find_runs(path)
