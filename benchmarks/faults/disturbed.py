"""How do three components fare while the fourth is dead, or slow?

One round: an undisturbed run, and one for each component as the victim, in turn. A survivor is
compared with itself before, and with itself in the undisturbed run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from running import Run, started, supervised
from settings import LINKS, Settings, fault, overrides, paced, turns
from timeline import (
    Line,
    Lines,
    Stretches,
    Window,
    back,
    death,
    longest_pause_ms,
    rate,
    reached,
    training_since,
)

UNDISTURBED = None
Logs = Sequence[Lines]


def measure_round(
    settings: Settings, kind: str, turn: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Every variant once.

    Args:
        kind: kill or slow.
        turn: which round this is; it decides the order.
    """
    variants: list[int | None] = [UNDISTURBED, *settings.victims]
    logs: dict[int | None, list[list[Line]]] = {}
    cores_busy = 0.0
    for place in turns(len(variants), turn):
        victim = variants[place]
        logs[victim], busy = observe(settings, kind, victim)
        if victim is UNDISTURBED:
            cores_busy = busy
        tell("undisturbed" if victim is UNDISTURBED else f"{kind} component {victim}")
    return {"cores_busy": cores_busy, **judge_round(logs, kind, settings)}


def observe(settings: Settings, kind: str, victim: int | None) -> tuple[list[list[Line]], float]:
    """Run one variant for as long as it has to be watched. Returns the logs, and how many cores
    were busy with it."""
    values = paced(settings)
    if victim is not UNDISTURBED:
        values |= fault(settings, kind, victim)
    with started(supervised(overrides(values))) as run:
        run.until(lambda: training_since(run.logs) is not None)
        cpu_s, began_s = run.cpu_s(), time.monotonic()
        _watch(run, settings, kind, victim)
        return run.logs, (run.cpu_s() - cpu_s) / (time.monotonic() - began_s)


def _watch(run: Run, settings: Settings, kind: str, victim: int | None) -> None:
    due = settings.fault_step
    if victim is UNDISTURBED:
        run.until(lambda: all(reached(lines, due) is not None for lines in run.logs))
        beyond_s = settings.slow_s
    elif kind == "kill":
        lines = run.logs[victim]
        run.until(lambda: bool(lines) and back(lines, LINKS[victim]) is not None)
        beyond_s = settings.least_s
    else:
        run.until(lambda: reached(run.logs[victim], due) is not None)
        beyond_s = settings.slow_s
    run.watch(max(lines[-1].time_s for lines in run.logs) + beyond_s + settings.after_s)


# --- judging: logs in, numbers out --------------------------------------------------------------


def judge_round(
    logs: dict[int | None, list[list[Line]]], kind: str, settings: Settings
) -> dict[str, Any]:
    """What is kept of a round."""
    calm = logs[UNDISTURBED]
    since_s = training_since(calm)
    assert since_s is not None
    whole = Window(since_s + settings.settle_s, min(lines[-1].time_s for lines in calm))
    return {
        "victims": [
            {"victim": victim, **_judge(disturbed, kind, victim, settings)}
            for victim, disturbed in sorted((v, one) for v, one in logs.items() if v is not None)
        ],
        "undisturbed": [
            {"rate": rate(lines, whole), "pause_ms": longest_pause_ms(lines, whole)}
            for lines in calm
        ],
    }


def _judge(logs: Logs, kind: str, victim: int, settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines = logs[victim]
    if kind == "kill":
        last, first = death(lines), back(lines, LINKS[victim])
        assert last is not None
        assert first is not None
        wrong = Window(last.time_s, max(first.time_s, last.time_s + settings.least_s))
        again = next(line for line in lines if line.life > last.life)
        found["return"] = {
            "age_s": first.age_s,
            "away_s": again.time_s - last.time_s,
            "connected_s": first.time_s - last.time_s,
            "steps_lost": last.step - again.step + 1,
        }
    else:
        begin_s = reached(lines, settings.fault_step)
        assert begin_s is not None
        wrong = Window(begin_s, begin_s + settings.slow_s)
    around = Stretches.around(wrong, settings.before_s, settings.after_s)
    found["components"] = [around.measure(one) for one in logs]
    return found
