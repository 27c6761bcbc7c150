"""What goes wrong on purpose, where and when?

For tests, for `benchmarks/faults/`, and for people who want to see what a run does then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from math import isfinite
from typing import Any

from mach.component import Component
from mach.config import FaultsConfig

_WAKE = """
import os, signal, sys, time
pid, ends = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == pid and (left := ends - time.monotonic()) > 0:
    time.sleep(min(0.2, left))
if os.getppid() == pid:
    os.kill(pid, signal.SIGCONT)
"""
"""Ends with the component that it is to wake: somebody may end that one first, as it hangs."""


class Faults:
    """The faults of one component in one life of it."""

    def __init__(
        self,
        config: FaultsConfig,
        index: int,
        life: int,
        component: Component,
        drop_links: Callable[[float], None],
    ) -> None:
        """
        Args:
            index: the component.
            life: which life of it this is.
            component: is slowed down where the config says so.
            drop_links: breaks the edges to the neighbours for so many seconds.
        """
        self._config, self._drop_links = config, drop_links
        self._due = config.kind != "none" and config.component == index and life < config.lives
        self._slow_until = 0.0
        if config.pace_ms > 0 or (self._due and config.kind == "slow"):
            in_thirds(component, self._paced)

    def reached(self, step: int) -> None:
        """The component has taken optimizer step `step`."""
        if not self._due or step < self._config.step:
            return
        self._due = False
        duration_s = self._config.duration_s
        match self._config.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                _stop(duration_s)
            case "slow":
                self._slow_until = time.monotonic() + duration_s
            case "drop-link":
                self._drop_links(duration_s)

    def _paced(self, function: Callable[..., Any], share: float) -> Callable[..., Any]:
        """The function, taking at least its share of a microbatch's time."""

        def paced(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            result = function(*arguments, **options)
            least_s = max(share * self._config.pace_ms / 1e3, time.monotonic() - began)
            if began < self._slow_until:
                least_s *= self._config.factor
            time.sleep(max(0.0, began + least_s - time.monotonic()))
            return result

        return paced


def in_thirds(
    component: Component, timed: Callable[[Callable[..., Any], float], Callable[..., Any]]
) -> None:
    """Let `timed(function, share)` stand in for a component's forward, which is a third of the
    time of a microbatch, and for its backward, which is the rest."""
    component.forward = timed(component.forward, 1 / 3)  # type: ignore[method-assign]
    component.backward = timed(component.backward, 2 / 3)  # type: ignore[method-assign]


def _stop(duration_s: float) -> None:
    """Hang as a process does that got SIGSTOP; somebody else has to wake it."""
    if isfinite(duration_s):
        wake = [sys.executable, "-ISc", _WAKE, str(os.getpid()), str(duration_s)]
        subprocess.Popen(wake, start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)
