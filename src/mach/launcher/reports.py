"""What does an agent report of its component, and what does the supervisor answer?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.launcher.failure import Fall

# --- what is seen ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A process of a component has been started."""

    component: int
    pid: int
    restart: int
    """0 for the first."""


@dataclass(frozen=True)
class Died:
    """It has ended and will be started again."""

    component: int
    fall: Fall
    restart: int
    """Which restart this costs, 1 for the first."""


@dataclass(frozen=True)
class Ended:
    """It has ended and will not be started again."""

    component: int
    fall: Fall | None
    """None: it has done all it had to."""


Report = Started | Died | Ended


# --- what follows ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something to tell."""

    component: int
    kind: str
    """died, back, hung, exhausted, refused or finished."""
    text: str


@dataclass(frozen=True)
class Kill:
    """End this component's process: it hangs."""

    component: int


@dataclass(frozen=True)
class GiveUp:
    """Tell the others that this component will not come back."""

    component: int


@dataclass(frozen=True)
class Stop:
    """End the run, because this component fell."""

    component: int
    fall: Fall


Answer = Event | Kill | GiveUp | Stop
