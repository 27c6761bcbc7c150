"""How does a component sleep until something happens on any of its edges?"""

from __future__ import annotations

from threading import TIMEOUT_MAX, Event


class Bell:
    """Rung by the edges of one component, waited for by its one training thread.

    A ring says only that it is worth looking again at the ends; several before a wait are one.
    """

    def __init__(self) -> None:
        self._rung = Event()

    def ring(self) -> None:
        """Wake whoever waits, or the next one to do so. Cheap, and from any thread."""
        self._rung.set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a ring since the last wait, at most `timeout_s` (which may be inf). Whether
        there was one."""
        if not self._rung.wait(min(timeout_s, TIMEOUT_MAX)):
            return False
        # A ring that falls in here is not missed: the caller looks at its ends after this.
        self._rung.clear()
        return True
