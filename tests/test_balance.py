"""Where a network is cut: compared with trying every cut."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import nn

from mach.balance import partition
from mach.trainer import measure
from mach.trainer.measure import Stopwatch


def every_cut(blocks, parts):
    for ends in combinations(range(1, blocks), parts - 1):
        yield [b - a for a, b in pairwise([0, *ends, blocks])]


def costs_of(sizes, cost):
    stops = np.cumsum(sizes).tolist()
    return [
        cost(k, stop - size, stop) for k, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_has_a_smaller_largest_part_and_none_as_small_is_more_even(seed):
    """Whole numbers, so that sums are exact and cuts often tie; a part has costs of its own."""
    random = np.random.default_rng(seed)
    blocks = int(random.integers(1, 10))
    parts = int(random.integers(1, blocks + 1))
    weights = random.integers(0, 6, blocks)
    first, enter, leave = int(random.integers(0, 6)), *random.integers(0, 4, (2, blocks + 1))

    def cost(k, start, stop):
        own = first if k == 0 else enter[start]
        return float(weights[start:stop].sum() * (1 if k == 0 else 2) + own + leave[stop])

    found = partition(blocks, parts, cost)
    assert sum(found) == blocks
    assert len(found) == parts
    assert min(found) >= 1
    best = min(
        (max(costs), sum(c * c for c in costs))
        for costs in (costs_of(sizes, cost) for sizes in every_cut(blocks, parts))
    )
    mine = costs_of(found, cost)
    assert (max(mine), sum(c * c for c in mine)) == best


def test_equal_blocks_are_divided_as_equally_as_can_be():
    assert sorted(partition(10, 4, lambda k, start, stop: 0.1 * (stop - start))) == [2, 2, 3, 3]


def test_a_hundred_blocks_are_cut_within_a_second():
    assert sum(partition(110, 16, lambda k, start, stop: float(stop - start))) == 110


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_measured_may_change_its_input_in_place(gradient):
    """It is given a copy: the next one is measured on the same tensor."""
    module, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)), -torch.ones(4, 3)
    times = Stopwatch(torch.device("cpu"), 1.0, 1).times(module, module, x, gradient)
    assert min(times.forward_s, times.backward_s) > 0
    assert torch.equal(x, -torch.ones(4, 3))


class Hands:
    """A clock that goes when it is told to; stands in for `time`."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s

    def laps(self, *lengths_s):
        """Something that takes as long, the first times and from then on."""
        coming = iter(lengths_s)

        def laps(lap):
            lap()
            self.now_s += next(coming, lengths_s[-1])
            lap()

        return laps


@pytest.fixture
def hands(monkeypatch):
    found = Hands()
    monkeypatch.setattr(measure, "time", found)
    return found


def test_what_the_first_of_all_runs_loads_is_not_its_time(hands):
    """The first gradient of a process loads a part of torch: a second on a busy machine, more than
    the share of one of 34 things. A stem was weighed so, and the lowest component had one block."""
    watch = Stopwatch(torch.device("cpu"), 20.0, 34)
    assert watch.medians(hands.laps(1.0, 0.03)) == [pytest.approx(0.03)]


def test_what_is_slow_is_measured_once_when_the_time_is_over(hands):
    watch = Stopwatch(torch.device("cpu"), 20.0, 34)
    for _ in range(34):
        assert watch.medians(hands.laps(2.0)) == [pytest.approx(2.0)]
    assert hands.now_s < 34 * 2.0 + 20.0
