"""How is a run started as one group of processes, and what is said when one of them dies?

torch's elastic agent starts the ranks, watches them, stops all when one dies and restarts them if
it may. This file only asks it to, and turns what it reports into one message.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mach import runfolder
from mach.config import Config
from mach.introduce import RUN_DIR
from mach.launcher.failure import fall_of, first_cause, no_result, run_failed
from mach.report.console import Progress


def run_gang(config: Config, run_dir: Path) -> dict[str, Any]:
    """Run a claimed run folder to its end in `config.components` processes. Returns its result.

    Raises:
        RankFailedError: names the component that fell first and says why.
        KeyboardInterrupt: Ctrl-C; every rank has been stopped.
        SystemExit: another signal asked the launcher to stop; every rank has been stopped.
    """
    os.environ[RUN_DIR] = str(run_dir)
    # Ranks set their own number; this mutes a warning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_torch()
    command = ["-m", "mach.train", f"--run={run_dir}", f"--launcher={os.getpid()}"]
    with Progress(run_dir, config.components, config.steps, config.report.progress):
        try:
            elastic_launch(_group(config, run_dir), sys.executable)(*command)
        except ChildFailedError as error:
            rank, failure = first_cause(error.failures)
            raise run_failed(rank, fall_of(rank, failure), run_dir, config) from None
        except SignalException as error:  # a plain Exception: a sweep would go on after Ctrl-C
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None
    result = runfolder.finished(run_dir)
    if result is None:
        raise no_result(run_dir)
    return result


def _group(config: Config, run_dir: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.components,
        run_id=run_dir.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port: runs side by side do not clash
        max_restarts=config.max_restarts,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(run_dir / runfolder.LOGS), redirects=Std.ALL),
    )


def quiet_torch() -> None:
    """torch's agent logs every death and signal; here each becomes one message of ours."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
