"""How are the agents of all components heard, and ended without leaving one behind?"""

from __future__ import annotations

import signal
import threading
import time
from multiprocessing import connection
from types import FrameType, TracebackType
from typing import Any

from mach.launcher.failure import Fall
from mach.launcher.nursery import Nursery
from mach.launcher.reports import Ended, Report
from mach.launcher.signals import END_S, HANDLED, KILL, SAVE_S, STOP

_TO_US = HANDLED - {KILL}
"""What asks the launcher to stop."""
_STEP_S = 0.1


class Agents:
    """The agents' processes. Leaving the `with` stops those that live, and their components.

    Until then Ctrl-C and its like are kept for `listen`, which raises them: at no other place could
    they leave something half-done. A second one kills what has not ended by then.
    """

    def __init__(self, nursery: Nursery, lock: int) -> None:
        """Have them forked.

        Args:
            lock: an open file that they are to keep.
        """
        self._nursery = nursery
        self._asked: list[int] = []
        self._before: dict[int, Any] = {}
        self._pipes = dict(enumerate(nursery.reports))
        self._take_signals()
        nursery.begin(lock)

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

    def signal(self, agent: int, number: int) -> None:
        """Send a signal to an agent, if it lives."""
        self._nursery.signal(agent, number)

    def _read(self, agent: int) -> list[Report]:
        """What is in a pipe; its end is the agent's."""
        reports: list[Report] = []
        pipe = self._pipes[agent]
        try:
            while pipe.poll():
                reports.append(pipe.recv())
        except (EOFError, OSError):
            pass
        else:
            if not any(isinstance(report, Ended) for report in reports):
                return reports
        del self._pipes[agent]
        if not any(isinstance(report, Ended) for report in reports):
            text = f"its agent ended without a word ({self._nursery.exit_code(agent)})"
            reports.append(Ended(self._nursery.groups[agent][0], Fall(1, text)))
        return reports

    def _stop(self) -> None:
        agents = range(len(self._nursery.groups))
        for agent in agents:
            self.signal(agent, STOP)
        end_s = time.monotonic() + SAVE_S + END_S
        killed = False
        while not self._nursery.ended(_STEP_S) and time.monotonic() < end_s:
            if len(self._asked) > 1 and not killed:
                killed = True
                for agent in agents:
                    self.signal(agent, KILL)
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
