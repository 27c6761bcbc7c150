"""Sweeps as a person starts them: the table, what is done again, and jobs side by side."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from mach.config import Config
from mach.configfile import load
from mach.errors import LeaseError, RunFolderError
from mach.launcher.app import launch
from mach.launcher.compose import compose
from mach.launcher.leases import lease
from mach.launcher.sweep import Job, begin, run_job
from mach.rank import available_cores, confined
from mach.sweepfolder import counted, enter, job_folders
from mach.sweeptable import TABLE, Row, read, write
from runs import SMALL, digests, result, scores, without_its_end
from spawn import TRAIN, Command, Done, assert_none_left, kill, processes_of, run, until

pytestmark = pytest.mark.timeout(300)

QUICK = [*SMALL, "steps=4", "launch=inprocess", "student=none"]
"""A job of a fraction of a second; the process that runs all of them takes some to start."""
ONE_FAILS = [*QUICK, "components=1,2", "model.depth=1,2", "out=sweep"]
"""Two components cannot share one block."""


def sweep(folder: Path, *words: str, code: int = 0) -> Done:
    done = run([*TRAIN, "-m", *words], folder)
    assert done.code == code, done
    assert "Traceback" not in done.stderr, done
    assert_none_left(folder)
    return done


def table(sweep_dir: Path) -> list[dict[str, str]]:
    with (sweep_dir / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, Done]:
    """A sweep of 2 x 2 with one job that fails: folder and what it printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("swept")
    return folder / "sweep", sweep(folder, *ONE_FAILS, code=1)


# --- the table -----------------------------------------------------------------------------


def test_every_job_is_a_row_of_the_table_failed_ones_too(swept):
    rows = table(swept[0])
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]
    assert [(row["components"], row["model.depth"]) for row in rows] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
        ("2", "2"),
    ]
    assert [row["exit_code"] for row in rows] == ["0", "0", "2", "0"]
    assert rows[2]["error"].startswith("components: expected at most model.depth=1")
    assert rows[2]["accuracy"] == rows[2]["loss"] == ""
    for row in (rows[0], rows[1], rows[3]):
        found = result(swept[0] / row["job"])
        assert row["error"] == ""
        assert float(row["accuracy"]) == found["chain"][-1]["accuracy"]
        assert float(row["loss"]) == found["chain"][-1]["loss"]
        for exit_ in found["chain"]:
            assert float(row[f"exit_{exit_['exit']}_accuracy"]) == exit_["accuracy"]
            assert float(row[f"exit_{exit_['exit']}_loss"]) == exit_["loss"]
        for stale in found["staleness_steps"]:
            assert float(row[f"staleness_{stale['component']}"]) == stale["mean"]
        assert float(row["samples_per_s"]) == found["samples_per_s"]
        assert float(row["wall_s"]) == found["wall_s"] < float(row["job_s"]) < 100


def test_wandb_would_know_the_jobs_by_the_name_of_their_sweep(swept):
    report = load(swept[0] / "1" / "config.yaml").report
    assert (report.group, report.tags) == ("sweep-1", ["sweep"])


def test_what_stands_between_job_and_exit_code_are_the_overrides(swept):
    columns, _ = read(swept[0] / TABLE)
    between = columns[columns.index("job") + 1 : columns.index("exit_code")]
    assert {"components", "model.depth", "steps", "launch", "student"} <= set(between)
    assert not {"out", "report.wandb", "accuracy"} & set(between)


def test_a_sweep_says_at_its_end_what_failed_and_how_to_go_on(swept):
    _, done = swept
    assert "Sweep: 3 of 4 jobs done. Table: sweep/sweep.csv" in done.stdout, done
    assert "mach: job 2 failed: " in done.stderr, done
    assert "mach: failed: job 2. The same command with out=sweep resume=auto" in done.stderr, done


def test_a_row_with_new_columns_widens_the_table(tmp_path):
    write(tmp_path, Row("0", {"a": "1"}, 0, results={"accuracy": 0.5, "exit_0_accuracy": 0.5}))
    write(tmp_path, Row("1", {"b": "x,y"}, 1, 'said "no"'))
    write(tmp_path, Row("2", {"a": "2"}, 0, results={"exit_1_loss": 0.1, "loss": None}, job_s=1))
    columns, rows = read(tmp_path / TABLE)
    assert columns == [
        *("job", "a", "b", "exit_code", "error", "accuracy", "loss"),
        *("exit_0_accuracy", "exit_1_loss", "job_s"),
    ]
    assert [row["a"] for row in rows] == ["1", "", "2"]
    assert (rows[1]["b"], rows[1]["error"]) == ("x,y", 'said "no"')


def test_a_job_that_is_run_again_replaces_its_row(tmp_path):
    for code in (1, 0):
        write(tmp_path, Row("7", {"a": "1"}, code))
        write(tmp_path, Row("8", {"a": "2"}, 0))
    assert [(row["job"], row["exit_code"]) for row in table(tmp_path)] == [("7", "0"), ("8", "0")]


def _write_ten(folder: Path, first: int) -> None:
    for job in range(first, first + 10):
        write(folder, Row(str(job), {"a": str(job), f"own-{first}": "1"}, 0))


def test_no_row_is_lost_when_several_jobs_end_at_once(tmp_path):
    context = get_context("fork")
    writers = [context.Process(target=_write_ten, args=(tmp_path, n)) for n in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert sorted(int(row["job"]) for row in table(tmp_path)) == list(range(30))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_table_of_something_else_is_not_overwritten(tmp_path, text):
    (tmp_path / TABLE).write_text(text)
    with pytest.raises(RunFolderError, match=r"expected the table of a sweep"):
        write(tmp_path, Row("0", {}, 0))
    assert (tmp_path / TABLE).read_text() == text


# --- the folders, and what is done again ---------------------------------------------------


def test_a_job_is_known_by_its_overrides_not_by_its_number(tmp_path):
    first = [enter(tmp_path, n, [f"delay={n}", "out=x"], resume=False) for n in range(2)]
    again = enter(tmp_path, 1, ["resume=auto", "delay=0"], resume=True)
    new = enter(tmp_path, 0, ["delay=4"], resume=True)
    other = enter(tmp_path, 5, ["delay=4", "seed=1"], resume=True)
    assert [path.name for path in (*first, again, new, other)] == ["0", "1", "0", "2", "5"]
    assert job_folders(tmp_path) == [tmp_path / name for name in ("0", "1", "2", "5")]


def test_a_sweep_ends_well_where_all_that_was_asked_for_now_has(tmp_path, swept):
    """Who had dropped an impossible value was told for ever that jobs had failed."""
    shutil.copytree(swept[0], tmp_path / "sweep")
    asked = [*QUICK, "components=1", "model.depth=1,2", "out=sweep", "resume=auto"]
    done = sweep(tmp_path, *asked)
    assert "Sweep: 2 of 2 jobs done." in done.stdout, done
    assert "Failed before, and not asked for now: job 2.\n" in done.stdout, done
    assert "mach: failed" not in done.stderr, done


def test_how_a_sweep_is_run_and_told_does_not_make_another_job():
    told = ["out=a", "resume=auto", "report=quiet", "report.every=3", "launch.parallel=2"]
    told += ["++report.tags=[a]", "++resume=auto"]
    assert counted([*told, "+launch.queue_s=3", "delay=1"]) == {"delay": "1"}
    assert counted(["resume=another/run"]) == {"resume": "another/run"}
    assert counted(["launch=inprocess", "launch.threads=1"]) != {}


def test_a_value_is_told_as_it_was_typed_not_as_hydra_hands_it_on(tmp_path):
    """Which puts a backslash before every special sign that is not in quotes."""
    handed_on = [r"model.factory=mine\:blocks", r"data.path=a\ b", r"report=C\:\\x", "a='\\:'"]
    asked = {"model.factory": "mine:blocks", "data.path": "a b", "a": "'\\:'"}
    assert counted(handed_on) == asked
    folder = enter(tmp_path, 0, handed_on, resume=False)
    typed = [f"{key}={value}" for key, value in asked.items()]
    assert enter(tmp_path, 1, typed, resume=True) == folder


def test_a_folder_whose_overrides_are_damaged_is_nobodys_and_stays(tmp_path):
    folder = enter(tmp_path, 0, ["delay=0"], resume=False)
    (folder / "overrides.yaml").write_text("{half: [")
    assert enter(tmp_path, 0, ["delay=0"], resume=True).name == "1"


def test_resume_runs_what_is_missing_and_nothing_else(tmp_path, swept):
    """One more value, one job that was stopped half-way, one whose row was never written."""
    shutil.copytree(swept[0], tmp_path / "sweep")
    here = tmp_path / "sweep"
    (here / "1" / "result.json").unlink()  # as if killed between its checkpoint and its result
    rows = (here / TABLE).read_text().splitlines(keepends=True)
    (here / TABLE).write_text("".join(rows[:-1]))  # job 3 has its result and no row
    before = {n: (here / n / "result.json").stat().st_mtime_ns for n in ("0", "3")}
    words = [*QUICK, "components=1,2", "model.depth=1,2,3", "out=sweep", "resume=auto"]
    done = sweep(tmp_path, *words, code=1)
    assert before == {n: (here / n / "result.json").stat().st_mtime_ns for n in before}
    assert [(r["job"], r["components"], r["model.depth"], r["exit_code"]) for r in table(here)] == [
        ("0", "1", "1", "0"),
        ("1", "1", "2", "0"),
        ("2", "2", "1", "2"),
        ("4", "1", "3", "0"),
        ("3", "2", "2", "0"),
        ("5", "2", "3", "0"),
    ]
    assert result(here / "1")["first_step"] == 4  # all it had to do was to evaluate
    assert scores(here / "1")[:2] == scores(swept[0] / "1")[:2]
    assert table(here)[0].items() >= table(swept[0])[0].items()
    assert "Sweep: 5 of 6 jobs done" in done.stdout, done


def test_a_sweep_that_began_from_a_run_goes_on_from_it(tmp_path):
    """No job found its folder: all were trained again, from nothing, beside those that had been."""
    base, here = tmp_path / "the base", tmp_path / "sweep"
    words = [*QUICK, "components=1"]
    launch(compose([*words, f"out={base}"]))
    words += ["steps=6", "checkpoint.every=5"]

    def job(number: int, *more: str) -> None:
        asked = [*words, f"seed={number}", *more]
        resume = more == ("resume=auto",)
        run_job(Job(here, number, asked, resume, shared=False), lambda: compose(asked), launch)

    for number in range(3):
        job(number, f"resume='{base}'")
    done = digests(here / "0")
    without_its_end(here / "1", here / "half", 6)
    shutil.rmtree(here / "1")
    (here / "half").rename(here / "1")
    for path in (here / "2").iterdir():  # as if it had been refused before it began
        if path.name != "overrides.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for number in range(4):
        job(number, "resume=auto")
    assert digests(here / "0") == done
    assert job_folders(here) == [here / str(number) for number in range(4)]
    assert [result(here / str(number))["first_step"] for number in range(4)] == [4, 5, 4, 4]
    assert [(row["seed"], row["resume"]) for row in table(here)] == [
        (str(number), f"'{base}'") for number in range(4)
    ]


def test_a_sweep_whose_jobs_began_from_several_runs_does_not_go_on(tmp_path):
    """Nothing that is asked for now would say which of them is meant."""
    for number, run_dir in enumerate("abb"):
        enter(tmp_path, number, [f"seed={number // 2}", f"resume={run_dir}"], resume=False)
    with pytest.raises(RunFolderError, match=r"\(job 0: resume=a; job 1, 2: resume=b\)\. Go on"):
        begin(tmp_path, resume=True)


def test_a_run_is_refused_in_the_folder_of_a_sweep(tmp_path):
    enter(tmp_path / "sweep", 0, ["seed=0"], resume=False)
    done = run([*TRAIN, *SMALL, "out=sweep"], tmp_path)
    assert done.code == 2, done
    assert "out=sweep: expected a folder for a run, got one that holds a sweep of 1 jobs" in str(
        done
    )
    assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["0"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=0,1", "out=sweep"], r"holds 1 jobs\. Choose another `out`, .* resume=auto"),
        (["seed=0,1", "out=run"], "expected a folder for a sweep, got one that holds a run"),
        (["seed=0,1", "resume=auto"], r"resume=auto: expected the folder .* out=FOLDER"),
        (["seed=0,1", "out=a,b"], "out: expected one folder, for the whole sweep; got several"),
        (
            ["seed=0,1", "launch.parallel=2", "hydra/launcher=basic"],
            r"launch\.parallel=2: expected a launcher .* hydra/launcher=joblib",
        ),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_its_first_job(tmp_path, words, says):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("components: 2\n")
    enter(tmp_path / "sweep", 0, ["seed=0"], resume=False)
    done = run([*TRAIN, "-m", *QUICK, *words], tmp_path)
    assert done.code == 2, done
    assert len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith("mach: ")
    assert re.search(says, done.stderr), done


# --- side by side --------------------------------------------------------------------------


def test_jobs_side_by_side_have_cores_of_their_own_and_the_numbers_of_a_serial_sweep(tmp_path):
    words = [*SMALL, "components=2,1", "model.depth=2", "steps=40", "student=none"]
    alone = sweep(tmp_path, *words, "launch=inprocess", "out=alone")
    assert "Sweep: 2 of 2 jobs done" in alone.stdout
    cores = sorted(psutil.Process().cpu_affinity())
    seen: dict[str, set[int]] = {}

    def both_are_seen() -> bool:
        for process in processes_of(tmp_path):
            job = Path(process.environ()["MACH_RUN_DIR"]).name
            if job.isdecimal() and "mach.train" in process.cmdline():
                seen[job] = seen.get(job, set()) | set(process.cpu_affinity())
        return len(seen) == 2

    command = [*TRAIN, "-m", *words, "launch=gang", "launch.parallel=2", "out=beside"]
    with Command(command, tmp_path) as started:
        started.until(both_are_seen)
        done = started.wait()
    assert done.code == 0, done
    if len(cores) > 1:
        assert not seen["0"] & seen["1"]
    assert seen["0"] | seen["1"] <= set(cores)
    for job in ("0", "1"):
        assert scores(tmp_path / "beside" / job) == scores(tmp_path / "alone" / job)
    assert {row["exit_code"] for row in table(tmp_path / "beside")} == {"0"}
    assert_none_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_leaves_no_job_behind(tmp_path, number):
    """Ctrl-C reaches all processes of a terminal, kill -9 the launcher alone."""
    words = [*SMALL, "components=1", "steps=100000", "launch.parallel=2", "seed=0,1,2", "out=sweep"]

    def both_run() -> bool:
        return len(list((tmp_path / "sweep").glob("*/component-0.jsonl"))) == 2

    with Command([*TRAIN, "-m", *words], tmp_path) as started:
        started.until(both_run)
        family = started.process.children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(started.process.pid, number)
        else:
            started.process.send_signal(number)
        done = started.wait(30)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, [process.cmdline() for process in alive]
    assert done.code == (130 if number == signal.SIGINT else -number), done
    assert len(job_folders(tmp_path / "sweep")) == 2  # the third was not begun
    if number == signal.SIGINT:
        assert [row["exit_code"] for row in table(tmp_path / "sweep")] == ["130", "130"]
        assert "Traceback" not in done.stderr, done


def test_a_job_whose_process_is_killed_ends_the_sweep_with_rows_and_advice(tmp_path):
    """joblib ends the others as well; that was a traceback, and no table."""
    words = [*QUICK, "components=1", "steps=100000", "launch.parallel=2", "seed=0,1,2", "out=sweep"]
    here = tmp_path / "sweep"
    with Command([*TRAIN, "-m", *words], tmp_path) as started:
        started.until(lambda: len(list(here.glob("*/component-0.jsonl"))) == 2)
        holder, _, _ = (here / "0" / "launcher.lock").read_text().partition(" ")
        kill(psutil.Process(int(holder)))
        done = started.wait(30)
    assert done.code == 1, done
    assert "Traceback" not in done.stderr, done
    assert "mach: the process of a job was killed" in done.stderr, done
    assert "mach: failed: job 0, 1. The same command with out=sweep resume=auto" in done.stderr
    assert [(row["job"], row["exit_code"]) for row in table(here)] == [("0", "1"), ("1", "1")]
    assert_none_left(tmp_path)


@pytest.mark.parametrize(("code", "kept"), [(143, 143), (0, 1), (None, 1), ("bye", 1)])
def test_a_job_that_is_stopped_has_not_ended_well(tmp_path, code, kept):
    """Whoever stops it, and whatever exit code that leaves: it has no result."""

    def stopped(_: Config) -> dict:
        raise SystemExit(code)

    job = Job(tmp_path, 0, ["seed=0"], resume=False, shared=False)
    with pytest.raises(SystemExit) as ended:
        run_job(job, Config, stopped)
    assert ended.value.code == kept
    assert [(row["exit_code"], row["error"]) for row in table(tmp_path)] == [(str(kept), "stopped")]


def test_submitit_runs_a_sweep(tmp_path):
    """Each job in a process of submitit's; launch.parallel=1 lets one at a time have the cores."""
    done = sweep(tmp_path, *QUICK, "hydra/launcher=submitit_local", "seed=0,1", "out=sweep")
    assert [row["exit_code"] for row in table(tmp_path / "sweep")] == ["0", "0"]
    assert "Sweep: 2 of 2 jobs done" in done.stdout, done


def test_optuna_searches_for_the_smallest_loss_and_finds_again_what_it_has(tmp_path):
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "out=sweep"]
    words = [*QUICK, *search, "optim.muon_lr=interval(0.001,0.1)", "delay=0,-1"]
    sweep(tmp_path, *words, code=1)
    rows = table(tmp_path / "sweep")
    losses = [float(row["loss"]) for row in rows if row["exit_code"] == "0"]
    assert len(rows) == 3
    assert losses
    assert any(row["exit_code"] == "2" for row in rows), "no trial failed: the test shows less"
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert best.best_value == min(losses) < math.inf
    sweep(tmp_path, *words, "resume=auto", code=1)
    assert [row | {"job_s": ""} for row in table(tmp_path / "sweep")] == [
        row | {"job_s": ""} for row in rows
    ]


def test_a_search_in_which_every_trial_fails_has_its_rows_and_no_traceback(tmp_path):
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "delay=-1,-2", "out=sweep"]
    sweep(tmp_path, *QUICK, *words, code=1)
    assert [row["exit_code"] for row in table(tmp_path / "sweep")] == ["2", "2"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ("tag(log,interval(0,1e-1))", "must be larger than 0 for a log distribution"),
        ("interval(1e-1,1e-3)", "must be smaller than or equal to the `high` value"),
    ],
)
def test_a_search_among_values_that_cannot_be_is_refused(tmp_path, values, says):
    done = sweep(tmp_path, "hydra/sweeper=optuna", f"optim.lr={values}", "out=sweep", code=2)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("mach: ")]
    assert said.startswith("mach: hydra/sweeper=optuna: "), done
    assert says in said, done
    assert job_folders(tmp_path / "sweep") == []


# --- the machine, in parts -----------------------------------------------------------------


def test_a_job_waits_for_its_gpus_and_gets_those_that_others_return(tmp_path):
    gpus = ["0", "1", "GPU-3f/2"]
    order: list[tuple[str, ...]] = []
    first_in, second_may_end = threading.Event(), threading.Event()

    def job(number: int) -> None:
        with lease(tmp_path, 3, list(range(6)), gpus, number, 30) as part:
            order.append(part.gpus)
            first_in.set()
            if number == 2:
                assert second_may_end.wait(30)

    two = threading.Thread(target=job, args=(2,))
    two.start()
    assert first_in.wait(30)
    three = threading.Thread(target=job, args=(3,))
    three.start()
    held = tmp_path / ".leases"
    until(lambda: len(list(held.rglob("gpu-*.lock"))) == 3, 30)  # it has the one that is left
    with pytest.raises(LeaseError, match=r"its turn for 1 of 3 GPUs within launch.queue_s=0\.1"):
        lease(tmp_path, 3, list(range(6)), gpus, 1, 0.1).__enter__()  # a small one stays behind it
    assert order == [("0", "1")]
    second_may_end.set()
    two.join(30)
    three.join(30)
    assert [sorted(part) for part in order] == [["0", "1"], sorted(gpus)]


def test_jobs_at_once_have_disjoint_cores_and_no_more_than_launch_parallel_run(tmp_path):
    with (
        lease(tmp_path, 2, [0, 1, 2, 5], [], 0, 1) as one,
        lease(tmp_path, 2, [0, 1, 2, 5], [], 0, 1) as other,
    ):
        assert {one.cores, other.cores} == {(0, 1), (2, 5)}
        with pytest.raises(LeaseError, match=r"a place among 2 jobs at once"):
            lease(tmp_path, 2, [0, 1, 2, 5], [], 0, 0.1).__enter__()
    with lease(tmp_path, 2, [0, 1, 2, 5], [], 0, 0) as third:
        assert third.cores in {(0, 1), (2, 5)}


def _hold(folder: Path, ready) -> None:
    with lease(folder, 1, [0], ["0"], 1, 1):
        ready.set()
        threading.Event().wait()


def test_a_job_that_is_killed_returns_what_it_had(tmp_path):
    context = get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(LeaseError):
        lease(tmp_path, 1, [0], ["0"], 1, 0).__enter__()
    holder.kill()
    holder.join(30)
    with lease(tmp_path, 1, [0], ["0"], 1, 5) as part:
        assert part.gpus == ("0",)


def test_a_part_of_the_machine_is_all_that_started_processes_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    cores = available_cores()
    probe = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], *os.sched_getaffinity(0))"
    with confined(tuple(cores[-1:]), ["6"]):
        seen = subprocess.check_output([sys.executable, "-c", probe], text=True)
    assert seen.split() == ["6", str(cores[-1])]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert available_cores() == cores
