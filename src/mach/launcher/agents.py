"""How are the agents of all components started, heard, and ended without leaving one behind?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe, connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mach.introduce import COMPONENT, RUN_DIR
from mach.launcher.agent import HANDLED, KILL, SAVE_S, STOP
from mach.launcher.failure import Fall
from mach.launcher.reports import Ended, Report
from mach.rank import StoreAddress

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

    def __init__(
        self,
        run_dir: Path,
        store: StoreAddress,
        components: int,
        program: Sequence[str],
        lock: int,
    ) -> None:
        """Start them.

        Args:
            run_dir: with the run's config.
            store: the run's.
            components: each gets an agent.
            program: what Python is to run as an agent; it ends in mach.launcher.agent.keep_alive.
            lock: an open file that they are to keep.
        """
        self._asked: list[int] = []
        self._before: dict[int, Any] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: dict[int, connection.Connection] = {}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # in the agents, too
        try:
            for k in range(components):
                ours, theirs = Pipe(duplex=False)
                with theirs:  # so that the end of the agent is the end of the pipe
                    command = [sys.executable, *program, f"--run={run_dir}", f"--component={k}"]
                    command += [f"--launcher={os.getpid()}", f"--store={store}"]
                    self._processes[k] = subprocess.Popen(
                        [*command, f"--reports={theirs.fileno()}"],
                        env={**os.environ, **_environment(run_dir, k)},
                        pass_fds=[theirs.fileno(), lock],
                        start_new_session=True,  # Ctrl-C at the terminal is the launcher's business
                    )
                self._pipes[k] = ours
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
        self._processes[component].send_signal(number)  # nothing where it has ended

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
            code = _end_of(self._processes[component])
            reports.append(Ended(component, Fall(1, f"its agent ended without a word ({code})")))
        return reports

    def _stop(self) -> None:
        for k in self._processes:
            self.signal(k, STOP)
        end_s = time.monotonic() + SAVE_S + _END_S
        killed = False
        while time.monotonic() < end_s and self._alive():
            if len(self._asked) > 1 and not killed:
                killed = True
                for k in self._processes:
                    self.signal(k, KILL)
            with suppress(subprocess.TimeoutExpired):
                self._alive()[0].wait(_STEP_S)
        for process in self._alive():  # its component hears of it from the kernel
            process.kill()
            _end_of(process)
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes.values() if process.poll() is None]

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


def _environment(run_dir: Path, component: int) -> dict[str, str]:
    return {
        RUN_DIR: str(run_dir),
        COMPONENT: str(component),
        # A component sets its own numbers; a pool of threads would not outlive the fork.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to look for GPUs begins nothing that a fork breaks
    }


def _end_of(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of one that is about to end."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    return process.returncode
