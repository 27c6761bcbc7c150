"""Runs under `free` in one group of processes: what they leave, save, count and go on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clouds import clouds, make
from mach import checkpoint
from mach.errors import SaveError
from mach.report.jsonl import Follower, JsonLines
from mach.runfolder import write_atomically
from mach.trainer import Assembly
from runs import SMALL, lines, result, stored_tensors
from spawn import TORCHRUN, TRAIN, Command, assert_none_left, run

pytestmark = pytest.mark.timeout(300)

FREE = [
    *SMALL,
    "schedule=free",
    "components=3",
    "delay=2",
    "steps=60",
    "checkpoint.every=20",
    "report.every=10",
]
GANG = [*TRAIN, *FREE, "launch=gang"]
COUNTS = {
    "imagined",
    "alone",
    "dropped_up",
    "dropped_down",
    "late_activations",
    "late_gradients",
}


def saved_steps(run_dir: Path, k: int) -> list[int]:
    """Steps of the checkpoints that component k saved by itself."""
    manifests = (run_dir / "checkpoints").glob(f"step-*/component-{k}.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in manifests)


@pytest.fixture(scope="module")
def free_run(tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("free")
    done = run([*GANG, "out=run"], folder)
    assert done.code == 0, done
    assert_none_left(folder)
    assert "chain 0..2 (top exit)" in done.stdout, done
    return folder / "run"


def test_a_free_run_writes_the_result_of_every_run(free_run):
    found = result(free_run)
    assert found["schedule"] == "free"
    assert [row["exit"] for row in found["chain"]] == [0, 1, 2]
    windows = [(row["first"], row["last"]) for row in found["windows"]]
    assert windows == [(1, 1), (1, 2), (2, 2)]
    for row in found["chain"] + found["windows"]:
        assert 0.1 < row["accuracy"] <= 1
        assert row["params"] > 1000
    assert found["restarts"] == 0
    assert 0 < found["wall_s"] < found["total_s"] < 100
    assert all(0 < row["value"] <= 1 for row in found["busy_fraction"])


def test_a_free_run_counts_what_it_dropped_and_imagined(free_run):
    accounts = result(free_run)["free"]
    assert [row["component"] for row in accounts] == [0, 1, 2]
    for row in accounts:
        assert row.keys() >= COUNTS
        assert (row["starts"], row["gone"], row["failed_saves"]) == (1, False, 0)
    assert accounts[0]["imagined"] == 0  # its input is the data
    assert accounts[2]["alone"] == accounts[2]["dropped_up"] == 0  # nobody is above


def test_a_free_run_logs_what_every_run_logs_and_its_counts(free_run):
    for k in range(3):
        logged = [line for line in lines(free_run, k) if "loss" in line]
        assert [line["step"] for line in logged] == [1, *range(10, 61, 10)]
        assert COUNTS | {"life", "gradient_norm", "lr", "samples_per_s"} <= logged[-1].keys()
        assert logged[-1]["life"] == 0


def test_each_component_keeps_the_last_checkpoints_and_the_last_ones_are_one(free_run):
    manifest = free_run / "checkpoints" / "step-60" / "manifest.json"
    assert json.loads(manifest.read_text())["components"] == 3
    for k in range(3):
        assert saved_steps(free_run, k)[-1] == 60
        assert len(saved_steps(free_run, k)) == 2, "as many as checkpoint.keep says"
    whole = checkpoint.latest(free_run)
    assert whole is not None
    checkpoint.verify(whole)


def test_another_run_begins_from_a_free_run(free_run, tmp_path):
    more = ["schedule=delayed", "steps=80", f"resume={free_run}", "out=next"]
    done = run([*GANG, *more], tmp_path)
    assert done.code == 0, done
    assert result(tmp_path / "next")["first_step"] == 60


def test_a_free_run_that_begins_from_another_has_lives_of_its_own(free_run, tmp_path):
    """They were counted from the other's, so that a fault of the first life never came."""
    done = run([*GANG, "steps=80", f"resume={free_run}", "out=next"], tmp_path)
    assert done.code == 0, done
    assert result(tmp_path / "next")["first_step"] == 60
    logged = [line for k in range(3) for line in lines(tmp_path / "next", k)]
    assert {line["life"] for line in logged if "life" in line} == {0}


def test_a_free_run_begins_from_a_delayed_one(finished, tmp_path):
    more = ["components=2", "steps=120", "checkpoint.every=0", f"resume={finished[0]}", "out=next"]
    done = run([*GANG, *more], tmp_path)
    assert done.code == 0, done
    assert lines(tmp_path / "next", 0)[0]["step"] == 110  # 100 were done
    found = result(tmp_path / "next")
    assert found["first_step"] == 100
    # Those steps were counted as if they had been trained in the time of the last 20.
    assert found["samples_per_s"] == pytest.approx(20 * 4 * 16 / found["wall_s"])


def test_plain_torchrun_runs_free_too(tmp_path):
    command = [*TORCHRUN, "--nproc-per-node=3", "-m", "mach.train", *FREE, "out=run"]
    done = run(command, tmp_path)
    assert done.code == 0, done
    assert len(result(tmp_path / "run")["chain"]) == 3
    assert_none_left(tmp_path)


def test_evaluations_on_the_way_need_nobody_else(tmp_path):
    done = run([*GANG, "eval.every=20", "eval.samples=50", "out=run"], tmp_path)
    assert done.code == 0, done
    for k, key in enumerate(["eval_accuracy", "eval_window_accuracy", "eval_window_accuracy"]):
        evaluated = [line for line in lines(tmp_path / "run", k) if key in line]
        assert [line["step"] for line in evaluated] == [20, 40, 60]
        assert all(0 <= line[key] <= 1 for line in evaluated)


# --- stopping and going on -----------------------------------------------------------------


def test_a_stopped_free_run_is_saved_where_it_was_and_goes_on_from_there(tmp_path):
    endless = [*GANG, "steps=100000", "checkpoint.every=100000", "out=run"]
    logs = [tmp_path / "run" / f"component-{k}.jsonl" for k in range(3)]

    def begun() -> bool:
        return all(log.exists() and log.read_text().count("\n") > 3 for log in logs)

    with Command(endless, tmp_path) as started:
        started.until(begun)
        started.process.send_signal(signal.SIGTERM)
        done = started.wait()
    assert done.code == 143, done
    assert_none_left(tmp_path)
    stopped = [saved_steps(tmp_path / "run", k) for k in range(3)]
    assert all(len(steps) == 1 and steps[0] >= 20 for steps in stopped), stopped

    with Command([*endless, "resume=auto"], tmp_path) as again:
        again.until(lambda: all(_life(log) == 1 for log in logs))
        again.process.send_signal(signal.SIGTERM)
        assert again.wait().code == 143
    for k, log in enumerate(logs):
        later = [line for line in lines(tmp_path / "run", k) if line["life"] == 1]
        assert later[0]["step"] > stopped[k][0], log
    assert_none_left(tmp_path)


def _life(log: Path) -> int | None:
    whole = log.read_text().splitlines()
    try:
        return json.loads(whole[-1]).get("life") if whole else None
    except ValueError:  # half a line
        return None


# --- checkpoints that were lost ------------------------------------------------------------


@pytest.fixture
def a_copy(free_run, tmp_path) -> Path:
    """A finished run that may be changed, without its common last checkpoint."""
    shutil.copytree(free_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-60" / "manifest.json").unlink()
    return tmp_path / "run"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(a_copy):
    (data,) = (a_copy / "checkpoints" / "step-60" / "component-1").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        found = checkpoint.latest_of(a_copy, 1)
    assert found is not None
    assert found.step == 40
    untouched = checkpoint.latest_of(a_copy, 0)
    assert untouched is not None
    assert untouched.step == 60


def test_a_checkpoint_without_its_manifest_never_was(a_copy):
    """What a death in the middle of a save leaves behind."""
    (a_copy / "checkpoints" / "step-60" / "component-2.json").unlink()
    found = checkpoint.latest_of(a_copy, 2)
    assert found is not None
    assert found.step == 40


SAVES = """
import sys
from pathlib import Path
import torch
from clouds import make
from mach import checkpoint
run_dir = Path(sys.argv[1])
for step in (1, 2):
    files = checkpoint.save(run_dir, step, 0, {"weights": torch.full((2**25,), float(step))})
    checkpoint.seal(run_dir, step, 0, files, make(2, schedule="free", delay=1), life=0)
"""
"""128 MiB each: long enough to be killed in the middle of it."""


def test_a_component_killed_in_the_middle_of_a_save_has_the_one_before(tmp_path):
    run_dir = tmp_path / "run"
    writing = run_dir / "checkpoints" / "step-2"
    path = os.pathsep.join(filter(None, sys.path))
    with Command([sys.executable, "-c", SAVES, str(run_dir)], tmp_path, PYTHONPATH=path) as saving:
        saving.until(lambda: any(writing.glob("component-0/*")))
        saving.process.kill()
        assert saving.wait().code == -signal.SIGKILL
    assert not (writing / "component-0.json").exists(), "it was killed too late"
    found = checkpoint.latest_of(run_dir, 0)
    assert found is not None
    assert found.step == 1
    checkpoint.verify(found, 0)

    files = checkpoint.save(run_dir, 2, 0, {"weights": torch.ones(3)})  # by its next life
    checkpoint.seal(run_dir, 2, 0, files, make(2, schedule="free", delay=1), life=1)
    found = checkpoint.latest_of(run_dir, 0)
    assert found is not None
    assert found.step == 2
    assert {f"component-0/{file.name}" for file in writing.glob("component-0/*")} == set(files)


def test_while_a_component_trains_its_checkpoint_before_the_last_stays(tmp_path):
    config = make(1, schedule="free", delay=1, steps=4, checkpoint={"every": 1, "keep": 1})
    left = []
    for step in range(1, 5):
        files = checkpoint.save(tmp_path, step, 0, {"weights": torch.ones(3)})
        checkpoint.seal(tmp_path, step, 0, files, config, life=0)
        left.append(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))
    assert left == [["step-1"], ["step-1", "step-2"], ["step-2", "step-3"], ["step-4"]]


def test_half_a_manifest_is_passed_over(a_copy):
    manifest = a_copy / "checkpoints" / "step-60" / "component-2.json"
    manifest.write_text(manifest.read_text()[:40])
    with pytest.warns(UserWarning, match="expected a manifest"):
        found = checkpoint.latest_of(a_copy, 2)
    assert found is not None
    assert found.step == 40


def test_a_chain_without_students_is_evaluated_on_the_way_where_it_begins(tmp_path):
    """Above that there is nothing to evaluate: what a component is given comes from below."""
    done = run([*GANG, "student=none", "eval.every=20", "out=run"], tmp_path)
    assert done.code == 0, done
    told = [[r for r in lines(tmp_path / "run", k) if "eval_loss" in r] for k in range(3)]
    assert {record["step"] for record in told[0]} == {20, 40, 60}
    assert told[1:] == [[], []]


# --- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own needs root: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return ballast


def test_a_save_that_fails_says_why_and_leaves_the_last_good_one(small_disk, a_chain):
    component, optimizers, config = a_chain
    files = checkpoint.save(small_disk, 1, 0, checkpoint.tensors_of(component, optimizers))
    checkpoint.seal(small_disk, 1, 0, files, config, life=0)
    fill(small_disk)
    with pytest.raises(SaveError, match=r"the checkpoint of step 2 .*: No space left on device"):
        checkpoint.save(small_disk, 2, 0, checkpoint.tensors_of(component, optimizers))
    found = checkpoint.latest_of(small_disk, 0)
    assert found is not None
    assert found.step == 1
    checkpoint.verify(found, 0)


@pytest.mark.parametrize("place", ["", "gone"], ids=["full", "not there"])
def test_what_a_first_save_loads_is_loaded_where_nothing_can_be_written(
    small_disk, monkeypatch, place
):
    """It ended every life that began while the disk was full, and dcp's error is no Exception."""
    fill(small_disk)
    monkeypatch.setattr("tempfile.tempdir", str(small_disk / place))
    checkpoint.warm_up()
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("schedule", ["delayed", "free"])
def test_a_run_needs_no_room_in_the_temporary_folder(small_disk, tmp_path, schedule):
    """The page that is free makes Python take that folder. All fell, and nothing said why."""
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - 4096)
    words = [*SMALL, f"schedule={schedule}", "launch.max_restarts=0", "steps=2", "out=run"]
    done = run([*TRAIN, *words], tmp_path / "here", TMPDIR=str(small_disk))
    assert done.code == 0, done
    assert result(tmp_path / "here" / "run")["steps"] == 2
    assert done.stderr == "", done


def test_what_finds_no_room_leaves_nothing_of_itself(small_disk):
    """Half a manifest stayed under a name of the process's own, and took the last room."""
    path = small_disk / "manifest.json"
    write_atomically(path, "whole")
    fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, "x" * 10_000)
    assert path.read_text() == "whole"
    assert {path.name for path in small_disk.iterdir()} == {"manifest.json", "ballast"}


@pytest.fixture
def a_chain():
    """Component 0 of a small chain, its optimizers, and the config."""
    config = make(2, schedule="free", delay=1)
    assembly = Assembly(config, clouds().task)
    component, optimizers = assembly.component(0, torch.device("cpu"))
    return component, optimizers, config


def test_a_log_is_cut_back_where_there_is_no_room_for_another(small_disk):
    """Each life that fell there once spent a restart."""
    log = small_disk / "component-0.jsonl"
    lines = [f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, 2001)]
    log.write_text("".join(lines) + '{"step": 2001, "lo')
    fill(small_disk)
    JsonLines(log, resume_step=1500).close()
    assert log.read_text() == "".join(lines[:1500])
    assert {path.name for path in small_disk.iterdir()} == {log.name, "ballast"}


@pytest.mark.parametrize(
    "how",
    [
        ["schedule=free", "delay=1", "launch=gang"],
        ["schedule=free", "delay=1", "launch=supervised", "launch.max_restarts=0"],
        ["launch=gang"],
        ["launch=inprocess"],
    ],
    ids=" ".join,
)
def test_a_run_whose_last_checkpoint_finds_no_room_fails_and_says_so(small_disk, tmp_path, how):
    run_dir, logs = small_disk / "run", tmp_path / "logs"
    run_dir.mkdir()
    logs.mkdir()
    (run_dir / "logs").symlink_to(logs)
    ballast = fill(small_disk)
    os.truncate(ballast, ballast.stat().st_size - (256 << 10))  # enough for all but the weights
    wide = ["components=2", "model.width=256", "steps=10"]
    done = run([*TRAIN, *SMALL, *how, *wide, f"out={run_dir}"], tmp_path)
    assert done.code == 1, done
    assert "the checkpoint of the last step, 10, could not be written" in done.stderr, done
    assert not (run_dir / "result.json").exists()
    # The checkpoint of one fills the disk while the other may still write its log, not both ways.
    told = [Follower(path).read() for path in run_dir.glob("component-*.jsonl")]
    assert any("loss" in line for log in told for line in log), "what was learnt is told"
    assert_none_left(tmp_path)


def test_training_goes_on_while_the_disk_is_full(small_disk, tmp_path):
    run_dir, logs = small_disk / "run", tmp_path / "logs"
    run_dir.mkdir()
    logs.mkdir()
    (run_dir / "logs").symlink_to(logs)  # what is printed on a full disk is lost, too
    command = [*GANG, "steps=600", "checkpoint.every=20", "report.every=10", f"out={run_dir}"]
    failed = "could not be written: No space left on device. Training goes on"

    def complained() -> int:
        printed = [path.read_text() for path in logs.rglob("stderr.log")]
        return sum(failed in text for text in printed)

    with Command(command, tmp_path / "here") as started:
        started.until(lambda: all(saved_steps(run_dir, k) for k in range(3)))
        ballast = fill(small_disk)
        started.until(lambda: complained() == 3)
        kept = [checkpoint.latest_of(run_dir, k) for k in range(3)]
        ballast.unlink()
        done = started.wait()
    assert done.code == 0, done
    assert all(one is not None for one in kept)
    assert all(row["failed_saves"] > 0 for row in result(run_dir)["free"])
    assert len(stored_tensors(run_dir / "checkpoints" / "step-600")) > 10


def test_training_goes_on_when_what_it_prints_finds_no_room(small_disk, tmp_path):
    """The first complaint that did not fit in a component's log ended the component, and the run
    with it; in a test whose logs were on another disk nobody saw it."""
    run_dir = small_disk / "run"
    command = [*GANG, "steps=100000", "checkpoint.every=1", f"out={run_dir}"]

    def tried() -> int:
        """Saves that were begun: each leaves at least a folder."""
        fill(small_disk)  # what checkpoints that are dropped leave, too
        return len(list((run_dir / "checkpoints").glob("step-*")))

    with Command(command, tmp_path / "here") as started:
        started.until(lambda: all(saved_steps(run_dir, k) for k in range(3)))
        before = tried()
        started.until(lambda: tried() > before + 40)
        fill(small_disk).unlink()
        started.process.send_signal(signal.SIGINT)
        done = started.wait()
    assert done.code == 130, done
    assert max(saved_steps(run_dir, k)[-1] for k in range(3)) > 40
    assert_none_left(tmp_path)


TELLING = """
from pathlib import Path
from mach.launcher.journal import Journal
from mach.launcher.reports import Event

Journal(Path("events.jsonl")).tell(Event(0, "died", "component 0 died"))
print("goes on")
"""


def test_a_launcher_whose_words_find_no_room_goes_on(tmp_path):
    command = [sys.executable, "-c", TELLING]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60
        )
    assert done.stdout == "goes on\n"
