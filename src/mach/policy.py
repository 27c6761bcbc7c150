"""What does a component do next when it waits for nobody?

`schedule` lists what comes; under `free` nothing is fixed beforehand: a component looks at what
has arrived and decides. The decision is a pure function of that look, so the policy is tested
without processes and runs on any clock.

    a gradient has come            -> use it, in turn with activations             GRADIENT
    one is overdue, or never comes -> train that microbatch on the local loss      ALONE
    an activation has come         -> forward it (the input's data always has)     ACTIVATION
    the child is late or down      -> make the input with the student, go on       IMAGINE
    otherwise                      -> wait, for the child's patience at most       WAIT

Every microbatch that was begun is back-propagated exactly once: with its parent's gradient, or
alone where that is too old, lost, or was never asked for: the parent's queue was full, or two were
begun in a row and none was finished.

One forward, one backward, as in 1F1B, where both can be done: whoever takes all the gradients there
are first sends its child as many at once, which then does the same; such bunches fill a queue and
leave the next one empty, so that activations are dropped and others imagined for no reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from mach.schedule import Move

MOST_FORWARDS_IN_A_ROW = 2
"""Begun one after the other to wait for gradients; the next is trained alone, so that a component
takes steps while its pipeline fills: with the first parent, or a new one after a death."""


@dataclass(frozen=True)
class Look:
    """What a component sees when it decides."""

    gradient: bool
    """A gradient has come."""
    after_gradient: bool
    """The move before this one took a gradient."""
    overdue: bool
    """The oldest microbatch in flight has waited long enough for its gradient."""
    activation: bool
    """An activation has come; at the bottom, whose input is the data, always."""
    child_up: bool
    """The child is connected; it may be late all the same."""
    silent_ms: float
    """Since something came from the child; before that, since the first look."""
    has_student: bool


def decide(look: Look, patience_ms: float) -> Move:
    """The next move (see the table above)."""
    forward_is_next = look.after_gradient and look.activation and not look.overdue
    if look.gradient and not forward_is_next:
        return Move.GRADIENT
    if look.overdue:
        return Move.ALONE
    if look.activation:
        return Move.ACTIVATION
    late = not look.child_up or look.silent_ms >= patience_ms
    return Move.IMAGINE if late and look.has_student else Move.WAIT


def most_gradient_age(components: int, component: int, delay: int) -> int:
    """How many microbatches a component may begin before a gradient is too old for it.

    Each hop on the way up and down may hold `delay` microbatches in its queue and one that is
    being worked on.
    """
    return 2 * (components - 1 - component) * (delay + 1)


def most_activation_age(delay: int) -> int:
    """How many microbatches a child may have sent after an activation before it is too old."""
    return delay
