"""How is a run started so that the death of one component concerns that component alone?

One agent for each component (see mach.launcher.agent) starts it and starts it again. This file
starts the agents, reads the heartbeats, and carries out what mach.launcher.supervision concludes
from them.
"""

from __future__ import annotations

import time
from pathlib import Path

from mach import runfolder
from mach.config import Config
from mach.launcher.agents import Agents
from mach.launcher.failure import run_failed
from mach.launcher.journal import Journal
from mach.launcher.nursery import Nursery
from mach.launcher.reports import Event, GiveUp, Kill, Stop
from mach.launcher.signals import KILL
from mach.launcher.supervision import Rules, Supervision
from mach.report.console import Progress
from mach.roster import Roster

LOOK_S = 0.2
"""Time between two looks at the heartbeats."""
_SLOW_START_S = 60.0
"""On top of transport.start_timeout_s, in which a component that has begun waits for its
neighbours: the longest back-off, and what comes before the first beat. And on top of
report.finish_timeout_s: what ends a report that was given up."""


def run_supervised(
    config: Config,
    run_dir: Path,
    nursery: Nursery,
    roster: Roster,
    lock: int,
) -> None:
    """Run a claimed run folder to its end, each component by itself.

    Args:
        nursery: of one group for each component.
        roster: in the store that this process hosts.
        lock: of the run folder, an open file. Should this process be killed, it is the agents' and
            their components' until they have saved and ended.

    Raises:
        RankFailedError: names the component that had no restart left, or that refused, and why.
        KeyboardInterrupt: Ctrl-C; every component has saved and been stopped.
        SystemExit: another signal asked the launcher to stop; the same.
    """
    supervision = Supervision(_rules(config))
    journal = Journal(run_dir / runfolder.EVENTS)
    with (
        Agents(nursery, lock) as agents,
        Progress(
            run_dir,
            config.components,
            config.steps,
            config.report.progress,
            watch=lambda: supervision.components,
        ),
    ):
        _watch(agents, supervision, roster, journal, run_dir, config)


def _watch(
    agents: Agents,
    supervision: Supervision,
    roster: Roster,
    journal: Journal,
    run_dir: Path,
    config: Config,
) -> None:
    while agents.living:
        reports = agents.listen(LOOK_S)
        beats = [roster.last_beat(k) for k in range(config.components)]
        for answer in supervision.look(time.monotonic(), reports, beats):
            match answer:
                case Event():
                    journal.tell(answer)
                case Kill(k):
                    agents.signal(k, KILL)
                case GiveUp(k):
                    roster.give_up(k)
                case Stop(k, fall):
                    raise run_failed(k, fall, run_dir, config)


def _rules(config: Config) -> Rules:
    return Rules(
        components=config.components,
        max_restarts=config.max_restarts,
        hang_s=config.launch.hang_s,
        start_s=max(config.start_timeout_s, config.report.finish_timeout_s) + _SLOW_START_S,
        on_exhausted=config.launch.on_exhausted,
        students=config.student.enabled,
    )
