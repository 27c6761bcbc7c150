"""What a component did at every moment is in its trace, in a form that others read, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.errors import ConfigError
from mach.records import Notes, export, read_traces
from mach.report.trace import Trace, traced
from mach.trainer import Oracle
from mach.trainer.oracle import Quiet

SMALL: dict[str, Any] = {
    "steps": 30,
    "accumulate": 2,
    "model": {"name": "mlp", "width": 16, "depth": 4},
    "student": {"enabled": False},
}
STEPS = SMALL["steps"]


def train(folder: Path, steps: int | None, **values) -> dict:
    """Train in this process with a trace of every component. Returns the result."""
    config = from_mapping(SMALL | {"components": 2, "student": {"enabled": True}} | values)
    oracle = Oracle(config, open_dataset(config.data))
    traces = [Trace(folder / f"trace-{k}.json", k, steps=steps) for k in range(2)]
    for trace, trainer in zip(traces, oracle.trainers, strict=True):
        trace.watch(trainer.worker)
    result = oracle.run()
    for trace in traces:
        trace.close()
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    train(folder, None)
    return folder


def count(slices, name: str) -> int:
    return int((slices.name == slices.names.index(name)).sum()) if name in slices.names else 0


def test_every_action_is_a_slice(folder):
    notes = Notes()
    for slices in read_traces(folder, notes):
        assert count(slices, "forward") == count(slices, "backward") == STEPS * 2
        assert count(slices, "step") == STEPS
        assert count(slices, "evaluate") > 0
        assert count(slices, "distil") == (STEPS * 2 if slices.component else 0)
        assert slices.duration_s.min() >= 0
    assert not list(notes)


def test_work_within_a_component_does_not_overlap(folder):
    for slices in read_traces(folder, Notes()):
        outer = [slices.names.index(n) for n in ("forward", "backward", "step", "evaluate")]
        order = slices.start_s.argsort()
        mine = [n for n in order if slices.name[n] in outer]
        ends = slices.start_s[mine] + slices.duration_s[mine]
        assert (slices.start_s[mine][1:] >= ends[:-1] - 1e-6).all()


def test_a_parent_works_after_its_child_on_one_clock(folder):
    child, parent = read_traces(folder, Notes())
    starts = [s.start_s[s.name == s.names.index("forward")] for s in (child, parent)]
    assert (starts[1] > starts[0]).all()


def test_only_the_first_steps_are_traced_and_then_nothing_is_in_the_way(tmp_path):
    plain = train(tmp_path, 3)
    for slices in read_traces(tmp_path, Notes()):
        assert count(slices, "step") == 3
    config = from_mapping(SMALL | {"components": 2})
    oracle = Oracle(config, open_dataset(config.data))
    worker = oracle.trainers[0].worker
    with Trace(tmp_path / "trace-7.json", 7) as trace:
        trace.watch(worker)
        assert "run" in vars(worker)
    assert "run" not in vars(worker)
    assert "send" not in vars(worker.channels.to_parent)
    untraced = Oracle(
        from_mapping(SMALL | {"components": 2, "student": {"enabled": True}}),
        open_dataset(config.data),
    ).run()
    assert plain["chain"] == untraced["chain"]  # and the numbers are the same


def test_traces_are_json_and_merge_into_one_with_aligned_clocks(folder, tmp_path):
    events = json.loads((folder / "trace-1.json").read_text())
    assert {event["ph"] for event in events} == {"M", "X"}
    number = export(folder, tmp_path / "trace.json", Notes())
    merged = json.loads((tmp_path / "trace.json").read_text())
    assert len(merged["traceEvents"]) == number
    assert {event["pid"] for event in merged["traceEvents"]} == {0, 1}
    names = {e["args"]["name"] for e in merged["traceEvents"] if e["name"] == "process_name"}
    assert names == {"component 0", "component 1"}


@pytest.mark.parametrize(
    ("apart_s", "second"),
    # The clock was set in between; or the machine was started again, and began to count anew.
    [(2.0, [0.0]), (864_000.0, [864_000.0])],
)
def test_clocks_of_one_machine_are_brought_together(tmp_path, apart_s, second):
    for k in range(2):
        Trace(tmp_path / f"trace-{k}.json", k).close()
        epoch_ns = int(1e9 * (1 + k * apart_s))
        clock = {"host": "here", "epoch_ns": epoch_ns}
        slices = {"name": "step", "ph": "X", "pid": k, "tid": 0, "dur": 5.0}
        (tmp_path / f"trace-{k}.json").write_text(
            f"[\n{json.dumps({'name': 'clock', 'ph': 'M', 'pid': k, 'tid': 0, 'args': clock})},\n"
            f"{json.dumps(slices | {'ts': epoch_ns / 1e3 + 100.0})}\n]\n"
        )
    starts = [slices.start_s.tolist() for slices in read_traces(tmp_path, Notes())]
    assert starts == [[0.0], pytest.approx(second, abs=1e-6)]


def test_a_later_life_goes_on_in_the_file_and_a_torn_line_is_counted(tmp_path):
    path = tmp_path / "trace-0.json"
    Trace(path, 0, life=0).close()
    Trace(path, 0, life=1).close()
    assert len(json.loads(path.read_text())) == 8
    with path.open("r+b") as file:  # as kill -9 leaves it
        file.seek(-30, 2)
        file.truncate()
    notes = Notes()
    read_traces(tmp_path, notes)
    assert notes.total == 1
    Trace(path, 0, life=2).close()
    notes = Notes()
    assert export(tmp_path, tmp_path / "trace.json", notes) == 11
    assert not list(notes)
    for file in (path, tmp_path / "trace.json"):
        json.loads(file.read_text())


@pytest.mark.parametrize("size", range(0, 300, 7))
def test_a_file_cut_anywhere_is_gone_on_with_as_whole_json(tmp_path, size):
    path = tmp_path / "trace-0.json"
    Trace(path, 0).close()
    path.write_bytes(path.read_bytes()[:size])
    Trace(path, 0, life=1).close()
    assert [e["args"] for e in json.loads(path.read_text()) if e["tid"] == 1][2] == {
        "name": "life 1"
    }


@pytest.mark.parametrize(("asked", "steps"), [(True, STEPS), (3, 3), (1, 1), (False, None)])
def test_report_trace_takes_true_or_a_number(tmp_path, asked, steps):
    config = from_mapping(SMALL | {"components": 1, "report": {"trace": asked}})
    oracle = Oracle(config, open_dataset(config.data))
    with traced(config, tmp_path, oracle.trainers[0].worker, Quiet()):
        oracle.run()
    found = read_traces(tmp_path, Notes())
    assert [count(slices, "step") for slices in found] == ([steps] if steps else [])


def test_less_than_no_steps_are_refused():
    with pytest.raises(ConfigError, match=r"report\.trace"):
        from_mapping({"report": {"trace": -1}})
