"""How does a sink do slow work without the training ever waiting for it?

    training thread    log ─▶ queue ─▶                    close(deadline)
    sink thread             open  write write write ..    finish

Everything that can be slow, hang or fail is done on a thread of the sink's own: the import of a
library, the start, each line, the end. What goes wrong there is said once and ends the sink, never
the training; the component's jsonl has everything.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from typing import Any

_log = logging.getLogger(__name__)

CAPACITY = 10_000
"""Lines that may wait in the queue, some megabytes; beyond it lines are dropped and counted."""
CLOSE_TIMEOUT_S = 30.0
"""Longest wait for a sink's last work when a run ends."""


class BackgroundSink(ABC):
    """A sink with a queue and a thread.

    Args:
        title: what messages call it.
        capacity: lines that may wait.
        timeout_s: longest wait for the thread in `close`.
    """

    def __init__(
        self, title: str, capacity: int = CAPACITY, timeout_s: float = CLOSE_TIMEOUT_S
    ) -> None:
        self.dropped = 0
        """Lines that did not fit in the queue, or came when the sink had ended."""
        self._title = title
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._dead = False
        self._given_up = False
        self._failed = False
        name = f"mach-{title.partition(':')[0]}"
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Queue one record; never waits, never raises."""
        self._put(dict(record))

    def close(self, failed: bool = False, timeout_s: float | None = None) -> None:
        """Finish; give up after `timeout_s` seconds.

        Args:
            failed: the training ended with an error.
            timeout_s: None is the sink's own.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self._failed = failed
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._given_up = True
            _log.warning(
                "%s was not finished within %.2g s and is given up. The component's jsonl is "
                "complete%s",
                self._title,
                timeout_s,
                self._advice(),
            )
            self._give_up()
            self._thread.join(1.0)
        elif self.dropped and not self._dead:
            _log.warning(
                "%s: %d lines were dropped because the queue was full. The component's jsonl has "
                "them; log less often with report.every.",
                self._title,
                self.dropped,
            )

    def _put(self, item: Any) -> None:
        if self._dead or self._queue.qsize() >= self._capacity:
            self.dropped += 1
        else:
            self._queue.put(item)

    def _advice(self) -> str:
        """What a user can still do with a sink that was given up; ends the sentence."""
        return "."

    def _give_up(self) -> None:
        """Free what would keep the process from ending. On the thread of `close`."""
        return

    # --- the sink thread --------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._open()
            while (item := self._queue.get()) is not None:
                self._write(item)
            self._finish(self._failed)
        except BaseException as error:  # some libraries raise SystemExit; nobody is above us here
            self._dead = True
            if not self._given_up:
                _log.warning(
                    "%s ends here, the training goes on: %s: %s",
                    self._title,
                    type(error).__name__,
                    one_line(error),
                )

    @abstractmethod
    def _open(self) -> None:
        """Begin, and import what that needs."""

    @abstractmethod
    def _write(self, item: Any) -> None:
        """Keep one record, or whatever else was queued."""

    @abstractmethod
    def _finish(self, failed: bool) -> None:
        """End well."""


def one_line(error: BaseException) -> str:
    """What an error says, short enough for a line."""
    return " ".join(str(error).split())[:300]
