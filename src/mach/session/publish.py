"""Who writes the result of a `free` run, and from what?

The first component that is not gone. It evaluates what all have saved, and adds what each has
reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mach import checkpoint, runfolder
from mach.component import Component
from mach.errors import CheckpointError
from mach.results import Outcome, result_of
from mach.roster import Roster
from mach.session.seat import Seat
from mach.trainer import evaluate


def publish(seat: Seat, roster: Roster, beat: Callable[[], None]) -> dict[str, Any] | None:
    """Write the run's result, if that falls to this component.

    Args:
        beat: called every now and then while it evaluates.

    Returns:
        What was written; None where another component does it.
    """
    size = seat.config.components
    alive = [k for k in range(size) if not roster.is_gone(k)]
    if seat.rank.index != alive[0]:
        return None
    began_s = time.monotonic()
    scores = evaluate(
        [_saved(seat, k) for k in range(size)],
        seat.batches,
        seat.task,
        seat.device,
        windows=seat.config.student.enabled,
        beat=beat,
    )
    evaluated_s = time.monotonic() - began_s  # by one for all, after each had reported
    outcomes = [_outcome(roster, k, scores[k], evaluated_s) for k in range(size)]
    longest = max(outcomes, key=lambda outcome: outcome.wall_s)
    result = result_of(
        seat.config,
        seat.assembly.costs(),
        outcomes,
        first_step=seat.config.steps - longest.steps,
        restarts=sum(roster.starts(k) - 1 for k in range(size) if roster.starts(k)),
    )
    result["free"] = [_account(roster, k) for k in range(size)]
    runfolder.write_result(seat.run_dir, result)
    return result


def _saved(seat: Seat, k: int) -> Component | None:
    """Component k as it was last saved; None if it never was."""
    try:
        found = checkpoint.latest_of(seat.run_dir, k)
    except CheckpointError:
        found = None
    if found is None:
        return None
    component, _ = seat.assembly.component(k, seat.device)
    checkpoint.load_weights(found, k, component)
    return component


def _outcome(
    roster: Roster, k: int, scores: dict[int, dict[str, float]], evaluated_s: float
) -> Outcome:
    reported = roster.outcome(k)
    if reported is None:  # it is gone
        return Outcome.unknown(k, scores)
    outcome = Outcome.from_json(reported)
    return replace(outcome, scores=scores, total_s=outcome.total_s + evaluated_s)


def _account(roster: Roster, k: int) -> dict[str, Any]:
    """What component k did and dropped, over all its lives in this launch."""
    return {
        "component": k,
        "starts": roster.starts(k),
        "gone": roster.is_gone(k),
        **roster.counters(k),
    }
