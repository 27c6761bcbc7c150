"""How are the agents of all components started, heard, and ended without leaving one behind?"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

from mach.launcher.agent import HANDLED, KILL, SAVE_S, STOP, Job, run_agent
from mach.launcher.failure import Fall
from mach.launcher.reports import Ended, Report

_TO_US = HANDLED - {KILL}
"""What asks the launcher to stop."""
_END_S = 5.0
"""Longest an agent may take to end once its component has."""
_STEP_S = 0.1


class Agents:
    """The agents' processes. Leaving the `with` stops those that live, and their components.

    Until then Ctrl-C and its like are kept for `listen`, which raises them: at no other place could
    they leave something half-done. A second one kills what has not ended by then.
    """

    def __init__(self, jobs: Sequence[Job], listener: socket.socket) -> None:
        """Fork them. No other thread may run.

        Args:
            listener: of the store; the agents close it.
        """
        self._asked: list[int] = []
        self._before: dict[int, Any] = {}
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, connection.Connection] = {}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            fork = get_context("fork")
            for job in jobs:
                ours, theirs = fork.Pipe(duplex=False)
                process = fork.Process(
                    target=run_agent,
                    args=(job, os.getpid(), listener, theirs),
                    name=f"agent-{job.component}",
                    daemon=True,  # should all else fail, Python's own exit ends them
                )
                process.start()
                theirs.close()  # so that the end of the agent is the end of the pipe
                self._processes[job.component] = process
                self._pipes[job.component] = ours
            self._take_signals()
        except BaseException:
            self._stop()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __enter__(self) -> Agents:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            self._obey()  # asked while the run was ending by itself: a sweep must not go on

    @property
    def living(self) -> bool:
        """Whether some may still have something to report."""
        return bool(self._pipes)

    def listen(self, longest_s: float) -> list[Report]:
        """What they report, as soon as there is something, after `longest_s` at the latest.

        Raises:
            KeyboardInterrupt, SystemExit: somebody asked the launcher to stop.
        """
        end_s = time.monotonic() + longest_s
        reports: list[Report] = []
        while not reports and self._pipes:
            left_s = end_s - time.monotonic()
            ready = connection.wait(list(self._pipes.values()), min(_STEP_S, max(0.0, left_s)))
            reports = [
                r for k, pipe in self._pipes.copy().items() if pipe in ready for r in self._read(k)
            ]
            self._obey()
            if left_s <= 0:
                break
        return reports

    def signal(self, component: int, number: int) -> None:
        """Send a signal to an agent, if it lives."""
        process = self._processes[component]
        if process.is_alive() and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _read(self, component: int) -> list[Report]:
        """What is in a pipe; its end is the agent's."""
        reports: list[Report] = []
        pipe = self._pipes[component]
        try:
            while pipe.poll():
                reports.append(pipe.recv())
        except (EOFError, OSError):
            pass
        else:
            if not any(isinstance(report, Ended) for report in reports):
                return reports
        pipe.close()
        del self._pipes[component]
        if not any(isinstance(report, Ended) for report in reports):
            self._processes[component].join(_END_S)
            code = self._processes[component].exitcode
            reports.append(Ended(component, Fall(1, f"its agent ended without a word ({code})")))
        return reports

    def _stop(self) -> None:
        for k in self._processes:
            self.signal(k, STOP)
        end_s = time.monotonic() + SAVE_S + _END_S
        killed = False
        while time.monotonic() < end_s and any(p.is_alive() for p in self._processes.values()):
            if len(self._asked) > 1 and not killed:
                killed = True
                for k in self._processes:
                    self.signal(k, KILL)
            connection.wait([p.sentinel for p in self._processes.values() if p.is_alive()], _STEP_S)
        for process in self._processes.values():
            if process.is_alive():  # its component hears of it from the kernel
                process.kill()
            process.join(_END_S)
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()

    def _obey(self) -> None:
        if not self._asked:
            return
        if self._asked[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._asked[0])

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _TO_US:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
