"""Runs whose components are on two machines, which are two network namespaces of this one."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest
import torch.distributed as dist

from mach.configfile import from_mapping, load
from mach.errors import ChannelTimeoutError, ConfigError
from mach.launcher.preflight import preflight
from mach.rank import Rank, muster, transport
from mach.report.jsonl import Follower
from mach.topology import share_cores
from netns import WIRE, Machine, two_machines, why_not
from runs import SMALL, assert_same_tensors, checkpoint_steps, lines, result, scores
from spawn import (
    DEADLINE_S,
    TORCHRUN,
    TRAIN,
    Command,
    Done,
    assert_none_left,
    kill,
    rank_of,
    run,
    until,
)

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[1]
FOUR = [*SMALL, "components=4", "steps=12", "checkpoint.every=4", "out=run"]
ENDLESS = [*FOUR, "steps=100000", "checkpoint.every=20"]
"""Ends when the test ends it."""
SLOW_MS = 20.0


@pytest.fixture(params=[0.0], ids=["cable"])
def machines(request) -> Iterator[tuple[Machine, Machine]]:
    """Two machines; a test may ask for another latency."""
    missing = why_not(request.param)
    if missing:
        pytest.skip(missing)
    with two_machines(request.param) as pair:
        yield pair


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run folder of the same components on one machine."""
    if why_not():
        pytest.skip(why_not())
    folder = tmp_path_factory.mktemp("alone")
    done = run([*TRAIN, *FOUR], folder)
    assert done.code == 0, done
    return folder / "run"


def torchrun(machine: Machine, head: Machine, *options: str) -> list[str]:
    """The command of launch/README.md, on one of two machines."""
    host = [f"--local-addr={machine.address}", f"--rdzv-conf=is_host={int(machine == head)}"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={head.address}:29400", "--rdzv-id=run"]
    shape = ["--nnodes=2", "--nproc-per-node=2"]
    return [*machine.inside, *TORCHRUN, *shape, *meet, *host, *options, "-m", "mach.train"]


@contextmanager
def started(
    machines: tuple[Machine, Machine],
    folder: Path,
    *overrides: str,
    only_right: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Iterator[tuple[Command, Command]]:
    """A torchrun on each machine, two components each: 0 and 1 on the left one."""
    left, right = (torchrun(machine, machines[0], *options) for machine in machines)
    with (
        Command([*left, *overrides], folder, OMP_NUM_THREADS="1") as a,
        Command([*right, *overrides, *only_right], folder, OMP_NUM_THREADS="1") as b,
    ):
        yield a, b
    assert_none_left(folder)


def both(commands: tuple[Command, Command], code: int, starts: int = 1) -> tuple[Done, Done]:
    """Wait for both to end with this code; each start of theirs has its deadline."""
    until(
        lambda: all(command.process.poll() is not None for command in commands),
        starts * DEADLINE_S,
        lambda: "\n".join(str(command.so_far(-1)) for command in commands),
    )
    a, b = (command.wait() for command in commands)
    assert (a.code, b.code) == (code, code), f"{a}\n{b}"
    return a, b


# --- to the end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "bind"),
    [(0.0, "launch=slurm"), (SLOW_MS, f"launch.bind={WIRE}")],
    indirect=["machines"],
    ids=["auto", "interface, 20 ms"],
)
def test_two_machines_give_the_weights_of_one_bit_by_bit(machines, bind, alone, tmp_path):
    """The right one is given another seed: that nobody asks it shows that only rank 0 composes."""
    with started(machines, tmp_path, *FOUR, bind, only_right=("seed=1",)) as commands:
        a, b = both(commands, 0)
    assert_same_tensors(tmp_path / "run/checkpoints/step-12", alone / "checkpoints/step-12")
    assert scores(tmp_path / "run") == scores(alone)
    assert load(tmp_path / "run" / "config.yaml").seed == 0
    assert result(tmp_path / "run")["restarts"] == 0
    assert "mach:" not in a.stderr + b.stderr, f"{a}\n{b}"


def test_a_free_run_on_two_machines_ends_with_one_result(machines, tmp_path):
    free = [*FOUR, "launch=slurm", "schedule=free"]
    with started(machines, tmp_path, *free) as commands:
        a, b = both(commands, 0)
    found = result(tmp_path / "run")
    assert [row["exit"] for row in found["chain"]] == [0, 1, 2, 3]
    assert all(row["accuracy"] > 0 for row in found["chain"])
    assert [(row["starts"], row["gone"]) for row in found["free"]] == [(1, False)] * 4
    for k in range(4):
        assert lines(tmp_path / "run", k)[-1]["step"] == 12
    assert "mach:" not in a.stderr + b.stderr, f"{a}\n{b}"


# --- refused -------------------------------------------------------------------------------


def test_edges_on_loopback_are_refused_at_once_on_every_machine(machines, tmp_path):
    with started(machines, tmp_path, *FOUR) as commands:
        a, b = both(commands, 1)  # torchrun's own code, whatever its ranks end with
    said = [line for line in (a.stderr + b.stderr).splitlines() if line.startswith("mach:")]
    assert len(said) == 1, f"{a}\n{b}"
    assert re.search("component 0: launch.bind: expected auto.* got none.* launch.bind=auto", *said)
    for done in (a, b):
        codes = set(re.findall(r"exitcode  : (-?\d+)", done.stderr))
        assert "2" in codes, done
        assert codes <= {"2", "-15"}, done  # -15: torchrun was faster than the second
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("host", "bind", "says"),
    [
        ("10.77.0.1", None, "2 of the 4 components .* got none, which is loopback"),
        ("10.77.0.1", "10.77.0.1", "got 10.77.0.1, an address of one"),
        ("localhost", None, "got none, which is loopback"),
        ("localhost", "auto", "got 127.0.0.1, .* the store's host localhost for. .*--local-addr="),
        ("10.77.0.1", "nosuch0", "expected an address or interface of this machine .*'nosuch0'"),
    ],
)
def test_a_bind_that_other_machines_cannot_reach_is_refused(
    host, bind, says, tmp_path, monkeypatch
):
    monkeypatch.setenv("MASTER_ADDR", host)
    config = from_mapping({"components": 4, "launch": {"bind": bind, "device": "cpu"}})
    with pytest.raises(ConfigError, match=says):
        preflight(config, tmp_path / "run", places=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("host", "places"), [("127.0.0.1", 2), ("10.77.0.1", 4)])
def test_one_machine_needs_no_bind(host, places, tmp_path, monkeypatch):
    """Nor do two torchruns of it, where each was started with --local-addr=127.0.0.1."""
    monkeypatch.setenv("MASTER_ADDR", host)
    config = from_mapping({"components": 4, "launch": {"device": "cpu"}})
    assert preflight(config, tmp_path / "run", places) == config


# --- a death -------------------------------------------------------------------------------


def test_a_component_that_is_killed_ends_the_run_on_both_machines(machines, tmp_path):
    with started(machines, tmp_path, *ENDLESS, "launch=slurm") as commands:
        commands[0].until(lambda: bool(checkpoint_steps(tmp_path / "run")))
        ranks = [rank_of(tmp_path, k) for k in range(4)]
        available = sorted(psutil.Process().cpu_affinity())
        for k, rank in enumerate(ranks):  # each machine shares its cores among its own two
            bound = share_cores(available, k % 2, 2, 1, pin=True).bound
            assert rank.cpu_affinity() == list(bound or available)
        kill(ranks[3])
        a, b = both(commands, 1)
    # Component 2 may have no time to say it: torchrun ends what is left on its own machine.
    assert f"Signal 9 (SIGKILL) received by PID {ranks[3].pid}" in b.stderr, b
    assert "mach: component 1: " in a.stderr, a
    assert "component 2 is gone" in a.stderr, a
    assert checkpoint_steps(tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 3], ids=["beside the store", "far from it"])
def test_a_death_in_a_free_run_ends_it_on_both_machines_with_all_saved(machines, tmp_path, victim):
    """torchrun ends its own machine; the other one's components notice, and save."""
    free = [*ENDLESS, "launch=slurm", "schedule=free", "checkpoint.every=100000", "launch.hang_s=3"]
    left = [k for k in range(4) if k // 2 != victim // 2]
    with started(machines, tmp_path, *free) as commands:
        logs = [tmp_path / f"run/component-{k}.jsonl" for k in range(4)]
        commands[0].until(lambda: all(Follower(log).read() for log in logs))
        kill(rank_of(tmp_path, victim))
        a, b = both(commands, 1)
    for k in left:
        assert list((tmp_path / "run/checkpoints").glob(f"step-*/component-{k}.json")), f"{a}\n{b}"


def test_torchrun_may_start_the_ranks_of_both_machines_again(machines, alone, tmp_path):
    """Only the machine on which a rank fell counts that as a restart; the ranks must agree."""
    fault = ["faults=kill", "faults.component=3", "faults.step=8"]
    again = ("--max-restarts=1",)
    with started(machines, tmp_path, *FOUR, "launch=slurm", *fault, options=again) as commands:
        both(commands, 0, starts=2)
    found = result(tmp_path / "run")
    assert found["restarts"] == 1
    assert found["first_step"] in (4, 8)
    assert_same_tensors(tmp_path / "run/checkpoints/step-12", alone / "checkpoints/step-12")


# --- Slurm ---------------------------------------------------------------------------------

SBATCH = ROOT / "launch" / "slurm.sbatch"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "the[1-2]", "SLURM_NNODES": "2"}

SCONTROL = """
case "$1" in
    show) printf '10.77.0.1\\n10.77.0.2\\n' ;;
    *) echo "$@" > scontrol.asked ;;
esac
"""
ONE_TASK_ON_EACH = """
while [[ "$1" == --* ]]; do shift; done
export SLURM_NODEID SLURMD_NODENAME
SLURM_NODEID=0 SLURMD_NODENAME=10.77.0.1
LEFT "$@" & left=$!
SLURM_NODEID=1 SLURMD_NODENAME=10.77.0.2
RIGHT "$@" & right=$!
wait $left && wait $right
"""
WAITS_FOR_SIGTERM = """
trap 'exit 143' TERM
touch srun.waits
while true; do sleep 0.05; done
"""


def submitted(folder: Path, srun: str, *overrides: str) -> Command:
    """Run the template as Slurm would, edited as its marks say, with an `srun` of ours."""
    template = SBATCH.read_text()
    for mark, value in (("per_node=4", "per_node=2"), (".venv/bin/activate", "./activate")):
        (line,) = [line for line in template.splitlines() if mark in line]
        assert "# EDIT" in line
        template = template.replace(line, line.replace(mark, value))
    (folder / "bin").mkdir()
    for name, script in (("srun", srun), ("scontrol", SCONTROL)):
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (folder / "bin" / name).chmod(0o755)
    paths = f"{folder / 'bin'}:{Path(sys.executable).parent}"
    (folder / "activate").write_text(f'PATH="{paths}:$PATH"\n')
    (folder / "job").write_text(template)
    return Command(["bash", "job", *overrides], folder, OMP_NUM_THREADS="1", **JOB)


def test_the_slurm_template_trains_over_the_machines_of_its_job(machines, alone, tmp_path):
    srun = ONE_TASK_ON_EACH
    for name, machine in zip(("LEFT", "RIGHT"), machines, strict=True):
        srun = srun.replace(name, " ".join(machine.inside))
    mine = [word for word in FOUR if not word.startswith(("components=", "out="))]
    with submitted(tmp_path, srun, *mine) as job:
        done = job.wait()
    assert done.code == 0, done
    run_dir = tmp_path / "runs" / "slurm-7"
    assert_same_tensors(run_dir / "checkpoints/step-12", alone / "checkpoints/step-12")
    assert load(run_dir / "config.yaml").resume == "auto"
    assert not (tmp_path / "scontrol.asked").exists()
    assert_none_left(tmp_path)


def test_a_slurm_job_whose_time_is_over_stops_its_ranks_and_asks_to_be_started_again(tmp_path):
    with submitted(tmp_path, WAITS_FOR_SIGTERM) as job:
        job.until(lambda: (tmp_path / "srun.waits").exists())
        job.process.send_signal(signal.SIGUSR1)
        done = job.wait(30)
    assert done.code == 143, done
    assert (tmp_path / "scontrol.asked").read_text() == "requeue 7\n"


def test_a_slurm_job_that_fails_is_not_started_again(tmp_path):
    with submitted(tmp_path, "exit 3") as job:
        done = job.wait(30)
    assert done.code == 3, done
    assert not (tmp_path / "scontrol.asked").exists()


@pytest.mark.parametrize(
    ("words", "run_dir", "restarts", "last"),
    [
        ([], "runs/slurm-7", "1", "resume=auto"),
        (["out=mine"], "mine", "1", "resume=auto"),
        (["out=mine"], "mine", "0", "resume=base"),  # it holds somebody's run, and is refused
        ([], "runs/slurm-8", "1", "resume=base"),  # it had not begun
    ],
)
def test_a_slurm_job_that_began_from_a_run_goes_on_with_its_own_when_it_is_started_again(
    tmp_path, monkeypatch, words, run_dir, restarts, last
):
    """It is given the same words again, and was refused: its folder holds a run."""
    (tmp_path / run_dir).mkdir(parents=True)
    (tmp_path / run_dir / "config.yaml").touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    with submitted(tmp_path, 'printf "%s\\n" "$@"', *words, "resume=base") as job:
        done = job.wait(30)
    assert done.code == 0, done
    assert [word for word in done.stdout.split() if word.startswith("resume=")][-1] == last, done


# --- what ranks agree on -------------------------------------------------------------------


def mustered(store: dist.Store, size: int) -> list[int]:
    """What every rank of one start hears."""
    heard: dict[int, int] = {}

    def join(k: int) -> None:
        heard[k] = muster(store, k, size, timeout_s=30)

    threads = [Thread(target=join, args=(k,)) for k in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [heard[k] for k in range(size)]


def test_all_ranks_of_a_start_hear_the_same_number():
    store = dist.HashStore()
    assert [mustered(store, 3) for _ in range(3)] == [[0] * 3, [1] * 3, [2] * 3]


def test_a_rank_that_died_before_it_was_heard_confuses_nobody():
    """It has called, or been counted, in a start that never began."""
    store = dist.HashStore()
    with pytest.raises(ChannelTimeoutError, match=r"component 0 did not come up; waited 0\.1 s"):
        muster(store, 2, 3, timeout_s=0.1)
    with pytest.raises(ChannelTimeoutError, match=r"components \[1, 2\] did not come up"):
        muster(store, 0, 3, timeout_s=0.1)
    assert mustered(store, 3) == [1, 1, 1]


@pytest.mark.parametrize(("others", "mine"), [("gloo", "gloo"), ("nccl", "gloo")])
def test_auto_takes_what_all_machines_have(others, mine):
    """A neighbour with a GPU of its own must not try NCCL with one that has none."""
    store = dist.HashStore()
    rank = Rank(0, 2, 0, 1, restarts=0, run_id="run", store=store, store_host="10.77.0.1")
    store.set("transport/0/1", others)
    config = from_mapping({"components": 2, "launch": {"device": "cpu"}})
    assert transport(rank, config) == mine
    assert store.get("transport/0/0") == b"gloo"
