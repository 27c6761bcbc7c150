"""What keeps one component alive, apart from all others?

A torch elastic agent for it alone, which is what a `torchrun --nproc-per-node=1` is, in a process
of its own. That process is forked from the launcher, which has imported torch: a fresh interpreter
for each would cost seconds.

    mach train                   hosts the store, watches, decides
      agent of component 0       starts it, starts it again, hands signals on
        component 0
      agent of component 1
        component 1

SIGTERM tells an agent to stop its component, which saves; the kernel sends it too when the launcher
dies, however it dies. SIGUSR1 tells it to kill the component: only the agent, its parent, can be
sure to hit no other process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.api import WorkerState as State
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from mach import runfolder
from mach.introduce import COMPONENT, RUN_DIR, call_myself, die_with
from mach.launcher.failure import REFUSED, Fall, fall_of
from mach.launcher.reports import Died, Ended, Report, Started
from mach.rank import StoreAddress

SAVE_S = 20.0
"""Longest a component may take to save once it has been told to stop."""
STOP, KILL = signal.SIGTERM, signal.SIGUSR1
HANDLED = {STOP, KILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_MONITOR_S = 0.1


@dataclass(frozen=True)
class Job:
    """A component to keep alive."""

    component: int
    run_dir: Path
    store: StoreAddress
    max_restarts: int
    hang_s: float
    worker: Sequence[str]
    """What Python is to run."""


def run_agent(job: Job, launcher: int, listener: socket.socket, reports: Connection) -> None:
    """Keep a component alive until it has ended well, or for good, or this process is told to stop.

    The signals in HANDLED are blocked when this begins.

    Args:
        launcher: our parent.
        listener: of the store; not ours to hold open.
        reports: hears what happens.
    """
    listener.close()
    os.setsid()  # Ctrl-C at the terminal is the launcher's business
    die_with(launcher, STOP)
    call_myself(f"mach-agent-{job.component}")
    os.environ[RUN_DIR], os.environ[COMPONENT] = str(job.run_dir), str(job.component)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a component sets its own number
    # An agent installs handlers for these whenever it starts a component; ours are to stay.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    # A device that is wedged for good holds its process in the kernel, where no signal reaches it.
    os.environ["TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"] = str(job.hang_s)
    try:
        agent = _Agent(job, launcher, reports)
        agent.handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        result = agent.run()
        agent.report(Ended(job.component, None if result.state == State.SUCCEEDED else agent.fall))
    except SignalException:  # told to stop, and the component has been stopped
        pass
    except Exception as error:
        text = f"its agent failed: {type(error).__name__}: {error}"
        with suppress(OSError):
            reports.send(Ended(job.component, Fall(1, text)))


class _Agent(LocalElasticAgent):
    """torch's agent, which says what it does."""

    def __init__(self, job: Job, launcher: int, reports: Connection) -> None:
        self._job, self._launcher, self._reports = job, launcher, reports
        self._stopping = False
        self.fall = Fall(1, "hangs in the kernel, as a process does whose device is wedged")
        store = job.store
        command = [f"--run={job.run_dir}", f"--component={job.component}"]
        command += [f"--launcher={os.getpid()}", f"--store={store}"]
        spec = WorkerSpec(
            role="default",
            local_world_size=1,
            rdzv_handler=_Alone(store),
            entrypoint=sys.executable,
            args=(*job.worker, *command),
            max_restarts=job.max_restarts,
            monitor_interval=_MONITOR_S,
        )
        logs = job.run_dir / runfolder.LOGS / f"component-{job.component}"
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL))
        self._shutdown_timeout = int(SAVE_S)  # no argument of older torch's constructor

    def report(self, report: Report) -> None:
        with suppress(OSError):  # the launcher is gone; its death will have told us
            self._reports.send(report)

    def handle_signals(self) -> None:
        for number in HANDLED:
            # Never SIG_IGN: the component would inherit it.
            signal.signal(number, self._kill if number == KILL else self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:  # once: a second exception would interrupt the wait for the save
            self._stopping = True
            raise SignalException(f"told to stop by {number}", sigval=STOP)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        for handler in getattr(self._pcontext, "subprocess_handlers", {}).values():
            if handler.proc.returncode is None:  # not yet reaped: the id is still its own
                with suppress(ProcessLookupError):
                    os.killpg(handler.proc.pid, signal.SIGKILL)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        restart = self._job.max_restarts - self._remaining_restarts
        self.report(Started(self._job.component, pids[0], restart))
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if os.getppid() != self._launcher:  # where no kernel tells: nobody is left to train for
            self._stop(STOP, None)
        result = super()._monitor_workers(worker_group)
        failure = result.failures.get(0)
        if failure is None:
            return result
        self.fall = fall_of(self._job.component, failure)
        if self.fall.code == REFUSED:  # and would refuse again
            self._remaining_restarts = 0
        if self._remaining_restarts > 0:
            restart = self._job.max_restarts - self._remaining_restarts + 1
            self.report(Died(self._job.component, self.fall, restart))
        return result


class _Alone(RendezvousHandler):
    """A rendezvous of one: nothing to agree on, no port to open, no thread to keep."""

    def __init__(self, store: StoreAddress) -> None:
        self._store = store

    def next_rendezvous(self) -> RendezvousInfo:
        place = RendezvousStoreInfo(self._store.host, self._store.port)
        return RendezvousInfo(dist.HashStore(), 0, 1, place)

    @property
    def use_agent_store(self) -> bool:
        return True  # the component does not host the store

    def get_backend(self) -> str:
        return "mach"

    def get_run_id(self) -> str:
        return self._store.run

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None: ...

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True
