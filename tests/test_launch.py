"""Runs as a person starts, watches and stops them."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from mach import train
from mach.configfile import from_yaml, load, to_yaml
from mach.errors import ChannelTimeoutError, ConfigError, RunFolderError
from mach.launcher import preflight
from mach.launcher.compose import compose
from mach.launcher.failure import fall_of
from mach.rank import Rank
from mach.sweepfolder import enter
from runs import LONG, SMALL, assert_same_tensors, checkpoint_steps, digests, lines, result, scores
from spawn import (
    MACH,
    TORCHRUN,
    TRAIN,
    Command,
    Done,
    assert_none_left,
    kill,
    processes_of,
    rank_of,
    run,
)

pytestmark = pytest.mark.timeout(400)

ENDLESS = [*SMALL, "steps=100000", "checkpoint.every=20", "report.every=10", "out=run"]
"""Ends when the test ends it."""


def begun(folder: Path) -> bool:
    """Whether the run in `folder` has saved its first checkpoint."""
    return bool(checkpoint_steps(folder / "run"))


# --- what a run leaves ---------------------------------------------------------------------


def test_a_run_writes_the_result_that_the_design_promises(finished):
    found = result(finished[0])
    expected = {
        "components": 2,
        "schedule": "delayed",
        "delay": 1,
        "accumulate": 4,
        "seed": 0,
        "microbatches": 400,
        "samples": 6400,
        "restarts": 0,
    }
    assert expected.items() <= found.items()
    assert 0 < found["wall_s"] <= found["total_s"] < 120
    assert found["samples_per_s"] == pytest.approx(6400 / found["wall_s"])
    assert [row["exit"] for row in found["chain"]] == [0, 1]
    assert [(row["first"], row["last"]) for row in found["windows"]] == [(1, 1)]
    for row in found["chain"] + found["windows"]:
        assert 0.1 < row["accuracy"] <= 1
        assert 0 < row["loss"] < 3
        assert row["params"] > 1000
        assert row["flops"] > 1000
    stale = found["staleness_steps"]
    assert [row["component"] for row in stale] == [0, 1]
    assert 0 < stale[0]["mean"] <= 0.5  # 2 (K-1-k) d / M; less after each checkpoint
    assert stale[0]["max"] == 1  # the same, rounded up
    assert (stale[1]["mean"], stale[1]["max"]) == (0, 0)
    assert [row["component"] for row in found["busy_fraction"]] == [0, 1]
    assert all(0 < row["value"] <= 1 for row in found["busy_fraction"])
    assert re.fullmatch(r"\d+\.\d+\S*", found["torch"])
    assert found["git"] is None or re.fullmatch("[0-9a-f]{40}", found["git"])


def test_a_run_prints_its_result_as_a_table(finished):
    run_dir, done = finished
    for words in ("chain 0..0", "chain 0..1 (top exit)", "window 1..1", "accuracy %"):
        assert words in done.stdout, done
    assert f"{100 * result(run_dir)['chain'][1]['accuracy']:.2f}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"Result: {run_dir / 'result.json'}"
    assert done.stderr == ""


def test_every_component_logs_where_its_time_and_messages_went(finished):
    for k in (0, 1):
        logged = [line for line in lines(finished[0], k) if "loss" in line]
        assert [line["step"] for line in logged] == [1, *range(10, 101, 10)]
        for line in logged:
            assert line["microbatch"] == 4 * line["step"]
            assert line["samples"] == 64 * line["step"]
            for key in ("wall_s", "loss", "gradient_norm", "lr"):
                assert line[key] > 0, key
            assert 0 <= line["busy_fraction"] <= 1
            assert (line["student_loss"] is None) == (k == 0)
            assert 0 <= line["staleness_steps"] <= (0.5 if k == 0 else 0)
            assert line["wait_parent_ms" if k == 0 else "wait_child_ms"] >= 0
            assert line["wait_child_ms" if k == 0 else "wait_parent_ms"] == 0
            assert (line["bytes_up"] > 0) == (k == 0)
            assert (line["bytes_down"] > 0) == (k == 1)
        assert logged[0]["samples_per_s"] is None  # nothing to measure it against
        assert all(line["samples_per_s"] > 0 for line in logged[1:])
        last = lines(finished[0], k)[-1]
        assert last["step"] == 100
        assert last["eval_accuracy"] == result(finished[0])["chain"][k]["accuracy"]


def test_the_config_that_was_saved_is_the_config_that_ran(finished):
    run_dir, _ = finished
    saved = load(run_dir / "config.yaml")
    assert saved == compose([*LONG, f"out={run_dir}"])
    assert from_yaml(to_yaml(saved)) == saved


def test_a_run_needs_no_open_streams(tmp_path):
    """What was opened next took their numbers, and each component fell over them, wordless."""
    closed = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash"]
    done = run([*closed, *TRAIN, *SMALL, "components=2", "steps=2", "out=run"], tmp_path)
    assert done.code == 0, done
    assert result(tmp_path / "run")["steps"] == 2
    assert_none_left(tmp_path)


def test_a_working_directory_that_is_gone_is_said(tmp_path):
    gone = ["bash", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "bash"]
    done = run([*gone, *TRAIN, *SMALL], tmp_path)
    assert done.code == 2, done
    assert done.stderr.splitlines()[-1].startswith("mach: the working directory is gone"), done
    assert "Traceback" not in done.stderr


def test_the_last_two_checkpoints_are_kept(finished):
    assert checkpoint_steps(finished[0]) == [80, 100]
    assert sorted(p.name for p in (finished[0] / "checkpoints").iterdir()) == [
        "step-100",
        "step-80",
    ]


def test_torchrun_gives_the_same_weights_and_the_same_result(tmp_path, finished):
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "mach.train"]
    done = run([*command, *LONG, "out=run"], tmp_path, OMP_NUM_THREADS="1")
    assert done.code == 0, done
    assert_same_tensors(tmp_path / "run/checkpoints/step-100", finished[0] / "checkpoints/step-100")
    assert scores(tmp_path / "run") == scores(finished[0])
    assert load(tmp_path / "run" / "config.yaml") == compose([*LONG, "out=run"])
    assert_none_left(tmp_path)


GROUP = [*TORCHRUN, "--nproc-per-node=2", "-m", "mach.train"]
ONE = [*SMALL, "components=1", "steps=2"]
"""Starts fastest: one process."""


def of_mach(done: Done) -> list[str]:
    """What mach itself says. torchrun adds a report and a traceback of its own, and ends with 1."""
    assert not re.search(r"mach/\w+\.py", done.stderr), done
    return [line for line in done.stderr.splitlines() if line.startswith("mach: ")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["resume=auto"], "resume=auto: expected the folder of the run that goes on; got none"),
        (["out=sweep"], "out=sweep: expected a folder for a run, got one that holds a sweep"),
        (["delay=-1"], "delay: expected 0 or more; got -1"),
    ],
)
def test_torchrun_refuses_what_mach_train_refuses(tmp_path, words, says):
    enter(tmp_path / "sweep", 0, ["seed=0"], resume=False)
    done = run([*GROUP, *SMALL, *words], tmp_path)
    assert done.code == 1, done
    (said,) = of_mach(done)
    assert said.startswith(f"mach: component 0: {says}"), done
    assert not (tmp_path / "runs").exists()
    assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["0"]
    assert_none_left(tmp_path)


def test_under_torchrun_a_run_that_has_ended_keeps_its_result(tmp_path, finished):
    """It was written anew once: nothing trained, in no time."""
    shutil.copytree(finished[0], tmp_path / "run")
    before = digests(tmp_path / "run")
    done = run([*GROUP, *LONG, "out=run", "resume=auto"], tmp_path)
    assert done.code == 0, done
    assert done.stdout.splitlines()[-1] == "Result: run/result.json"
    assert digests(tmp_path / "run") == before
    assert_none_left(tmp_path)


def test_torchrun_that_starts_a_refused_run_again_leaves_the_other_run_alone(tmp_path):
    """The second start trained the run that the first one had been refused for, and ended well."""
    assert run([*TRAIN, *ONE, "launch=inprocess", "out=run"], tmp_path).code == 0
    before = digests(tmp_path / "run")
    again = [*TORCHRUN, "--nproc-per-node=1", "--max-restarts=1", "-m", "mach.train"]
    done = run([*again, *ONE, "steps=3", "out=run"], tmp_path)
    assert done.code == 1, done
    refused = "mach: component 0: out=run: expected a folder without a run"
    assert [line.partition(", got")[0] for line in of_mach(done)] == [refused] * 2, done
    assert digests(tmp_path / "run") == before
    assert_none_left(tmp_path)


def test_under_torchrun_nobody_else_runs_in_the_folder(tmp_path):
    with Command([*GROUP, *ENDLESS], tmp_path) as started:
        started.until(lambda: begun(tmp_path))
        holder = rank_of(tmp_path, 0).pid
        says = f"expected a folder that nobody runs in, got one that process {holder} on"
        alone = [*TORCHRUN, "--standalone", *GROUP[len(TORCHRUN) :]]  # at a port of its own
        for command in (TRAIN, alone):
            words = [*ENDLESS[:-1], f"out={tmp_path / 'run'}", "resume=auto"]
            done = run([*command, *words], tmp_path / "beside")
            assert done.code in (1, 2), done
            assert says in of_mach(done)[0], done
        assert rank_of(tmp_path, 0).pid == holder
    assert_none_left(tmp_path)


def test_a_rank_waits_longer_for_component_0_than_for_the_others_to_come(monkeypatch):
    """It fetches the data: for longer than the store has patience, which ended in a traceback."""
    monkeypatch.setattr(train, "_AGREE_S", 0.1, raising=False)
    store = dist.HashStore()
    store.set_timeout(timedelta(milliseconds=10))
    rank = Rank(1, 2, 1, 2, 0, "test", store, "here")
    says = r"from component 0 within 0\.1 s; got none"
    with pytest.raises(ChannelTimeoutError, match=says), ExitStack() as held:
        train._agree(rank, Path("run"), [], held)


# --- sweeps --------------------------------------------------------------------------------


def test_a_sweep_gives_every_job_a_folder_of_its_own(tmp_path):
    done = run([*TRAIN, "-m", *ONE, "seed=0,1"], tmp_path)
    assert done.code == 0, done
    (sweep,) = (tmp_path / "runs").iterdir()
    assert [result(sweep / job)["seed"] for job in ("0", "1")] == [0, 1]
    assert_none_left(tmp_path)


def test_a_sweep_goes_on_after_a_job_that_failed_and_reports_it(tmp_path):
    done = run([*TRAIN, "-m", *ONE, "delay=-1,1"], tmp_path)
    assert done.code == 1, done
    (sweep,) = (tmp_path / "runs").iterdir()
    assert [path.parent.name for path in sweep.glob("*/result.json")] == ["1"]
    assert result(sweep / "1")["delay"] == 1
    assert "mach: delay: expected 0 or more; got -1" in done.stderr, done
    assert re.search(r"mach: job 0 failed: .*delay=-1", done.stderr), done
    assert "Traceback" not in done.stderr, done
    assert_none_left(tmp_path)


# --- while it runs, and when it is stopped -------------------------------------------------


def test_a_run_on_cpu_sees_no_gpu(tmp_path):
    """CUDA does not outlive a fork, also where nothing is computed on a GPU."""
    with Command([*TRAIN, *LONG, "steps=100000", "out=run"], tmp_path) as started:
        started.until(lambda: rank_of(tmp_path, 1) is not None)
        assert rank_of(tmp_path, 1).environ()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "mach: stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "")],
)
def test_a_run_can_be_found_while_it_runs_and_a_signal_ends_all_of_it(tmp_path, number, code, says):
    with Command([*TRAIN, *ENDLESS], tmp_path) as started:
        started.until(lambda: begun(tmp_path))
        found = processes_of(tmp_path)
        names = ["mach-0", "mach-1", "mach-agent-0", "mach-nursery"]
        assert sorted(process.name() for process in found) == names
        for process in found:
            assert process.environ()["MACH_RUN_DIR"] == "run"
            assert process.cmdline()[1:4] == ["-m", "mach.train", "--run=run"]
        started.process.send_signal(number)
        done = started.wait(30)
    assert done.code == code, done
    assert done.stderr == says, done
    assert_none_left(tmp_path)


@pytest.mark.parametrize("moment", ["importing", "training"])
def test_no_component_outlives_a_launcher_that_was_killed(tmp_path, moment):
    """Seconds of imports come before training; in both times nobody must be orphaned."""
    moments = {
        "importing": lambda: len(processes_of(tmp_path)) == 1,
        "training": lambda: begun(tmp_path),
    }
    with Command([*TRAIN, *ENDLESS], tmp_path) as started:
        started.until(moments[moment])
        ranks = processes_of(tmp_path)
        kill(started.process)
        assert started.wait().code == -signal.SIGKILL
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert not alive
    assert_none_left(tmp_path)


def test_a_component_that_is_killed_restarts_the_group_from_the_last_checkpoint(tmp_path, finished):
    with Command([*TRAIN, *LONG, "out=run", "launch.max_restarts=1"], tmp_path) as started:
        started.until(lambda: begun(tmp_path))
        kill(rank_of(tmp_path, 0))
        done = started.wait()
    assert done.code == 0, done
    found = result(tmp_path / "run")
    assert found["restarts"] == 1
    assert found["first_step"] >= 20
    assert_same_tensors(tmp_path / "run/checkpoints/step-100", finished[0] / "checkpoints/step-100")
    assert scores(tmp_path / "run")[:2] == scores(finished[0])[:2]
    for k in (0, 1):
        steps = [line["step"] for line in lines(tmp_path / "run", k) if "loss" in line]
        assert sorted(set(steps)) == steps
    assert_none_left(tmp_path)


HASTY = """
import os, signal, sys
from mach.train import _tell

class Handler:
    def record_exception(self, error):
        with open("error.json", "w") as file:
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun's agent does when another has fallen
            file.write(str(error))

_tell(Handler(), ValueError("whole"))
print(signal.getsignal(signal.SIGTERM).name)
"""


def test_a_rank_that_is_ended_while_it_tells_why_it_fell_tells_all_of_it(tmp_path):
    done = run([sys.executable, "-c", HASTY], tmp_path)
    assert (done.code, done.stdout) == (0, "SIG_DFL\n"), done
    assert (tmp_path / "error.json").read_text() == "whole"


CRAMPED = """
import resource
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from mach.train import _tell

resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))  # no room: as on a full disk
_tell(get_error_handler(), ValueError("too long"))
"""


def test_a_rank_with_no_room_to_tell_why_it_fell_tells_nothing(tmp_path):
    """Half a word ended the agent that read it, and with it the run, restarts left or not."""
    word = tmp_path / "error.json"
    done = run([sys.executable, "-c", CRAMPED], tmp_path, TORCHELASTIC_ERROR_FILE=str(word))
    assert done.code == 0, done
    assert not word.exists()
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(word))
    assert fall_of(0, failure).short == "ended with exit code 1"


def test_of_two_launchers_that_look_at_a_folder_at_once_one_gets_it(tmp_path, monkeypatch):
    """Both found it free; who came last wrote its config over the other's, whose run it became."""
    first, second = (compose([*SMALL, f"seed={seed}"]) for seed in (1, 2))
    prepare = preflight.prepare

    def overtaken(config, places):
        monkeypatch.undo()
        preflight.preflight(first, tmp_path / "run", places)
        return prepare(config, places)

    monkeypatch.setattr(preflight, "prepare", overtaken)
    with pytest.raises(RunFolderError, match="got one that holds a run"):
        preflight.preflight(second, tmp_path / "run", 2)
    assert load(tmp_path / "run/config.yaml").seed == 1


@pytest.mark.parametrize("how", ["gang", "inprocess"])
@pytest.mark.parametrize("bind", ["192.0.2.7", "nosuch0"])
def test_a_bind_that_is_not_of_this_machine_is_refused_before_the_folder_is_taken(
    tmp_path, how, bind
):
    """Components of a gang fell over it, and one process did not look."""
    config = compose([*SMALL, f"launch={how}", f"launch.bind={bind}"])
    with pytest.raises(ConfigError, match=f"to listen on, got '{bind}'"):
        preflight.preflight(config, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


# --- the command itself --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], r"mach \d+\.\d+"),
        (["--help"], "mach train --help"),
        (["train", "--help"], "components"),
        (["plan", "--help"], "how stale"),
        (["train", "--cfg", "job"], "microbatch_size: 16"),
        (["train", "delay=-1"], "expected 0 or more"),
    ],
)
def test_a_question_is_answered_without_importing_torch(tmp_path, arguments, says):
    probe = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = {['mach', *arguments]!r}\n"
        "from mach.cli import main\n"
        "main()\n"
    )
    done = run([sys.executable, "-c", probe], tmp_path, deadline_s=30)
    assert re.search(says, done.stdout + done.stderr), done
    assert done.stderr.splitlines()[-1] == "False", done


def test_a_rank_whose_store_has_gone_says_so(tmp_path):
    """As when the machine that hosts it is switched off; it was a traceback."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    who = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    command = [sys.executable, "-m", "mach.train", "components=2", "out=run"]
    at = f"127.0.0.1:{store.port}"
    with Command(command, tmp_path, **where, **agent, **who) as started:
        store.wait(["mach/call/1"], timedelta(seconds=60))  # it waits for rank 0
        del store
        done = started.wait(60)
    assert done.code == 1, done
    said = f"mach: component 1: the run's store at {at}: expected an answer, got none. "
    assert said in done.stderr, done
    assert "Traceback" not in done.stderr, done
    assert_none_left(tmp_path)


def test_an_unknown_verb_is_refused(tmp_path):
    done = run([*MACH, "trian"], tmp_path, deadline_s=30)
    assert done.code == 2
    assert "trian" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_that_nobody_launched_says_how_to_start_one(tmp_path):
    done = run([sys.executable, "-m", "mach.train"], tmp_path, deadline_s=60)
    assert done.code == 2
    assert "expected torchrun's environment, got no RANK" in done.stderr, done
    assert "component None" not in done.stderr, done
    assert "Traceback" not in done.stderr, done


def test_a_rank_that_has_half_of_an_environment_names_the_other_half(tmp_path):
    done = run([sys.executable, "-m", "mach.train"], tmp_path, RANK="0", MASTER_ADDR="here")
    assert done.code == 2
    assert "torchrun's environment, got no WORLD_SIZE, MASTER_PORT. Start" in done.stderr, done
