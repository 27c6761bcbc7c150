"""What `mach plan` says of a run, and that it comes true."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from clouds import clouds, make
from images import images, make_resnet
from mach.cli import answer
from mach.forecast import Durations, forecast, in_flight
from mach.report.plan import show, warnings
from mach.schedule import lag
from mach.shapes import TensorSpec
from mach.topology import lanes_of
from mach.trainer import Assembly, settle
from mach.trainer.plan import plan
from runs import SMALL, lines
from spawn import MACH, TRAIN, Command, assert_none_left, component_of, processes_of, run

CPU = torch.device("cpu")


def taking(forward_s: float, backward_s: float) -> Durations:
    return Durations(forward_s, forward_s, backward_s, backward_s, 0.0, 0.0)


# --- on paper ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("components", "accumulate"), [(1, 4), (2, 4), (4, 4), (3, 8)])
def test_sync_has_the_bubble_of_1f1b(components, accumulate):
    """M of M + K - 1 turns (Narayanan et al., 2021: PipeDream-2BW, section 2)."""
    config = make(components, schedule="sync", accumulate=accumulate)
    ahead = forecast(config, [taking(1.0, 2.0)] * components, components)
    wanted = accumulate / (accumulate + components - 1)
    assert ahead.busy_fractions == pytest.approx([wanted] * components)


@pytest.mark.parametrize("components", [2, 3, 4])
def test_without_delay_one_component_works_at_a_time_and_with_it_all_do(components):
    durations = [taking(1.0, 2.0)] * components
    alone = forecast(make(components, delay=0), durations, components)
    assert alone.busy_fractions == pytest.approx([1 / components] * components)
    together = forecast(make(components, delay=1), durations, components)
    assert together.busy_fractions == pytest.approx([1.0] * components, abs=0.05)


def test_the_slowest_component_sets_the_pace_of_all():
    durations = [taking(1.0, 2.0), taking(2.0, 4.0), taking(1.0, 2.0)]
    ahead = forecast(make(3, delay=1), durations, 3)
    assert ahead.pace_s == pytest.approx(6.0, rel=0.05)
    assert ahead.busy_fractions == pytest.approx([0.5, 1.0, 0.5], abs=0.03)


def test_components_that_share_a_core_take_turns():
    ahead = forecast(make(4, delay=1), [taking(1.0, 2.0)] * 4, lanes=2)
    assert ahead.pace_s == pytest.approx(6.0, rel=0.05)
    assert [lanes_of(16, 4, None, 0), lanes_of(2, 4, None, 0), lanes_of(16, 4, 8, 0)] == [4, 2, 2]
    assert [lanes_of(2, 4, None, 8), lanes_of(2, 4, None, 1)] == [4, 1]


@pytest.mark.parametrize("components", [1, 2, 4])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_what_is_in_flight_is_what_the_schedule_says(components, delay):
    for k in range(components):
        found = in_flight(make(components, delay=delay, accumulate=2), k)
        assert found.bare + found.kept >= lag(components, k, delay) + 1
        assert found.bare <= lag(components, k, delay) + 1
        assert found.versions == -(-lag(components, k, delay) // 2)
    synchronous = in_flight(make(4, schedule="sync", accumulate=3), 0)
    assert (synchronous.bare, synchronous.kept, synchronous.versions) == (0, 3, 0)


# --- measured ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven():
    config = make(3, delay=1, student={"enabled": True, "width": 8}, model={"balance": [1, 6, 1]})
    return config, plan(settle(config, clouds()), clouds(), CPU, 3)


def test_a_plan_counts_what_the_run_will_have(uneven):
    config, found = uneven
    costs = Assembly(config, clouds().task).costs()
    for k, share in enumerate(found.shares):
        wanted = {"body": costs.bodies[k], "head": costs.heads[k], "student": costs.students.get(k)}
        assert {name: part.cost for name, part in share.parts.items()} == {
            name: cost for name, cost in wanted.items() if cost
        }
        params = sum(part.cost.params for part in share.parts.values())
        assert share.memory.weights == share.memory.gradients == 4 * params
        assert share.memory.optimizer >= 4 * params
    assert [share.blocks for share in found.shares] == config.bodies()
    assert [share.staleness_steps for share in found.shares] == [2, 1, 0]
    names = [row.edge.name for row in found.traffic]
    assert names == ["activations 0->1", "gradients 1->0", "activations 1->2", "gradients 2->1"]
    assert {row.frame_bytes for row in found.traffic} == {64 + 4 * 8 * 12}


def test_a_component_with_more_than_its_share_is_warned_of(uneven):
    _, found = uneven
    assert found.shares[1].of_mean == max(share.of_mean for share in found.shares)
    assert found.shares[1].of_mean > 1.25
    assert warnings(found, "equal")[-1].startswith("component 1 takes")
    assert "model.balance=time cuts by time" in warnings(found, "equal")[-1]
    assert "model.balance" not in warnings(found, "time")[-1]  # it is what was asked for
    share = found.shares[1]
    times = replace(share.parts["body"].times, forward_s=share.busy_s)
    slow = {**share.parts, "student": replace(share.parts["body"], times=times)}
    shares = [found.shares[0], replace(share, parts=slow), found.shares[2]]
    said = warnings(replace(found, shares=shares), "equal")[-1]
    assert "Most of that is its student: make it narrower than student.width=" in said
    assert "model.balance" not in said, "no cut makes it faster"
    assert sum(share.of_mean for share in found.shares) == pytest.approx(3)


@pytest.mark.parametrize(("wire", "size"), [("bfloat16", 2 * 96), ("int8", 96 + 4 * 8)])
def test_messages_are_counted_as_they_travel(wire, size):
    config = make(2, delay=1, transport={"wire_dtype": wire})
    found = plan(config, clouds(), CPU, 2)
    assert {row.frame_bytes for row in found.traffic} == {64 + size}
    pipe = io.StringIO()
    show(found, "equal", Console(file=pipe, width=100))
    assert f"] as {wire} " in pipe.getvalue()


def test_messages_of_images_are_told_whole_on_80_columns():
    """Cut off, with the dtype they travel in, as four numbers are longer than two."""
    config = make_resnet(2, delay=1, transport={"wire_dtype": "int8"})
    found = plan(config, images(8, 8), CPU, 2)
    row = found.traffic[0]
    large = replace(row.edge, payload=TensorSpec((128, 128, 128, 128), torch.bfloat16))
    pipe = io.StringIO()
    show(replace(found, traffic=[replace(row, edge=large)]), "equal", Console(file=pipe, width=80))
    messages = pipe.getvalue().partition("Messages")[2].partition("Warning")[0]
    assert "…" not in messages
    assert max(map(len, messages.splitlines())) <= 80
    assert "int8" in messages


@pytest.mark.parametrize(
    "values",
    [
        {"replay": "stash"},
        {"optim": {"precision": "bf16"}},
        {"model": {"checkpointing": True}},
        {"feedback": 0.0, "head": {"weight": 1.0}},
        {"schedule": "free", "delay": 2},
        {"components": 1},
    ],
    ids=str,
)
def test_every_kind_of_run_has_a_plan(values):
    config = make(**{"components": 2, "delay": 1, "student": {"enabled": True}, **values})
    found = plan(config, clouds(), CPU, 2)
    assert all(share.busy_s > 0 for share in found.shares)
    assert all(0 < share.busy_fraction <= 1 for share in found.shares)
    assert all(share.memory.activations > 0 for share in found.shares)
    assert found.samples_per_s > 0


# --- the command -------------------------------------------------------------------------------

PLAN = [word for word in SMALL if not word.startswith(("steps", "report"))]


def test_a_plan_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert answer("plan", [*PLAN, "optim=adamw", "model.balance=params", "model.depth=3"]) == 0
    said = capsys.readouterr()
    for words in ("Cut", "Parts", "Memory of each process", "Messages", "activations 0->1"):
        assert words in said.out, said
    tables = said.out.partition("Warning:")[0]
    assert max(map(len, tables.splitlines())) <= 80, said.out
    assert "…" not in said.out
    assert said.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["delay=-1"], "delay: expected 0 or more; got -1"),
        (["componets=2"], "componets: expected a key"),
        (["data=npz", "data.path=nowhere.npz"], "nowhere.npz"),
        (["model=custom", "model.factory=brought:dropout"], "block 0"),
        (["components=2", "transport=nccl", "launch.device=cpu"], "expected a GPU for each"),
    ],
)
def test_what_mach_train_refuses_is_refused(tmp_path, monkeypatch, capsys, overrides, says):
    monkeypatch.chdir(tmp_path)
    assert answer("plan", overrides) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mach: ")
    assert said.err.count("\n") == 1
    assert says in said.err, said
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["conf", "my conf", "j\u00fcrgen's %20, [1]\\"])
def test_a_config_folder_of_ones_own_is_read(tmp_path, capsys, name):
    (tmp_path / name / "experiment").mkdir(parents=True)
    (tmp_path / name / "experiment" / "mine.yaml").write_text("# @package _global_\ndelay: -3\n")
    assert answer("plan", ["--config-dir", str(tmp_path / name), "experiment=mine"]) == 2
    assert "delay: expected 0 or more; got -3" in capsys.readouterr().err


def test_help_says_what_it_is_for(tmp_path):
    done = run([*MACH, "plan", "--help"], tmp_path, deadline_s=100)
    assert done.code == 0, done
    for words in ("mach plan", "key=value", "mach train --help", "stale"):
        assert words in done.stdout


# --- and it comes true -------------------------------------------------------------------------

LARGE = ["components=2", "model.width=1024", "student.width=256", "optim=adamw", "steps=4"]
"""Weights, gradients and AdamW's state are 134 MB a component: half of what its process takes."""


@pytest.mark.timeout(400)
def test_the_memory_of_a_real_run_is_what_the_plan_says(tmp_path):
    """Within a quarter: allocators round up, and libraries load more than a plan does."""
    small = [
        word for word in SMALL if not word.startswith(("components", "steps", "model", "stud"))
    ]
    done = run([*MACH, "plan", *small, *LARGE], tmp_path, deadline_s=300)
    assert done.code == 0, done
    table = done.stdout.partition("Memory")[2]
    sums = [_bytes(row) for row in re.findall(r"│ +([\d.]+ \wB) │\n", table)[:2]]
    beside = _bytes(re.search(r"beside the ([\d.]+ \wB)", table)[1])
    most: dict[int, int] = defaultdict(int)

    def watch() -> bool:
        for process in processes_of(tmp_path):
            k = component_of(process)
            if k is not None:
                most[k] = max(most[k], process.memory_info().rss)
        return (tmp_path / "run" / "checkpoints").exists()  # what it takes to save comes on top

    with Command([*TRAIN, *small, *LARGE, "out=run"], tmp_path) as started:
        started.until(watch)
        assert started.wait(200).code == 0
    for k, wanted in enumerate(sums):
        print(f"component {k}: {most[k] / 1e6:.0f} MB, planned {(beside + wanted) / 1e6:.0f}")
        assert most[k] == pytest.approx(beside + wanted, rel=0.25)
    logged = [line for line in lines(tmp_path / "run", 0) if "loss" in line]
    frames = sum(line["bytes_up"] for line in logged) / (4 * 4)
    assert frames == 64 + 4 * 16 * 1024
    assert _bytes(re.search(r"activations 0->1 +│[^│]+│ +([\d.]+ \wB)", done.stdout)[1]) == (
        pytest.approx(frames, rel=0.01)
    )
    assert_none_left(tmp_path)


def _bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
