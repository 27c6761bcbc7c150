"""Does what a person injects with `faults=` happen where, when and for as long as it was asked?"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from runs import SMALL, lines
from spawn import TRAIN, Command, assert_none_left, run

pytestmark = pytest.mark.timeout(300)

STEPS, AT, FOR_S, PACE_S = 250, 50, 1.0, 0.01
VICTIM, OTHERS = 1, (0, 2)
Logs = list[list[dict[str, Any]]]


def logs_of_a_run_with(kind: str, folder: Path) -> Logs:
    """Lines of each component, one a step, of a run in which this happens to the victim."""
    schedule = ["components=3", "schedule=free", "delay=2", "accumulate=1", "launch=gang"]
    length = [f"steps={STEPS}", "checkpoint.every=0", "report.every=1"]
    fault = [f"faults={kind}", f"faults.component={VICTIM}", f"faults.step={AT}"]
    # A parent that is more patient than a slow child takes would go at the child's rate.
    fault += [f"faults.duration_s={FOR_S}", f"faults.pace_ms={PACE_S * 1e3}", "patience_ms=10"]
    done = run([*TRAIN, *SMALL, *schedule, *length, *fault, "out=run"], folder)
    assert done.code == 0, done
    assert_none_left(folder)
    logs = [lines(folder / "run", k) for k in range(3)]
    found = [[line for line in log if "links_up" in line] for log in logs]
    assert [log[-1]["step"] for log in found] == [STEPS] * 3
    assert {line["life"] for log in found for line in log} == {0}
    return found


def time_of(log: list[dict[str, Any]], step: int) -> float:
    return next(line["time"] for line in log if line["step"] == step)


def steps_between(log: list[dict[str, Any]], begin_s: float, end_s: float) -> int:
    return sum(begin_s < line["time"] < end_s for line in log)


def test_links_that_are_dropped_stay_away_for_so_long_while_all_train_on(tmp_path: Path) -> None:
    logs = logs_of_a_run_with("drop-link", tmp_path)
    away = [line for line in logs[VICTIM] if line["step"] >= AT and line["links_up"] == 0]
    begin_s, end_s = away[0]["time"], away[-1]["time"]
    back = next(line for line in logs[VICTIM] if line["time"] > end_s and line["links_up"] == 2)
    assert away[0]["step"] <= AT + 1
    assert back["time"] - time_of(logs[VICTIM], away[0]["step"] - 1) >= FOR_S
    assert min(steps_between(log, begin_s, end_s) for log in logs) > 5
    # A neighbour has lost this link, and keeps the time of its own steps.
    for k in OTHERS:
        assert 0 in {line["links_up"] for line in logs[k] if begin_s < line["time"] < end_s}


def test_a_component_that_is_slow_takes_so_many_times_as_long_and_the_others_do_not(
    tmp_path: Path,
) -> None:
    logs = logs_of_a_run_with("slow", tmp_path)
    # The last step before it may lie before or after the line: either way this is inside.
    begin_s, end_s = time_of(logs[VICTIM], AT + 1), time_of(logs[VICTIM], AT - 1) + FOR_S
    inside = [line["time"] for line in logs[VICTIM] if begin_s <= line["time"] <= end_s]
    backward_s = 4 * PACE_S * 2 / 3  # of one microbatch, four times as long
    assert len(inside) > 5
    assert (inside[-1] - inside[0]) / (len(inside) - 1) > backward_s
    for k in OTHERS:
        assert steps_between(logs[k], begin_s, end_s) > len(inside)
    for stretch in (range(AT - 20, AT), range(STEPS - 100, STEPS)):
        times = [line["time"] for line in logs[VICTIM] if line["step"] in stretch]
        assert min(b - a for a, b in pairwise(times)) < backward_s


def test_who_is_to_wake_a_stopped_component_ends_with_it(tmp_path: Path) -> None:
    """It stayed for as long as the fault was to last, and would have woken a stranger."""
    program = "from mach.trainer.faults import _stop; _stop(1000)"
    with Command([sys.executable, "-c", program], tmp_path) as started:
        started.until(lambda: psutil.Process(started.process.pid).children())
        (waker,) = psutil.Process(started.process.pid).children()
        started.until(lambda: psutil.Process(started.process.pid).status() == psutil.STATUS_STOPPED)
        started.process.kill()
        psutil.wait_procs([waker], timeout=10)
        assert not waker.is_running()


def test_a_component_that_is_stopped_goes_on_after_so_long_while_the_others_train(
    tmp_path: Path,
) -> None:
    logs = logs_of_a_run_with("stop", tmp_path)
    before, after = max(pairwise(logs[VICTIM]), key=lambda pair: pair[1]["time"] - pair[0]["time"])
    assert before["step"] in (AT - 1, AT)
    assert after["time"] - before["time"] >= FOR_S
    for k in OTHERS:
        assert steps_between(logs[k], before["time"], after["time"]) > 5
