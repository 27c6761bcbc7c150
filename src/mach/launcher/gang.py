"""How is a run started as one group of processes, and what is said when one of them dies?

torch's elastic agent starts the ranks, watches them, stops all when one dies and restarts them if
it may. This file only asks it to, and turns what it reports into one message.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mach import runfolder
from mach.config import Config
from mach.errors import DivergedError, MachError, RankFailedError
from mach.introduce import RUN_DIR
from mach.report.console import Progress


def run_gang(config: Config, run_dir: Path) -> dict[str, Any]:
    """Run a claimed run folder to its end in `config.components` processes. Returns its result.

    Raises:
        RankFailedError: names the component that fell first and says why.
        KeyboardInterrupt: Ctrl-C; every rank has been stopped.
        SystemExit: another signal asked the launcher to stop; every rank has been stopped.
    """
    os.environ[RUN_DIR] = str(run_dir)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # ranks set their own number; this mutes a warning
    _quiet_torch()
    command = ["-m", "mach.train", f"--run={run_dir}", f"--launcher={os.getpid()}"]
    with Progress(run_dir, config.components, config.steps, config.report.progress):
        try:
            elastic_launch(_group(config, run_dir), sys.executable)(*command)
        except ChildFailedError as error:
            raise _explain(error, run_dir, config) from None
        except SignalException as error:  # a plain Exception: a sweep would go on after Ctrl-C
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None
    result = runfolder.finished(run_dir)
    if result is None:
        raise RankFailedError(
            f"all components ended well, but {run_dir / runfolder.RESULT} is missing"
        )
    return result


def _group(config: Config, run_dir: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.components,
        run_id=run_dir.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port: runs side by side do not clash
        max_restarts=config.launch.max_restarts,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(run_dir / runfolder.LOGS), redirects=Std.ALL),
    )


def _quiet_torch() -> None:
    """torch's agent logs every death and signal; here each becomes one message of ours."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _explain(error: ChildFailedError, run_dir: Path, config: Config) -> MachError:
    rank, failure = _first_cause(error.failures)
    killed = failure.exitcode < 0
    reason = f"was ended by {failure.signal_name()}" if killed else _message(failure)
    reason = reason.removeprefix(f"component {rank}: ")
    done = f"Logs: {run_dir / runfolder.LOGS}."
    if any((run_dir / runfolder.CHECKPOINTS).glob("step-*/manifest.json")):
        diverged = _stored(failure).startswith(DivergedError.__name__)  # it would do so again
        how = f"resume={run_dir} out=.." if diverged else f"out={run_dir} resume=auto"
        done += f" Go on from the last checkpoint: {how}"
    failed = RankFailedError(f"component {rank} of {config.components}: {reason}. {done}")
    failed.exit_code = 2 if failure.exitcode == 2 else 1
    return failed


def _first_cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that fell by itself, not one that fell because its neighbour had."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, int]:
        _, failure = item
        return "PeerLostError" in _stored(failure), failure.timestamp

    return min(failures.items(), key=order)


def _message(failure: ProcessFailure) -> str:
    """What the rank itself said, without class name or traceback."""
    text = _stored(failure).partition("\n")[0] or f"ended with exit code {failure.exitcode}"
    kind, _, said = text.partition(": ")
    return (said if kind.isidentifier() and said else text).rstrip(".")


def _stored(failure: ProcessFailure) -> str:
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", json.dumps(message))
    return str(message)
