"""What keeps one component alive, apart from all others, or the whole gang together?

A torch elastic agent, in a process of its own that the nursery has forked. It forks the components
in turn, which so begin at once; above all the next life does, while the others train on: a fresh
interpreter would take seconds, and take them from all who share its cores. (With a GPU it is one.)

    mach train                   hosts the store, watches, decides
      nursery                    has imported what a component needs
        agent of component 0     starts it, starts it again, hands signals on
          component 0
        agent of component 1
          component 1

Under `launch=gang` there is one agent, of all components. SIGTERM tells an agent to stop its
components; the kernel sends it too when the nursery dies, however it dies. SIGUSR1 tells it to kill
them: only the agent, their parent, can be sure to hit no other process.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
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
from mach.config import Config
from mach.configfile import load
from mach.introduce import COMPONENT, call_myself, die_with
from mach.launcher.failure import REFUSED, Fall, fall_of, first_cause
from mach.launcher.reports import Died, Ended, Report, Started
from mach.launcher.signals import HANDLED, KILL, SAVE_S, STOP
from mach.storeaddress import StoreAddress

_MONITOR_S = 0.1
_TALKERS = ("torch.distributed.elastic", "torch.multiprocessing")
"""They log every death and signal; here each becomes one message of ours."""

Work = Callable[[Sequence[str]], None]
"""What a component does, told by its command line."""


@dataclass(frozen=True)
class Job:
    """Components to keep alive, as one group."""

    components: Sequence[int]
    run_dir: Path
    store: StoreAddress
    work: Work


def keep_alive(job: Job, nursery: int, reports: Connection) -> None:
    """Keep components alive until they have ended well, or for good, or this process is told to
    stop.

    The signals in HANDLED are blocked when this begins.

    Args:
        nursery: our parent.
        reports: hears what happens.
    """
    os.register_at_fork(after_in_child=reports.close)  # its end is to be the end of the agent
    first = job.components[0]
    call_myself(f"mach-agent-{first}")
    die_with(nursery, STOP)
    # An agent installs handlers for these whenever it starts a component; ours are to stay.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    _quiet_torch()
    try:
        config = load(job.run_dir / runfolder.CONFIG)
        if config.supervised:
            # A wedged device holds its process in the kernel, where no signal reaches it.
            hang_s = str(config.launch.hang_s)
            os.environ["TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"] = hang_s
        agent = _Agent(job, config, nursery, reports)
        agent.handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        result = agent.run()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # there is nothing left to stop
        agent.end(well=result.state == State.SUCCEEDED)
    except SignalException:  # told to stop, and the components have been stopped
        pass
    except Exception as error:
        text = f"its agent failed: {type(error).__name__}: {error}"
        with suppress(OSError):
            reports.send(Ended(first, Fall(1, text)))


def _quiet_torch() -> None:
    for name in logging.root.manager.loggerDict:
        if name.startswith(_TALKERS):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _start_method(config: Config) -> str:
    """What was imported outlives a fork on Linux, but CUDA does not, and an import may begin it."""
    cuda = config.launch.device != "cpu" and torch.cuda.is_available()
    return "fork" if sys.platform.startswith("linux") and not cuda else "spawn"


def _begin(job: Job, options: Sequence[str], agent: int) -> None:
    """The first a component does: become a process that owes nothing to the agent but its life."""
    os.setsid()
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with(agent, STOP)  # which saves, once it has something to save
    component = job.components[int(os.environ["LOCAL_RANK"])]
    call_myself(f"mach-{component}")
    os.environ[COMPONENT] = str(component)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    job.work([f"--run={job.run_dir}", f"--component={component}", *options])


class _Agent(LocalElasticAgent):
    """torch's agent, which says what it does."""

    def __init__(self, job: Job, config: Config, nursery: int, reports: Connection) -> None:
        self._job, self._nursery, self._reports = job, nursery, reports
        self._stopping = False
        self._fallen = job.components[0]
        self._fall = Fall(1, "hangs in the kernel, as a process does whose device is wedged")
        logs = job.run_dir / runfolder.LOGS
        if config.supervised:
            options = [f"--store={job.store}"]
            logs /= f"component-{job.components[0]}"
        else:  # they find the store as under torchrun
            options = ["--composed"]
        spec = WorkerSpec(
            role="default",
            local_world_size=len(job.components),
            rdzv_handler=_Alone(job.store),
            entrypoint=_begin,
            args=(job, options, os.getpid()),
            max_restarts=config.max_restarts,
            monitor_interval=_MONITOR_S,
        )
        specs = DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL)
        super().__init__(spec, specs, start_method=_start_method(config))
        self._shutdown_timeout = int(SAVE_S)  # no argument of older torch's constructor

    def end(self, well: bool) -> None:
        self._report(Ended(self._fallen, None if well else self._fall))

    def _report(self, report: Report) -> None:
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
        for process in getattr(getattr(self._pcontext, "_pc", None), "processes", []):
            if process.exitcode is None:  # not yet reaped: the id is still its own
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        # No signal is to find a component that still has the agent's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pids = super()._start_workers(worker_group)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        restart = worker_group.spec.max_restarts - self._remaining_restarts
        for place, component in enumerate(self._job.components):
            self._report(Started(component, pids[place], restart))
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if os.getppid() != self._nursery:  # where no kernel tells: nobody is left to train for
            self._stop(STOP, None)
        result = super()._monitor_workers(worker_group)
        if not result.failures:
            return result
        place, failure = first_cause(result.failures)
        self._fallen = self._job.components[place]
        self._fall = fall_of(self._fallen, failure)
        if self._fall.code == REFUSED:  # and would refuse again
            self._remaining_restarts = 0
        if self._remaining_restarts > 0:
            restart = worker_group.spec.max_restarts - self._remaining_restarts + 1
            self._report(Died(self._fallen, self._fall, restart))
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
