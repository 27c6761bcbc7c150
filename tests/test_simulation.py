"""The policy of `free` at work: real arithmetic, virtual time, no process."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from clouds import clouds, make
from mach.schedule import Flush, Move
from mach.trainer import FreeWorker, Simulation, moves

STEPS, M = 60, 2
MICROBATCHES = STEPS * M


def simulate(components=3, steps=STEPS, pace_s=None, latency_s=0.0, **overrides) -> Simulation:
    """A chain whose microbatches take a second, and whose components have half a second's
    patience; not yet run."""
    values = {
        "schedule": "free",
        "delay": 2,
        "steps": steps,
        "accumulate": M,
        "patience_ms": 500,
        "head": {"weight": 0.1},
        "student": {"enabled": True, "width": 8},
        "optim": {"clip": 1.0},
    }
    config = make(components, **{**values, **overrides})
    return Simulation(config, clouds(), pace_s=pace_s, latency_s=latency_s)


class Uneven(list[float]):
    """Paces, of which each that is asked for is a little longer than the least."""

    def __init__(self, paces: list[float]) -> None:
        super().__init__(paces)
        self._random = random.Random(0)

    def __getitem__(self, k):
        return super().__getitem__(k) * (1 + self._random.expovariate(10.0))


def life(simulation: Simulation, k: int):
    found = simulation.lives[k]
    assert found is not None
    return found


def another_life(simulation: Simulation, **given) -> FreeWorker:
    """A worker of component 1 beside the one that it has."""
    one = life(simulation, 1)
    return FreeWorker(
        1,
        one.component,
        one.worker.channels,
        simulation.batches,
        simulation.device,
        config=simulation.config,
        clock=one.clock,
        **given,
    )


def steps_per_s(simulation: Simulation, k: int, start_s: float, end_s: float) -> float:
    """Of a component in a stretch of virtual time; one that stands still to its end is slower."""
    taken = [moment for moment in life(simulation, k).stepped_s if start_s <= moment < end_s]
    return len(taken) / (end_s - start_s)


def finish(simulation: Simulation) -> Simulation:
    simulation.run()
    for k, one in enumerate(simulation.lives):
        assert one is not None, k
        assert one.component.version == simulation.config.steps, k
    return simulation


def test_every_component_takes_all_its_steps_and_the_chain_has_learnt():
    simulation = finish(simulate(steps=150))
    chain = simulation.result()["chain"]
    assert [row["exit"] for row in chain] == [0, 1, 2]
    assert chain[-1]["accuracy"] > 0.9  # a guess gets 0.25


def test_a_simulation_repeats_itself_bit_by_bit():
    one, other = finish(simulate()), finish(simulate())
    for a, b in zip(one.lives, other.lives, strict=True):
        assert a.actions == b.actions
        for x, y in zip(a.component.body.parameters(), b.component.body.parameters(), strict=True):
            assert torch.equal(x, y)


def test_one_component_alone_is_ordinary_training():
    """Nothing to wait for, drop or imagine: the same weights as under `delayed`."""
    from mach.trainer import Oracle

    simulation = finish(simulate(components=1))
    oracle = Oracle(
        make(
            1,
            delay=2,
            steps=STEPS,
            accumulate=M,
            head={"weight": 0.1},
            student={"enabled": True, "width": 8},
            optim={"clip": 1.0},
        ),
        clouds(),
    )
    oracle.run()
    mine = life(simulation, 0).component
    theirs = oracle.trainers[0].worker.component
    for a, b in zip(mine.body.parameters(), theirs.body.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_slow_component_slows_nobody():
    even = finish(simulate())
    slow = finish(simulate(pace_s=[1.0, 4.0, 1.0]))
    # Each neighbour of the slow one is done as soon as it was without it: what is missing it makes
    # or leaves out.
    for k in (0, 2):
        undisturbed = moment_of_last_step(even, k)
        assert moment_of_last_step(slow, k) <= 1.05 * undisturbed
    assert moment_of_last_step(slow, 1) > 3 * moment_of_last_step(even, 1)
    assert life(slow, 2).worker.counts["imagined"] > 0.5 * MICROBATCHES
    assert life(slow, 0).worker.counts["alone"] > 0.5 * MICROBATCHES


def moment_of_last_step(simulation: Simulation, k: int) -> float:
    """Virtual second of a component's last step."""
    return life(simulation, k).stepped_s[-1]


def test_latency_slows_nobody():
    near, far = finish(simulate()), finish(simulate(latency_s=7.0, delay=10))
    for k in range(3):
        assert moment_of_last_step(far, k) <= 1.05 * moment_of_last_step(near, k) + 2 * 7.0


def test_a_message_is_not_seen_before_it_arrives():
    simulation = simulate(components=2, latency_s=3.0, patience_ms=1e9)
    simulation.run(until_s=3.0)
    assert Move.ACTIVATION not in [move for _, move in life(simulation, 1).actions]
    simulation.run(until_s=4.0)
    first = next(t for t, move in life(simulation, 1).actions if move is Move.ACTIVATION)
    assert first == pytest.approx(1 / 3 + 3.0)


def test_what_is_done_for_others_after_the_last_step_is_not_counted():
    """The bottom was said to have trained more microbatches alone than it had trained."""
    simulation = simulate(steps=40, pace_s=[1.0, 4.0, 1.0])
    simulation.run(until_s=50 * M)
    fast = life(simulation, 0).worker
    assert fast.serving
    counted = dict(fast.counts)
    begun = fast.backwards
    simulation.run(until_s=80 * M)
    assert fast.backwards > begun
    assert dict(fast.counts) == counted


@pytest.mark.parametrize("dead", [0, 2])
def test_one_that_returns_to_a_dead_neighbour_does_without_it(dead):
    """It took itself for the end of the chain, so that its body was given the raw input."""
    simulation = simulate(steps=200)
    simulation.at(60, lambda: simulation.kill(dead))
    simulation.at(60, lambda: simulation.kill(1))
    simulation.at(70, lambda: simulation.revive(1))
    simulation.run(until_s=120)
    counts = life(simulation, 1).worker.counts
    assert counts["imagined" if dead == 0 else "alone"] > 30, counts
    simulation.revive(dead)
    simulation.run(until_s=170)
    later = Counter(move for moment, move in life(simulation, 1).actions if moment > 125)
    assert later[Move.ACTIVATION if dead == 0 else Move.GRADIENT] > 20


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_the_others_train_on_when_one_dies_and_go_back_to_it_when_it_returns(dead):
    simulation = simulate(steps=200)
    simulation.at(80, lambda: simulation.kill(dead))
    simulation.at(150, lambda: simulation.revive(dead))
    simulation.run(until_s=149)
    for k in {0, 1, 2} - {dead}:
        before, during = (steps_per_s(simulation, k, *span) for span in ((20, 80), (80, 150)))
        assert during >= 0.95 * before, k
    parent, child = dead + 1, dead - 1
    if parent < 3:
        assert life(simulation, parent).worker.counts["imagined"] > 50
    if child >= 0:
        assert life(simulation, child).worker.counts["alone"] > 50
    finish(simulation)
    returned = life(simulation, dead)
    assert returned.worker.life == 1
    assert returned.first_step > 0, "it began anew although it had saved"
    assert returned.component.ages.gradients >= 200 * M, "those of its first life count as well"
    later = Counter(move for moment, move in returned.actions if moment > 155)
    if dead > 0:
        assert later[Move.ACTIVATION] > 50
    if dead < 2:
        assert later[Move.GRADIENT] > 50


@pytest.mark.parametrize("dead", [1, 2, 3])
@pytest.mark.parametrize("away_s", [1, 5])
def test_a_child_takes_steps_throughout_while_its_parents_pipeline_fills_again(dead, away_s):
    simulation = simulate(components=4, steps=100, accumulate=1)
    simulation.at(40, lambda: simulation.kill(dead))
    simulation.at(40 + away_s, lambda: simulation.revive(dead))
    simulation.run(until_s=80 + away_s)
    taken = [moment for moment in life(simulation, dead - 1).stepped_s if moment > 40]
    # Undisturbed it takes 1 s from one to the next; filled at once, up to 3.3.
    assert max(b - a for a, b in pairwise(taken)) < 1.9, taken


def test_components_that_differ_a_little_step_evenly_and_hardly_miss_each_other():
    """Whoever takes all gradients first sends them in bunches: between two steps there are 0.7 s
    here, 2 s there, and a third of some component's microbatches are imagined or alone."""
    simulation = simulate(components=4, steps=100, accumulate=1)
    simulation.pace_s = Uneven([1.0] * 4)
    simulation.run(until_s=100)
    for k in range(4):
        taken = [moment for moment in life(simulation, k).stepped_s if moment > 30]
        gaps = sorted(b - a for a, b in pairwise(taken))
        assert gaps[int(0.95 * len(gaps))] < 1.6, gaps
        counts = life(simulation, k).worker.counts
        assert counts["imagined"] + counts["alone"] < 12, counts


def test_what_the_parent_of_a_dead_component_makes_is_of_its_own_choosing():
    """(seed, component, life, number) name a microbatch: nobody draws the same stream."""
    simulation = simulate()
    batches = simulation.batches
    streams = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    drawn = [batches.train(3, *stream)[0] for stream in streams]
    for i, x in enumerate(drawn):
        assert torch.equal(x, batches.train(3, *streams[i])[0])
        assert not any(torch.equal(x, other) for other in drawn[:i])
    assert torch.equal(drawn[0], batches.train(3)[0])


def test_two_neighbours_may_be_dead_at_once():
    simulation = simulate(components=4, steps=150)
    for k in (1, 2):
        simulation.at(40, lambda k=k: simulation.kill(k))
        simulation.at(80, lambda k=k: simulation.revive(k))
    finish(simulation)
    assert simulation.result()["chain"][-1]["accuracy"] > 0.8


def test_without_students_a_component_waits_for_its_child():
    simulation = simulate(student={"enabled": False})
    simulation.at(20, lambda: simulation.kill(0))
    simulation.run(until_s=60)
    stuck = [move for moment, move in life(simulation, 1).actions if moment > 40]
    assert set(stuck) == {Move.WAIT}


def test_no_gradient_is_older_than_its_bound():
    """Delay 0: whatever has waited for longer than one microbatch at each hop is left out."""
    simulation = finish(simulate(delay=0, latency_s=20.0))
    for k in (0, 1):
        counts = life(simulation, k).worker.counts
        assert counts["alone"] == pytest.approx(MICROBATCHES, abs=8)
        assert life(simulation, k).records[-1]["staleness_steps"] <= 3


def test_a_component_that_is_done_goes_on_serving():
    simulation = finish(simulate(pace_s=[0.5, 1.0, 1.0]))
    first = life(simulation, 0)
    assert first.worker.serving
    weights = [p.clone() for p in first.component.body.parameters()]
    served = len([1 for _, move in first.actions if move is Move.ACTIVATION]) - MICROBATCHES
    assert served > 20, "its parents were left with their students"
    simulation.run(until_s=simulation.now_s + 20)
    for before, now in zip(weights, first.component.body.parameters(), strict=True):
        assert torch.equal(before, now)
    assert life(simulation, 1).worker.counts["imagined"] < 0.2 * MICROBATCHES


def test_every_microbatch_is_back_propagated_once():
    simulation = finish(simulate(pace_s=[1.0, 2.0, 0.7]))
    for k in range(3):
        worker = life(simulation, k).worker
        moves = Counter(move for _, move in life(simulation, k).actions)
        begun = moves[Move.ACTIVATION] + moves[Move.IMAGINE] - worker.counts["late_activations"]
        assert begun - len(worker.component.pending) == worker.backwards


def test_feedback_zero_trains_on_local_losses_and_calls_none_alone():
    simulation = finish(simulate(feedback=0, head={"weight": 1.0}))
    for k in range(3):
        assert life(simulation, k).worker.counts["alone"] == 0
        assert life(simulation, k).worker.backwards >= MICROBATCHES


def test_a_component_that_begins_when_the_run_is_over_does_nothing():
    """It died while it served and came back after the last of the others was done: the news was
    there before its worker, and was once forgotten, so that it served for ever."""
    simulation = simulate()
    worker = another_life(simulation, life=1, over=lambda: True)
    assert list(moves(simulation.config, worker, 0, 3)) == []
    assert list(moves(simulation.config, worker, 0, STEPS)) == [Flush(STEPS)]


def test_the_patience_for_a_child_begins_with_the_first_look_for_it():
    """It began before the chain came up: a component took its living child for silent at once, and
    trained on what a student makes that has learnt nothing."""
    simulation = simulate()
    worker = another_life(simulation, life=0)
    clock = life(simulation, 1).clock
    clock.spend(30.0)
    assert worker.decide() is Move.WAIT
    clock.spend(0.4)
    assert worker.decide() is Move.WAIT
    clock.spend(0.1)
    assert worker.decide() is Move.IMAGINE
