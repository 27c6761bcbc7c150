"""Does a component under `free` decide as the table in mach.policy says?"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from mach.policy import Look, decide, most_activation_age, most_gradient_age
from mach.schedule import Move

IDLE = Look(
    gradient=False,
    after_gradient=False,
    overdue=False,
    activation=False,
    child_up=True,
    silent_ms=0.0,
    has_student=True,
)


def looks():
    """Everything a component can see, with a child silent for less and for more than 100 ms."""
    for gradient, after, overdue, activation, up, student in product([False, True], repeat=6):
        for silent_ms in (0.0, 99.9, 100.0, 1e6):
            yield Look(gradient, after, overdue, activation, up, silent_ms, student)


def test_a_gradient_that_has_come_goes_before_everything_but_an_activation_after_another():
    for look in looks():
        by_turns = look.after_gradient and look.activation and not look.overdue
        assert (decide(look, 100) is Move.GRADIENT) == (look.gradient and not by_turns)


def test_after_a_gradient_an_activation_is_next():
    look = replace(IDLE, gradient=True, activation=True)
    assert decide(look, 100) is Move.GRADIENT
    assert decide(replace(look, after_gradient=True), 100) is Move.ACTIVATION
    # Where too much waits for its gradient already, one more forward would not help.
    assert decide(replace(look, after_gradient=True, overdue=True), 100) is Move.GRADIENT


def test_an_overdue_microbatch_goes_before_new_work():
    for look in looks():
        if not look.gradient:
            assert (decide(look, 100) is Move.ALONE) == look.overdue


def test_an_activation_that_has_come_is_forwarded_whatever_the_child_does():
    for look in looks():
        if not look.gradient and not look.overdue:
            assert (decide(look, 100) is Move.ACTIVATION) == look.activation


@pytest.mark.parametrize(
    ("change", "move"),
    [
        ({}, Move.WAIT),
        ({"silent_ms": 99.9}, Move.WAIT),
        ({"silent_ms": 100.0}, Move.IMAGINE),
        ({"child_up": False}, Move.IMAGINE),
        ({"child_up": False, "has_student": False}, Move.WAIT),
        ({"silent_ms": 1e9, "has_student": False}, Move.WAIT),
    ],
)
def test_the_student_takes_over_when_the_child_is_late_or_down(change, move):
    assert decide(replace(IDLE, **change), 100) is move


def test_no_patience_never_waits_for_a_child():
    for look in looks():
        if look.has_student:
            assert decide(look, 0) is not Move.WAIT


@pytest.mark.parametrize(("delay", "ages"), [(0, [6, 4, 2, 0]), (1, [12, 8, 4, 0])])
def test_a_gradient_may_be_delay_and_one_late_at_every_hop_there_and_back(delay, ages):
    assert [most_gradient_age(4, k, delay) for k in range(4)] == ages
    assert most_activation_age(delay) == delay
