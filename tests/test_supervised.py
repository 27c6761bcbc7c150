"""Runs whose components are each watched and restarted alone, as a person starts and hurts them."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mach.launcher.agent import _start_method
from mach.launcher.compose import compose
from mach.report.jsonl import Follower, parse
from runs import SMALL, result
from spawn import TRAIN, Command, assert_none_left, kill, rank_of, run, until

pytestmark = pytest.mark.timeout(400)

FREE = [*SMALL, "components=3", "schedule=free", "out=run", "report.every=1"]
RUN = [*FREE, "steps=200", "checkpoint.every=20", "faults.pace_ms=5"]
"""Seconds of training: long enough to be hurt, and to recover."""
ENDLESS = [*FREE, "steps=100000", "checkpoint.every=100000", "faults.pace_ms=5"]
"""Ends when the test ends it; saves only then."""
ALL = (0, 1, 2)


def steps_of(folder: Path) -> list[int]:
    """The last step that each component has logged; 0 before the first."""
    return [_last_step(folder / "run" / f"component-{k}.jsonl") for k in ALL]


def _last_step(log: Path) -> int:
    try:
        with log.open("rb") as file:  # its end: it is looked at often, and may be long
            file.seek(max(0, log.stat().st_size - 65536))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    # A line is sometimes seen before all of it is written: that is left for later.
    records = (parse(line) for line in reversed(lines) if line.endswith(b"\n"))
    return next((record["step"] for record in records if record is not None), 0)


def saved_steps(folder: Path, k: int) -> list[int]:
    """Steps at which component k has saved by itself."""
    manifests = (folder / "run" / "checkpoints").glob(f"step-*/component-{k}.json")
    return sorted(json.loads(path.read_text())["step"] for path in manifests)


def has_begun(folder: Path) -> bool:
    return min(steps_of(folder)) >= 25


def events(folder: Path, kind: str) -> list[dict]:
    """What the supervisor has told of this kind."""
    told = Follower(folder / "run" / "events.jsonl").read()
    return [line for line in told if line["event"] == kind]


def tree(started: Command) -> list[psutil.Process]:
    """All that a command has started: nursery, agents and components."""
    return started.process.children(recursive=True)


def store_of(folder: Path) -> str:
    """The option that tells component 0 where the store is."""
    return next(a for a in rank_of(folder, 0).cmdline() if a.startswith("--store="))


def assert_ended(processes: list[psutil.Process], within_s: float = 10.0) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    assert not alive, f"left behind: {alive}"


# --- all is well -----------------------------------------------------------------------------


def test_one_that_waits_for_wandb_at_its_end_does_not_hang(tmp_path):
    """It was ended and begun again, which waited as long: in the end a run with a result failed."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # lets wandb in, and never answers
        wandb = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
            "WANDB_INIT_TIMEOUT": "60",
        }
        patience = ["launch.hang_s=8", "launch.max_restarts=0", "report.finish_timeout_s=12"]
        command = [*TRAIN, *FREE, "steps=20", "report.wandb=online", *patience]
        done = run(command, tmp_path, HOME=str(tmp_path), **wandb)
    assert (done.code, done.stderr) == (0, ""), done
    assert done.duration_s > 12.0  # it did wait
    assert result(tmp_path / "run")["restarts"] == 0
    assert_none_left(tmp_path)


# --- a component dies ------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ALL)
def test_a_component_that_is_killed_comes_back_while_the_others_go_on(tmp_path, victim):
    others = [k for k in ALL if k != victim]
    with Command([*TRAIN, *RUN], tmp_path) as started:
        started.until(lambda: has_begun(tmp_path))
        processes = {k: rank_of(tmp_path, k) for k in ALL}
        before = steps_of(tmp_path)
        kill(processes[victim])
        started.until(lambda: bool(events(tmp_path, "back")))
        after = steps_of(tmp_path)
        assert all(after[k] > before[k] for k in others), (before, after)
        assert all(processes[k].is_running() for k in others)
        done = started.wait()
    assert done.code == 0, done
    assert result(tmp_path / "run")["restarts"] == 1
    back = r"is back in life 1 after \d+\.\d s at step \d+"
    died = rf"component {victim} died \(SIGKILL\); restart 1 of 10"
    assert re.fullmatch(rf"mach: {died}\nmach: component {victim} {back}\n", done.stderr), done
    step = int(re.search(r"at step (\d+)", events(tmp_path, "back")[0]["text"])[1])
    assert step >= 20  # from its own last checkpoint, not from the beginning
    assert steps_of(tmp_path) == [200] * 3
    assert_none_left(tmp_path)


def test_two_neighbours_that_are_killed_at_once_both_come_back(tmp_path):
    with Command([*TRAIN, *RUN], tmp_path) as started:
        started.until(lambda: has_begun(tmp_path))
        for k in (1, 2):
            kill(rank_of(tmp_path, k))
        done = started.wait()
    assert done.code == 0, done
    assert sorted(event["component"] for event in events(tmp_path, "died")) == [1, 2]
    assert sorted(event["component"] for event in events(tmp_path, "back")) == [1, 2]
    assert result(tmp_path / "run")["restarts"] == 2
    assert_none_left(tmp_path)


HOPELESS = [
    *FREE,
    "steps=40",
    "launch.max_restarts=2",
    "launch.backoff_s=0.1",
    "faults.kind=kill",
    "faults.component=1",
    "faults.step=0",
    "faults.lives=100",
]


def test_a_component_that_dies_at_every_start_stops_the_run_when_its_restarts_are_used_up(tmp_path):
    done = run([*TRAIN, *HOPELESS], tmp_path)
    assert done.code == 1, done
    told = done.stderr.splitlines()
    assert told[0] == "mach: component 1 died (SIGKILL); restart 1 of 2", done
    assert told[1] == "mach: component 1 died (SIGKILL); restart 2 of 2", done
    assert "has no restart left; the run stops" in told[2]
    assert told[3].startswith("mach: component 1 of 3: was ended by SIGKILL. Logs: run/logs."), done
    assert not (tmp_path / "run/result.json").exists()
    assert_none_left(tmp_path)


def test_a_run_can_go_on_without_a_component_that_has_no_restart_left(tmp_path):
    done = run([*TRAIN, *HOPELESS, "launch.on_exhausted=continue"], tmp_path)
    assert done.code == 0, done
    assert "has no restart left; the run goes on without it" in done.stderr, done
    assert steps_of(tmp_path) == [40, 0, 40]
    assert len(result(tmp_path / "run")["chain"]) == 3
    assert_none_left(tmp_path)


def test_a_component_that_hangs_is_found_and_restarted(tmp_path):
    # Longer than a first save: on a busy machine its imports alone take seconds.
    with Command([*TRAIN, *RUN, "launch.hang_s=10"], tmp_path) as started:
        started.until(lambda: has_begun(tmp_path))
        rank_of(tmp_path, 1).suspend()
        suspended_s = time.monotonic()
        started.until(lambda: bool(events(tmp_path, "hung")))
        assert 9 < time.monotonic() - suspended_s < 12
        done = started.wait()
    assert done.code == 0, done
    (hung,) = events(tmp_path, "hung")
    assert re.match("component 1 did nothing for 10 s at step ", hung["text"])
    assert [event["component"] for event in events(tmp_path, "back")] == [1]
    assert result(tmp_path / "run")["restarts"] == 1
    assert_none_left(tmp_path)


# --- the launcher is told to stop, or dies ---------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "mach: stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_ends_all_of_it_and_the_run_can_go_on(tmp_path, number, code, says):
    command = [*TRAIN, *RUN, "checkpoint.every=100000"]
    with Command(command, tmp_path) as started:
        started.until(lambda: has_begun(tmp_path))
        processes = tree(started)
        started.process.send_signal(number)
        done = started.wait(30)
        assert not [process for process in processes if process.is_running()]
    assert (done.code, done.stderr) == (code, says), done
    reached = steps_of(tmp_path)
    assert [saved_steps(tmp_path, k) for k in ALL] == [[step] for step in reached]
    done = run([*command, "resume=auto"], tmp_path)
    assert done.code == 0, done
    assert result(tmp_path / "run")["restarts"] == 0
    assert steps_of(tmp_path) == [200] * 3
    assert_none_left(tmp_path)


def test_when_the_launcher_is_killed_every_component_saves_and_ends(tmp_path):
    with Command([*TRAIN, *RUN, "checkpoint.every=100000"], tmp_path) as started:
        started.until(lambda: has_begun(tmp_path))
        processes = tree(started)
        assert len(processes) == 7  # the nursery, agents, components
        kill(started.process)
        assert started.wait().code == -signal.SIGKILL
        assert_ended(processes, within_s=30)
        reached = steps_of(tmp_path)
        assert min(reached) >= 25
        assert [saved_steps(tmp_path, k) for k in ALL] == [[step] for step in reached]
        done = run([*TRAIN, *RUN, "checkpoint.every=100000", "resume=auto"], tmp_path)
    assert done.code == 0, done
    assert steps_of(tmp_path) == [200] * 3
    assert_none_left(tmp_path)


def test_the_folder_of_a_launcher_that_was_killed_is_taken_until_its_components_have_saved(
    tmp_path,
):
    with idle(tmp_path, "fine,slow") as started:
        started.until(
            lambda: all((tmp_path / f"run/{one}").exists() for one in ("fine-0", "slow-1"))
        )
        processes = tree(started)
        kill(started.process)
        with (tmp_path / "run/launcher.lock").open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert not (tmp_path / "run/saved-1").exists()
            assert_ended(processes)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert (tmp_path / "run/saved-1").exists()


# --- who else may come -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A run that goes on until these tests are over, and its folder."""
    folder = tmp_path_factory.mktemp("endless")
    with Command([*TRAIN, *ENDLESS], folder) as started:
        started.until(lambda: has_begun(folder))
        yield started, folder


def test_everything_listens_on_loopback(endless):
    started, _ = endless
    listening = {
        connection.laddr.ip
        for process in [started.process, *tree(started)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("wrong", ["config", "run"])
def test_a_stranger_is_refused_and_disturbs_nobody(endless, tmp_path, wrong):
    started, folder = endless
    store = store_of(folder)
    config = (folder / "run/config.yaml").read_text()
    if wrong == "config":
        config = config.replace("seed: 0", "seed: 1")
    else:
        store = store[:-1] + "x"
    (tmp_path / "config.yaml").write_text(config)
    options = ["--component=0", f"--run={tmp_path}", store]
    done = run([sys.executable, "-m", "mach.train", *options], tmp_path, deadline_s=30)
    assert done.code == 2, done
    assert f"has {wrong} " in done.stderr, done
    assert "Traceback" not in done.stderr, done
    assert not events(folder, "died")
    before = steps_of(folder)
    started.until(
        lambda: all(now > then for now, then in zip(steps_of(folder), before, strict=True))
    )


# --- its parts, with components that train nothing -------------------------------------------

STANDIN = [sys.executable, str(Path(__file__).with_name("standin.py")), "train"]
IDLE = [*FREE, "components=2"]


def idle(folder: Path, kinds: str, *overrides: str) -> Command:
    return Command([*STANDIN, *IDLE, *overrides], folder, STANDIN=kinds)


@pytest.mark.parametrize(
    ("gpus", "device", "starts"),
    [(0, "auto", "fork"), (1, "auto", "spawn"), (1, "cpu", "fork"), (1, "cuda", "spawn")],
)
def test_with_a_gpu_a_component_is_no_fork(monkeypatch, gpus, device, starts):
    """CUDA does not outlive one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    config = compose(["schedule=free", f"launch.device={device}"])
    assert _start_method(config) == starts


def test_a_second_launcher_on_the_same_folder_is_refused(tmp_path):
    with idle(tmp_path, "fine,fine") as started:
        started.until(lambda: rank_of(tmp_path, 1) is not None)
        # In a folder of its own: what a command leaves there is ended with it.
        done = run([*TRAIN, *IDLE, "out=../run", "resume=auto"], tmp_path / "second")
        assert done.code == 2, done
        assert f"process {started.process.pid} on " in done.stderr, done
        (tmp_path / "run/finish").touch()
        assert started.wait().code == 0
    assert_none_left(tmp_path)


def test_a_refusal_ends_the_run_at_once_and_is_not_tried_again(tmp_path):
    with idle(tmp_path, "fine,wrong") as started:
        done = started.wait()
    assert done.code == 2, done
    assert done.stderr.startswith("mach: component 1 of 2: this will not do. Logs: run/logs"), done
    assert len(done.stderr.splitlines()) == 1, done
    assert_none_left(tmp_path)


def test_a_run_whose_result_nobody_has_written_does_not_say_that_all_is_well(tmp_path):
    with idle(tmp_path, "last,fine", "launch.max_restarts=0") as started:
        started.until(lambda: (tmp_path / "run/fine-1").exists())
        started.until(lambda: rank_of(tmp_path, 0) is not None)
        (tmp_path / "run/events.jsonl").touch()
        (tmp_path / "run/finish").touch()
        done = started.wait()
    assert done.code == 1, done
    assert "component 0 ended after its last step (ended with exit code 1)" in done.stderr, done
    assert "no component has written run/result.json. Logs: run/logs" in done.stderr, done
    assert_none_left(tmp_path)


def test_a_second_ctrl_c_does_not_wait_for_a_component_that_is_deaf(tmp_path):
    with idle(tmp_path, "fine,deaf") as started:
        started.until(lambda: (tmp_path / "run/deaf-1").exists())
        started.until(lambda: (tmp_path / "run/fine-0").exists())
        processes = tree(started)
        started.process.send_signal(signal.SIGINT)
        started.until(lambda: (tmp_path / "run/saved-0").exists())
        started.process.send_signal(signal.SIGINT)
        done = started.wait(10)
        assert done.code == 130, done
        assert_ended(processes, within_s=1)


def test_an_agent_that_is_killed_takes_its_component_along_and_the_run_is_told(tmp_path):
    with idle(tmp_path, "fine,fine") as started:
        started.until(lambda: (tmp_path / "run/fine-1").exists())
        kill(rank_of(tmp_path, 1).parent())
        done = started.wait(30)
    assert done.code == 1, done
    assert "component 1 of 2: its agent ended without a word (-9)" in done.stderr, done
    assert (tmp_path / "run/saved-1").exists()
    assert_none_left(tmp_path)


def test_what_slurm_starts_is_not_started_here(tmp_path):
    done = run([*TRAIN, *IDLE, "launch=slurm"], tmp_path)
    assert done.code == 2, done
    assert "See launch/README.md" in done.stderr, done
    assert not (tmp_path / "run").exists()


def test_a_bind_that_is_not_of_this_machine_is_refused(tmp_path):
    done = run([*TRAIN, *IDLE, "launch.bind=192.0.2.7"], tmp_path)
    assert done.code == 2, done
    assert "192.0.2.7" in done.stderr, done
    assert "Traceback" not in done.stderr, done


def test_the_store_listens_where_it_is_told_to(tmp_path):
    with idle(tmp_path, "fine,fine", "launch.bind=lo") as started:
        started.until(lambda: (tmp_path / "run/fine-0").exists())
        store = store_of(tmp_path)
        assert store.startswith("--store=127.0.0.1:")
        (tmp_path / "run/finish").touch()
        assert started.wait().code == 0


def test_nothing_is_left_when_the_launcher_is_killed_before_a_component_has_begun(tmp_path):
    with Command([*TRAIN, *ENDLESS], tmp_path) as started:
        started.until(lambda: rank_of(tmp_path, 0) is not None)
        processes = tree(started)
        kill(started.process)
        assert_ended(processes, within_s=30)
    until(lambda: not rank_of(tmp_path, 0), 5)
    assert_none_left(tmp_path)
