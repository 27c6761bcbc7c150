"""How busy will each component be, and what will it have in flight, when it takes so long?

The schedule is data, so a run can be gone through on paper: every action takes its time and begins
when the component is free and what it needs has come. Links are taken to be fast enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mach.config import Config
from mach.schedule import Action, Backward, Forward, Step, actions

_MICROBATCHES = 400
"""Gone through at each component: enough that filling and draining the chain weighs little."""


@dataclass(frozen=True)
class Durations:
    """How long one component takes, in seconds."""

    forward_s: float
    """Until its activation is sent, of a microbatch whose graph it keeps."""
    bare_forward_s: float
    """The same, of one that is run again later, at other weights (or kept with its own)."""
    backward_s: float
    """Of a graph that was kept."""
    late_backward_s: float
    """The same where the weights have moved: with the forward that is run again."""
    distil_s: float
    """What its student learns from one microbatch."""
    step_s: float
    """One optimizer step."""


@dataclass(frozen=True)
class Forecast:
    """What comes of it."""

    pace_s: float
    """Seconds from one microbatch to the next, once the chain is full."""
    busy_s: list[float]
    """Seconds that each component computes for a microbatch."""

    @property
    def busy_fractions(self) -> list[float]:
        """Part of its time that each component is not waiting."""
        return [busy_s / self.pace_s for busy_s in self.busy_s]


@dataclass(frozen=True)
class InFlight:
    """The most that one component has between forward and backward, at one time."""

    bare: int
    """Microbatches of which it has the input alone (or the graph with weights of its own)."""
    kept: int
    """Microbatches of which it has the graph."""
    versions: int
    """Optimizer steps that come while one of the bare is under way, and so versions of weights."""


def program(config: Config, k: int) -> list[Action]:
    """What component k does in a run as long as is gone through here. `free`, which has no fixed
    order, is taken as `delayed`, which it is when nothing is late."""
    kind = "delayed" if config.schedule == "free" else config.schedule
    steps = max(2, -(-_MICROBATCHES // config.accumulate))
    delay, accumulate = config.effective_delay, config.accumulate
    reach, unlocked = config.reach, config.unlocked
    return list(
        actions(
            kind, config.components, k, delay, accumulate, steps, reach=reach, unlocked=unlocked
        )
    )


def in_flight(config: Config, k: int) -> InFlight:
    """What component k has under way. The two maxima need not be at one time; they nearly are."""
    stale: dict[int, int] = {}
    bare = kept = versions = 0
    for action in program(config, k):
        match action:
            case Forward(microbatch, staleness):
                stale[microbatch] = staleness
            case Backward(microbatch):
                del stale[microbatch]
        late = [s for s in stale.values() if s > 0]
        bare, kept = max(bare, len(late)), max(kept, len(stale) - len(late))
        versions = max(versions, *late, 0)
    return InFlight(bare, kept, versions)


def forecast(config: Config, durations: Sequence[Durations], lanes: int) -> Forecast:
    """Go through a run.

    Args:
        durations: of each component.
        lanes: how many components can compute at the same time, by the machine's cores or GPUs.
    """
    last = config.components - 1
    programs = [program(config, k) for k in range(config.components)]
    places, clocks, busy_s = ([0 for _ in programs], [0.0] * len(programs), [0.0] * len(programs))
    ups: list[dict[int, float]] = [{} for _ in programs]  # when k sent microbatch b up
    downs: list[dict[int, float]] = [{} for _ in programs]
    stale: list[dict[int, int]] = [{} for _ in programs]

    def advance(k: int) -> bool:
        """The next action of component k; False where it waits for another component to go on."""
        if places[k] == len(programs[k]):
            return False
        action, d, after_s = programs[k][places[k]], durations[k], 0.0
        began_s = clocks[k]
        match action:
            case Forward(b, staleness):
                if k > 0 and b not in ups[k - 1]:
                    return False
                began_s = max(began_s, ups[k - 1][b] if k > 0 else 0.0)
                stale[k][b] = staleness
                sent_s = began_s + (d.bare_forward_s if staleness else d.forward_s)
                ups[k][b], after_s = sent_s, sent_s + d.distil_s
                if config.unlocked and k < last:
                    after_s += d.backward_s  # it learns at once
                if config.answers and k < last:
                    downs[k][b] = after_s
            case Backward(b):
                if k < last and config.feedback > 0:
                    if b not in downs[k + 1]:
                        return False
                    began_s = max(began_s, downs[k + 1][b])
                late = stale[k].pop(b) > 0 and config.replay == "recompute"
                after_s = began_s
                if not (config.unlocked and k < last):
                    after_s += d.late_backward_s if late else d.backward_s
                if not (config.answers and k < last):
                    downs[k][b] = after_s
            case Step():
                after_s = began_s + d.step_s
            case _:
                after_s = began_s
        busy_s[k] += after_s - began_s
        clocks[k], places[k] = after_s, places[k] + 1
        return True

    while any(advance(k) for k in range(config.components)):
        pass
    microbatches = sum(isinstance(action, Forward) for action in programs[0])
    each_s = [seconds / microbatches for seconds in busy_s]
    # More components than lanes take turns.
    return Forecast(max(max(clocks) / microbatches, sum(each_s) / lanes), each_s)
