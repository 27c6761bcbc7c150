"""How is a run started as one group of processes, and what is said when one of them dies?

torch's elastic agent starts the ranks, watches them, stops all when one dies and restarts them if
it may (mach.launcher.agent). This file turns what is reported into one message.
"""

from __future__ import annotations

from pathlib import Path

from mach.config import Config
from mach.launcher.agents import Agents
from mach.launcher.failure import run_failed
from mach.launcher.nursery import Nursery
from mach.launcher.reports import Ended
from mach.report.console import Progress

_LISTEN_S = 1.0


def run_gang(config: Config, run_dir: Path, nursery: Nursery, lock: int) -> None:
    """Run a claimed run folder to its end as one group, whose store is hosted.

    Args:
        nursery: of one group.
        lock: of the run folder, an open file.

    Raises:
        RankFailedError: names the component that fell first and says why.
        KeyboardInterrupt: Ctrl-C; every rank has been stopped.
        SystemExit: another signal asked the launcher to stop; every rank has been stopped.
    """
    with (
        Agents(nursery, lock) as agents,
        Progress(run_dir, config.components, config.steps, config.report.progress),
    ):
        while agents.living:
            for report in agents.listen(_LISTEN_S):
                if isinstance(report, Ended) and report.fall is not None:
                    raise run_failed(report.component, report.fall, run_dir, config)
