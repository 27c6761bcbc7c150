"""The order of work, compared with the drawings; no process is started."""

from itertools import product

import pytest

from mach.schedule import (
    Backward,
    Evaluate,
    Flush,
    Forward,
    Step,
    actions,
    evaluation,
    flush_points,
    lag,
    staleness,
)


def drawn(*args, **kwargs):
    """Actions as the docstring draws them."""
    letters = {Forward: "F", Backward: "B"}
    signs = []
    for action in actions(*args, **kwargs):
        if isinstance(action, Step):
            signs.append("S")
        elif isinstance(action, Flush):
            signs.append("|")
        else:
            signs.append(f"{letters[type(action)]}{action.microbatch}")
    return " ".join(signs)


def test_sync_is_one_forward_one_backward_with_a_flush_at_every_step():
    assert [drawn("sync", 3, k, 0, 4, 1) for k in range(3)] == [
        "F0 F1 F2 B0 F3 B1 B2 B3 S |",
        "F0 F1 B0 F2 B1 F3 B2 B3 S |",
        "F0 B0 F1 B1 F2 B2 F3 B3 S |",
    ]


def test_sync_warms_up_no_further_than_its_microbatches():
    assert drawn("sync", 4, 0, 0, 1, 2) == "F0 B0 S F1 B1 S |"
    assert drawn("sync", 4, 0, 0, 2, 1) == "F0 F1 B0 B1 S |"


def test_delayed_goes_back_2_hops_d_microbatches_and_drains_at_the_end():
    assert [drawn("delayed", 3, k, 1, 2, 4) for k in range(3)] == [
        "F0 F1 F2 F3 F4 B0 F5 B1 S F6 B2 F7 B3 S B4 B5 S B6 B7 S |",
        "F0 F1 F2 B0 F3 B1 S F4 B2 F5 B3 S F6 B4 F7 B5 S B6 B7 S |",
        "F0 B0 F1 B1 S F2 B2 F3 B3 S F4 B4 F5 B5 S F6 B6 F7 B7 S |",
    ]


def test_delayed_drains_and_begins_anew_at_a_flush_point():
    assert drawn("delayed", 2, 0, 1, 2, 2, flush_points=[1]) == "F0 F1 B0 B1 S | F2 F3 B2 B3 S |"


def test_unlocked_components_step_by_their_forwards_and_hear_of_them_one_hop_later():
    assert [drawn("delayed", 3, k, 1, 2, 2, reach=1, unlocked=True) for k in range(3)] == [
        "F0 F1 S F2 B0 F3 B1 S B2 B3 |",
        "F0 F1 S F2 B0 F3 B1 S B2 B3 |",
        "F0 B0 F1 B1 S F2 B2 F3 B3 S |",
    ]


def test_a_parent_that_answers_at_once_is_one_hop_away():
    assert [lag(4, k, 3, reach=1) for k in range(4)] == [6, 6, 6, 0]
    assert drawn("sync", 4, 0, 0, 4, 1, reach=1) == "F0 F1 B0 F2 B1 F3 B2 B3 S |"


def test_delay_0_is_one_microbatch_at_a_time_whatever_the_component():
    orders = {drawn("delayed", 4, k, 0, 2, 2) for k in range(4)}
    assert orders == {"F0 B0 F1 B1 S F2 B2 F3 B3 S |"}


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected sync or delayed"):
        list(actions("later", 2, 0, 1, 1, 1))


CASES = list(product(["sync", "delayed"], [1, 2, 3, 4], [0, 1, 3], [1, 2, 4], [[], [2], [1, 3]]))


@pytest.mark.parametrize(("kind", "components", "delay", "accumulate", "flushes"), CASES)
def test_every_microbatch_goes_forth_once_and_back_once_in_order(
    kind, components, delay, accumulate, flushes
):
    steps = 5
    for k in range(components):
        todo = list(actions(kind, components, k, delay, accumulate, steps, flushes))
        everything = list(range(steps * accumulate))
        assert [a.microbatch for a in todo if isinstance(a, Forward)] == everything
        assert [a.microbatch for a in todo if isinstance(a, Backward)] == everything
        assert [a.step for a in todo if isinstance(a, Step)] == list(range(1, steps + 1))
        assert [a.step for a in todo if isinstance(a, Flush)] == [*flushes, steps]


@pytest.mark.parametrize(("kind", "components", "delay", "accumulate", "flushes"), CASES)
def test_staleness_in_the_actions_is_what_counting_the_steps_gives(
    kind, components, delay, accumulate, flushes
):
    for k in range(components):
        taken, announced, taken_before = 0, {}, {}
        for action in actions(kind, components, k, delay, accumulate, 5, flushes):
            match action:
                case Forward(b, announced_staleness):
                    announced[b], taken_before[b] = announced_staleness, taken
                case Backward(b):
                    assert taken - taken_before[b] == announced[b]
                case Step():
                    taken += 1
                case Flush():
                    assert announced.keys() == taken_before.keys()


@pytest.mark.parametrize("first_step", [1, 2])
def test_going_on_from_a_flush_point_repeats_the_rest_of_the_actions(first_step):
    whole = list(actions("delayed", 3, 0, 2, 2, 4, [1, 2]))
    rest = list(actions("delayed", 3, 0, 2, 2, 4, [1, 2], first_step))
    assert rest == whole[whole.index(Flush(first_step)) + 1 :]


def test_lag_and_staleness_follow_the_design():
    assert [lag(4, k, 2) for k in range(4)] == [12, 8, 4, 0]
    assert [staleness(4, k, 4, 4) for k in range(4)] == [6, 4, 2, 0]


def test_a_component_evaluates_every_origin_at_or_below_itself():
    assert list(evaluation(1, 2, windows=True)) == [
        Evaluate(0, 0),
        Evaluate(0, 1),
        Evaluate(1, 0),
        Evaluate(1, 1),
    ]
    assert list(evaluation(1, 1, windows=False, samples=7)) == [Evaluate(0, 0, 7)]


def test_flush_points_are_the_multiples_and_the_end():
    assert flush_points(10, 4, 0, 5) == [4, 5, 8, 10]
    assert flush_points(3) == [3]
