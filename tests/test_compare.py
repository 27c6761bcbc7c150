"""`mach compare`: in what runs differ, as far as their folders can be read."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from mach.errors import RunFolderError
from mach.records import Notes, read_run
from mach.report.compare import config_lines, gather, result_lines, show
from mach.sweepfolder import enter
from mach.sweeptable import TABLE, Row, read, write
from runs import result
from spawn import MACH, run

pytestmark = pytest.mark.timeout(400)  # the first waits for a run to end


def another(folder: Path, run_dir: Path, out: Path, accuracy: float = 0.5, **values) -> Path:
    """A copy of a run with another config and another result."""
    shutil.copytree(run_dir, out, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    config = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(config | {"out": str(out)} | values))
    found = result(out)
    found["chain"][-1]["accuracy"] = accuracy
    (out / "result.json").write_text(json.dumps(found))
    return out


def test_two_runs_stand_side_by_side_with_what_differs(finished, tmp_path):
    one = another(tmp_path, finished[0], tmp_path / "one", 0.975)
    two = another(tmp_path, finished[0], tmp_path / "[red]two", 0.95, delay=4, seed=7)
    runs = gather([one, two], Notes())
    assert config_lines(runs) == {"delay": ["1", "4"], "seed": ["0", "7"]}
    assert result_lines(runs)["accuracy"] == [0.975, 0.95]
    done = run([*MACH, "compare", "one", "[red]two"], tmp_path, deadline_s=60)
    assert done.code == 0, done
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    assert ["delay", "1", "4"] in table, done
    assert ["accuracy", "97.50 %", "95.00 % (-2.50)"] in table, done
    assert "[red]two" in done.stdout, done
    assert "steps" not in done.stdout, done  # they are equal
    assert done.stderr == "", done


def test_the_jobs_of_a_sweep_have_a_row_each_and_failed_ones_are_told(finished, tmp_path):
    sweep_dir = tmp_path / "sweep"
    for n in range(5):
        enter(sweep_dir, n, [f"seed={n}"], resume=False)
        write(sweep_dir, Row(str(n), {"seed": str(n)}, 0 if n < 4 else 1, "" if n < 4 else "burnt"))
        if n < 4:
            (sweep_dir / str(n) / "overrides.yaml").rename(tmp_path / "kept")
            (sweep_dir / str(n)).rmdir()
            another(tmp_path, finished[0], sweep_dir / str(n), 0.9 + n / 100, seed=n)
            (tmp_path / "kept").rename(sweep_dir / str(n) / "overrides.yaml")
    another(tmp_path, finished[0], tmp_path / "other", 0.8, seed=9)
    done = run([*MACH, "compare", "sweep", "other"], tmp_path, deadline_s=60)
    assert done.code == 0, done
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    rows = {row[0]: row[1:3] for row in table if row and row[0].startswith("sweep/")}
    assert rows["sweep/0"] == ["0", "90.00 %"]
    assert rows["sweep/3"] == ["3", "93.00 % (+3.00)"]
    assert "sweep/4" not in rows
    assert "mach: sweep/4: this job failed: burnt" in done.stderr, done


def test_in_a_narrow_terminal_no_name_of_a_key_and_no_number_is_cut(finished, tmp_path):
    names = ("components", "microbatch_size", "accumulate", "delay", "credits", "feedback", "seed")
    for n in range(5):
        another(tmp_path, finished[0], tmp_path / f"run-{n}", 0.9, **dict.fromkeys(names, 1000 + n))
    runs = gather([tmp_path], Notes())
    pipe = io.StringIO()
    show(runs, Console(file=pipe, width=80))
    words = pipe.getvalue().replace("│", " ").split()
    assert max(map(len, pipe.getvalue().splitlines())) <= 80
    assert {f"{name}=1004" for name in names} <= set(words)
    assert {"samples_per_s", "accuracy", "90.00"} <= set(words)


def test_two_results_for_one_job_are_told(finished, tmp_path):
    sweep_dir = tmp_path / "sweep"
    for n in range(2):
        another(tmp_path, finished[0], sweep_dir / str(n), seed=n)
        write(sweep_dir, Row(str(n), {"seed": str(n)}, 0))
    with (sweep_dir / TABLE).open("a") as file:
        file.write((sweep_dir / TABLE).read_text().splitlines()[-1] + "\n")
    notes = Notes()
    assert [run.folder.name for run in gather([sweep_dir], notes)] == ["0", "1"]
    told = [str(note) for note in notes]
    assert told == [f"{sweep_dir}: 2 results for job 1 in sweep.csv; its own folder's is taken"]


def test_what_cannot_be_read_is_told_and_the_rest_compared(finished, tmp_path):
    whole = another(tmp_path, finished[0], tmp_path / "whole")
    halved = another(tmp_path, finished[0], tmp_path / "halved", delay=2)
    (halved / "result.json").write_text('{"chain": [{"exit": 0, "accu')
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("components: 2\nwidth_of_old: 3\n")
    (tmp_path / "no-runs").mkdir()
    notes = Notes()
    runs = gather([whole, halved, empty, tmp_path / "no-runs", tmp_path / "gone"], notes)
    assert [run.folder.name for run in runs] == ["whole", "halved", "empty"]
    assert config_lines(runs)["delay"] == ["1", "2", "-"]
    told = "\n".join(map(str, notes))
    for words in ("halved/result.json: cannot be read", "width_of_old is not known", "empty run"):
        assert words in told
    for words in ("no-runs: skipped: expected a run", "gone: skipped: expected a run"):
        assert words in told


@pytest.mark.parametrize("paths", [["nothing"], ["one"], ["one", "one", "./one"]])
def test_one_run_is_not_compared(finished, tmp_path, paths):
    another(tmp_path, finished[0], tmp_path / "one")
    done = run([*MACH, "compare", *paths], tmp_path, deadline_s=60)
    assert done.code == 2, done
    assert "expected two runs or more; found" in done.stderr.splitlines()[-1], done
    assert "Traceback" not in done.stderr


def test_a_damaged_table_is_told(finished, tmp_path):
    sweep_dir = tmp_path / "sweep"
    another(tmp_path, finished[0], sweep_dir / "0")
    (sweep_dir / TABLE).write_bytes(b"\xff\x00job")
    with pytest.raises(RunFolderError):
        read(sweep_dir / TABLE)
    notes = Notes()
    assert [run.folder.name for run in gather([sweep_dir], notes)] == ["0"]
    assert "sweep.csv: " in "".join(map(str, notes))
    assert read_run(sweep_dir / "0").result is not None
