"""In which order does a component do its work?

Order is data: `actions` is a pure function of the schedule's parameters and returns what one
component will do; `trainer.step` makes it happen. Receives and sends follow from the actions:
`Forward` receives an activation from the child and sends one to the parent, `Backward` receives a
gradient from the parent and sends one to the child.

    # K: components, k: this component, d: delay per hop, M: microbatches per optimizer step
    # Ft: Forward(t), Bt: Backward(t), S: Step

`sync` is 1F1B with a flush at every optimizer step (Narayanan et al., PipeDream-2BW, 2021,
section 2). K = 3, M = 4:

    k = 0    F0 F1 F2 B0 F3 B1 B2 B3 S
    k = 1       F0 F1 B0 F2 B1 F3 B2 B3 S
    k = 2          F0 B0 F1 B1 F2 B2 F3 B3 S

`delayed` never flushes in between. On its own clock t, component k does Forward(t), then
Backward(t - 2 (K-1-k) d). There is no global clock; the messages alone order the ranks.
K = 3, d = 1, M = 2:

    k = 0    F0 F1 F2 F3 F4 B0 F5 B1 S F6 B2 ..      lag 4
    k = 1    F0 F1 F2 B0 F3 B1 S F4 B2 ..            lag 2
    k = 2    F0 B0 F1 B1 S F2 B2 ..                  lag 0

With d = 0 every component is at lag 0: the exact gradient, one microbatch in the chain at a time.

Where a parent answers at once, with a gradient that does not wait for what lies above it (`reach`
1), components below the top are at lag 2 d. Where they are `unlocked` they do not wait for that
either: they learn at their forward, and what comes late only teaches them to predict it.
K = 3, d = 1, M = 2:

    k = 0    F0 F1 S F2 B0 F3 B1 S F4 B2 ..          lag 2
    k = 1    F0 F1 S F2 B0 F3 B1 S F4 B2 ..          lag 2
    k = 2    F0 B0 F1 B1 S F2 B2 ..                  lag 0

`free` has no list: `mach.policy` decides what is next from what has arrived.

At a flush point n `sync` and `delayed` finish every microbatch of the first n steps, take
step n, and emit Flush(n): nothing of theirs is in flight, so a checkpoint taken there is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto

KINDS = ("sync", "delayed", "free")

# Actions are no named tuples: Step(1) must not equal Backward(1).


@dataclass(frozen=True, slots=True)
class Forward:
    """Run microbatch b through the body and send the result up.

    `staleness` says how many optimizer steps this component takes before Backward(b): at 0 the
    graph of this forward can be used as it is, otherwise the weights will have moved.
    """

    microbatch: int
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class Backward:
    """Back-propagate microbatch b and send the gradient of its input down."""

    microbatch: int


@dataclass(frozen=True, slots=True)
class Step:
    """Take optimizer step n (1 is the first) with the gradients gathered since step n - 1."""

    step: int


@dataclass(frozen=True, slots=True)
class Flush:
    """n steps are done and nothing is in flight: the place to evaluate and to save."""

    step: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Pass test batch `batch` on; it entered the chain at component `origin`.

    Origin 0 is the chain with real activations; origin j >= 1 begins with the student of j: the
    windows j..i. Evaluation has no schedule of its own: `evaluation` lists it at a flush.
    """

    origin: int
    batch: int
    samples: int | None = None
    """Test samples in all that this evaluation takes; None takes every one."""


class Move(Enum):
    """What a component can do under `free`; `mach.policy` decides."""

    GRADIENT = auto()
    """Use the gradient that has come."""
    ALONE = auto()
    """Wait no longer for the gradient of the oldest microbatch: train it on the local loss."""
    ACTIVATION = auto()
    """Forward the activation that has come."""
    IMAGINE = auto()
    """Make a microbatch of its own, whose input the student makes."""
    WAIT = auto()


Action = Move | Forward | Backward | Step | Flush | Evaluate


def lag(components: int, component: int, delay: int, reach: int | None = None) -> int:
    """Microbatches between a component's Forward(b) and its Backward(b) under `delayed`.

    Args:
        reach: from how many hops above a gradient comes; None is from the top.
    """
    hops = components - 1 - component
    return 2 * (hops if reach is None else min(hops, reach)) * delay


def staleness(
    components: int, component: int, delay: int, accumulate: int, reach: int | None = None
) -> float:
    """tau_k of design section 2: mean age of the gradient at component k, in optimizer steps."""
    return lag(components, component, delay, reach) / accumulate


def actions(
    kind: str,
    components: int,
    component: int,
    delay: int,
    accumulate: int,
    steps: int,
    flush_points: Collection[int] = (),
    first_step: int = 0,
    *,
    reach: int | None = None,
    unlocked: bool = False,
) -> Iterator[Action]:
    """Everything component `component` does from step `first_step` to step `steps`, in order.

    Args:
        kind: `sync` or `delayed`.
        components: K >= 1.
        component: k, 0 <= k < K.
        delay: d >= 0, microbatches per hop (`sync` has none).
        accumulate: M >= 1, microbatches per optimizer step.
        steps: the last optimizer step.
        flush_points: steps after which nothing may be in flight; `steps` always is one.
        first_step: a flush point to go on from; microbatches start at `first_step * accumulate`.
        reach: from how many hops above a gradient comes; None is from the top.
        unlocked: components below the top learn at their forward.
    """
    hops = components - 1 - component
    reach = hops if reach is None else min(hops, reach)
    unlocked = unlocked and hops > 0
    stops = sorted({n for n in flush_points if first_step < n < steps} | {steps})
    for start, stop in zip([first_step, *stops], stops, strict=False):
        if kind == "sync":
            for step in range(start, stop):
                yield from _one_f_one_b(reach, accumulate, step)
        elif kind == "delayed":
            yield from _delayed(2 * reach * delay, accumulate, start, stop, unlocked)
        else:
            raise ValueError(f"schedule kind: expected sync or delayed, got {kind!r}")
        yield Flush(stop)


def _one_f_one_b(reach: int, accumulate: int, step: int) -> Iterator[Action]:
    """One optimizer step of 1F1B: warm up, alternate, drain."""
    first, end = step * accumulate, (step + 1) * accumulate
    warm_up = min(reach, accumulate)
    for microbatch in range(first, end + warm_up):
        if microbatch < end:
            yield Forward(microbatch)
        if microbatch >= first + warm_up:
            yield Backward(microbatch - warm_up)
    yield Step(step + 1)


def _delayed(lag: int, accumulate: int, start: int, stop: int, unlocked: bool) -> Iterator[Action]:
    """Steps `start` to `stop` of the delayed schedule, ending with an empty pipeline."""
    first, end = start * accumulate, stop * accumulate
    for microbatch in range(first, end + lag):
        back = microbatch - lag
        if microbatch < end:
            done = max(back - first, 0) // accumulate  # own steps before this forward
            due = (microbatch - first) // accumulate  # own steps before its backward
            yield Forward(microbatch, 0 if unlocked else due - done)
        if back >= first:
            yield Backward(back)
        learned = microbatch if unlocked else back  # the microbatch whose gradient came last
        if first <= learned < end and (learned + 1) % accumulate == 0:
            yield Step((learned + 1) // accumulate)


def evaluation(
    component: int, batches: int, *, windows: bool, samples: int | None = None
) -> Iterator[Evaluate]:
    """What component k does for one evaluation: pass on every origin at or below itself.

    Origins come one after another, so the streams follow each other through the chain and every
    component is busy. With `windows` false only origin 0, the chain, is evaluated.
    """
    for origin in range(component + 1 if windows else 1):
        for batch in range(batches):
            yield Evaluate(origin, batch, samples)


def flush_points(steps: int, *intervals: int) -> list[int]:
    """Multiples of each positive interval below `steps`, and `steps` itself, in order."""
    points = {n for every in intervals if every > 0 for n in range(every, steps, every)}
    return sorted(points | {steps})
