"""How long does a start take, one agent for each component beside one for all?

An agent of its own is the price of a component's death that concerns nobody else: such a run may
start later than a gang does, but not by much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from running import started, supervised
from settings import Settings, overrides, starting, turns
from timeline import training_since

LAUNCHES = ("gang", "supervised")


def measure_round(
    settings: Settings, turn: int, tell: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Both ways once, by turns: seconds from the command until every component has taken a step."""
    found = {}
    for place in turns(len(LAUNCHES), turn):
        launch = LAUNCHES[place]
        began_s = time.time()
        with started(supervised(overrides(starting(settings, launch)))) as run:
            run.until(lambda run=run: training_since(run.logs) is not None)
            training_s = training_since(run.logs)
        assert training_s is not None
        found[launch] = {"start_s": training_s - began_s}
        tell(f"{launch}: {training_s - began_s:.1f} s")
    return found
