"""What keeps one component alive, apart from all others?

A torch elastic agent for it alone, which is what a `torchrun --nproc-per-node=1` is, in a process
of its own. It imports all that a component needs and forks the component, which so begins at once;
above all the next life does, while the others train on: a fresh interpreter would take seconds, and
take them from all who share its cores. (With a GPU it is one.)

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

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
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
from mach.introduce import call_myself, die_with
from mach.launcher.failure import REFUSED, Fall, fall_of
from mach.launcher.gang import quiet_torch
from mach.launcher.reports import Died, Ended, Report, Started
from mach.rank import StoreAddress, keep_heap

SAVE_S = 20.0
"""Longest a component may take to save once it has been told to stop."""
STOP, KILL = signal.SIGTERM, signal.SIGUSR1
HANDLED = {STOP, KILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_MONITOR_S = 0.1

Work = Callable[[Sequence[str]], None]
"""What a component does, told by its command line."""


def keep_alive(options: argparse.Namespace, work: Work) -> None:
    """Keep a component alive until it has ended well, or for good, or this process is told to stop.

    The signals in HANDLED are blocked when this begins.

    Args:
        options: this process's own (mach.introduce).
        work: known by name in a module that has imported all that is slow.
    """
    reports = Connection(options.reports, readable=False)
    os.register_at_fork(after_in_child=reports.close)  # its end is to be the end of the agent
    quiet_torch()
    # An agent installs handlers for these whenever it starts a component; ours are to stay.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    try:
        config = load(options.run / runfolder.CONFIG)
        # A device that is wedged for good holds its process in the kernel, where no signal reaches.
        os.environ["TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"] = str(config.launch.hang_s)
        agent = _Agent(options, work, config, reports)
        agent.handle_signals()
        keep_heap()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        result = agent.run()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # there is nothing left to stop
        agent.end(None if result.state == State.SUCCEEDED else agent.fall)
    except SignalException:  # told to stop, and the component has been stopped
        pass
    except Exception as error:
        text = f"its agent failed: {type(error).__name__}: {error}"
        with suppress(OSError):
            reports.send(Ended(options.component, Fall(1, text)))


def _start_method(config: Config) -> str:
    """What was imported outlives a fork on Linux, but CUDA does not, and an import may begin it."""
    cuda = config.launch.device != "cpu" and torch.cuda.is_available()
    return "fork" if sys.platform.startswith("linux") and not cuda else "spawn"


def _begin(work: Work, argv: Sequence[str], component: int, agent: int) -> None:
    """The first a component does: become a process that owes nothing to the agent but its life.

    Module level: what does not fork finds it by its name.
    """
    os.setsid()
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with(agent, STOP)  # which saves, once it has something to save
    call_myself(f"mach-{component}")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    work(argv)


class _Agent(LocalElasticAgent):
    """torch's agent, which says what it does."""

    def __init__(
        self, options: argparse.Namespace, work: Work, config: Config, reports: Connection
    ) -> None:
        self._component, self._launcher = options.component, options.launcher
        self._reports = reports
        self._stopping = False
        self.fall = Fall(1, "hangs in the kernel, as a process does whose device is wedged")
        store = StoreAddress.parse(options.store)
        argv = [f"--run={options.run}", f"--component={options.component}", f"--store={store}"]
        spec = WorkerSpec(
            role="default",
            local_world_size=1,
            rdzv_handler=_Alone(store),
            entrypoint=_begin,
            args=(work, argv, options.component, os.getpid()),
            max_restarts=config.max_restarts,
            monitor_interval=_MONITOR_S,
        )
        logs = options.run / runfolder.LOGS / f"component-{options.component}"
        specs = DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL)
        super().__init__(spec, specs, start_method=_start_method(config))
        self._shutdown_timeout = int(SAVE_S)  # no argument of older torch's constructor

    def end(self, fall: Fall | None) -> None:
        self._report(Ended(self._component, fall))

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
        self._report(Started(self._component, pids[0], restart))
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if os.getppid() != self._launcher:  # where no kernel tells: nobody is left to train for
            self._stop(STOP, None)
        result = super()._monitor_workers(worker_group)
        failure = result.failures.get(0)
        if failure is None:
            return result
        self.fall = fall_of(self._component, failure)
        if self.fall.code == REFUSED:  # and would refuse again
            self._remaining_restarts = 0
        if self._remaining_restarts > 0:
            restart = worker_group.spec.max_restarts - self._remaining_restarts + 1
            self._report(Died(self._component, self.fall, restart))
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
