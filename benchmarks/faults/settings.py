"""What is run, with what in place of compute, and for how long?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

COMPONENTS = 4
LINKS = (1, 2, 2, 1)
"""Of each component, to its neighbours."""
SAVE_EVERY = 50
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class Settings:
    """The same for every run of a section."""

    victims: tuple[int, ...] = tuple(range(COMPONENTS))
    """Components that are killed or slowed down, each in a run of its own."""
    pace_ms: float = 60.0
    """Least time of a microbatch at every component: it sleeps for what its compute leaves. So long
    that four of them leave more than half of two cores idle."""
    settle_s: float = 4.0
    """From the moment that all components train, not counted: a process that uses a gradient, or
    saves, for the first time, loads more of torch."""
    before_s: float = 4.0
    """Counted before something goes wrong."""
    slow_s: float = 5.0
    factor: float = 4.0
    """How long, and how much, a component is slowed down."""
    least_s: float = 2.0
    """What is counted of a death at least, from its last sign of life on: it may be away for a few
    steps only, and what its return costs belongs to it."""
    after_s: float = 4.0
    latencies_ms: tuple[float, ...] = (0.0, 5.0, 25.0, 100.0)
    latency_s: float = 10.0
    """Counted at each of them."""
    accumulate: int = 4
    """M, where latencies are compared: 1F1B fills and drains its pipeline once in M."""

    @property
    def fault_step(self) -> int:
        """With one microbatch a step, and none that takes longer than it must; the next at which it
        would save: as much as can be is lost."""
        least = (self.settle_s + self.before_s) * 1e3 / self.pace_ms
        return math.ceil(least / SAVE_EVERY) * SAVE_EVERY


QUICK = Settings(
    victims=(1,),
    pace_ms=20.0,
    settle_s=2.0,
    before_s=2.0,
    slow_s=2.0,
    after_s=1.0,
    latencies_ms=(0.0, 25.0),
    latency_s=3.0,
)


def network(settings: Settings) -> dict[str, object]:
    """A network whose compute is next to nothing, slowed down by sleeping."""
    return {
        "components": COMPONENTS,
        "model.width": 16,
        "student.width": 16,
        "launch.threads": 1,
        "launch.pin": "false",
        "faults.pace_ms": settings.pace_ms,
        "patience_ms": settings.pace_ms / 2,
        **QUIET,
    }


QUIET = {"report.wandb": "off", "report.progress": "false"}
LONGER_THAN_WATCHED = {"steps": 20_000, "checkpoint.every": SAVE_EVERY}
"""The runs are stopped when enough was seen. The first save is over before anything counts."""


def paced(settings: Settings) -> dict[str, object]:
    """`free`, a line in the log for every microbatch."""
    return {
        **network(settings),
        **LONGER_THAN_WATCHED,
        "schedule": "free",
        "delay": 2,
        "accumulate": 1,
        "report.every": 1,
    }


def fault(settings: Settings, kind: str, victim: int) -> dict[str, object]:
    """kill or slow, at one component."""
    at = {"faults": kind, "faults.component": victim, "faults.step": settings.fault_step}
    slow = {"faults.duration_s": settings.slow_s, "faults.factor": settings.factor}
    return {**at, **(slow if kind == "slow" else {})}


def overrides(values: Mapping[str, object]) -> list[str]:
    """As `mach train` takes them."""
    return [f"{key}={value}" for key, value in values.items()]


# --- latency ------------------------------------------------------------------------------------


def enough_delay(latency_ms: float, pace_ms: float) -> int:
    """d, microbatches per hop, with which no component of a steady `delayed` has to wait.

    # p: pace, L: latency; on the clock of component k, D = 2 (K-1-k) d microbatches
    #
    # component k        F(b) .................................. B(b)     D later
    #                      L down the link                     L up the link
    # component k + 1           F(b) .................... B(b)            D - 2 d later

    An activation leaves after the forward (p / 3); its gradient leaves the parent after the
    backward (2 p / 3), and the parent is 2 d microbatches sooner there. Both travel for L. So
    2 L + p <= 2 d p, or d >= L / p + 1 / 2; rounded up from L / p + 1, some is left for jitter.
    """
    return math.ceil(latency_ms / pace_ms) + 1


def enough_credits(latency_ms: float, pace_ms: float) -> int:
    """W: frames of which the sender has not heard. It is up to 2 d microbatches ahead of the one
    who takes them, and the news that a frame was taken travels for L."""
    return 2 * enough_delay(latency_ms, pace_ms) + math.ceil(latency_ms / pace_ms) + 1


def at_latency(settings: Settings, schedule: str, latency_ms: float) -> dict[str, object]:
    """A schedule over a link with so much latency."""
    values = {
        **network(settings),
        **LONGER_THAN_WATCHED,
        "checkpoint.every": 0,  # 1F1B saves nothing either, and `delayed` flushes for it
        "launch.bind": "auto",
        "schedule": schedule,
        "accumulate": settings.accumulate,
        "report.every": 1,
    }
    if schedule == "sync":
        return values
    return {
        **values,
        "delay": enough_delay(latency_ms, settings.pace_ms),
        "transport.credits": enough_credits(latency_ms, settings.pace_ms),
    }


# --- accuracy and soak --------------------------------------------------------------------------


def mnist(path: str, steps: int, seed: int) -> dict[str, object]:
    """As conf/experiment/mnist.yaml, but free; real compute, and as many steps as said."""
    return {
        "data": "npz",
        "data.path": path,
        "schedule": "free",
        "components": COMPONENTS,
        "delay": 2,
        "accumulate": 4,
        "microbatch_size": 16,
        "steps": steps,
        "seed": seed,
        "launch.threads": 1,
        **QUIET,
    }


def soaked(settings: Settings, minutes: float, mnist: str | None) -> dict[str, object]:
    """A long run, with more steps than it can take."""
    data = {"data": "npz", "data.path": mnist} if mnist else {}
    return {
        **paced(settings),
        **data,
        "steps": max(1, round(minutes * 60e3 / settings.pace_ms)),
        "report.every": 10,
        "launch.max_restarts": 1000,
    }


def starting(settings: Settings, launch: str) -> dict[str, object]:
    """The same run, started as a gang or with an agent for each component."""
    return {**paced(settings), "launch": launch}


def turns(number: int, turn: int) -> list[int]:
    """The order of `number` variants in one round: none always comes after the same."""
    first = 3 * turn % number
    return [*range(first, number), *range(first)]
