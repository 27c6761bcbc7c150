"""Where is a network cut so that its slowest part is as fast as can be?

What waits for nobody is still no faster than its slowest component: that one sets the pace. Cutting
a row of blocks into contiguous parts is small enough to be done exactly, by dynamic programming.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# n blocks, K parts; part k of blocks [start, stop) has cost(k, start, stop) >= 0

Cost = Callable[[int, int, int], float]


def partition(blocks: int, parts: int, cost: Cost) -> list[int]:
    """Sizes of the parts whose largest cost is the least possible.

    Among several such cuts it takes one whose costs are most even (the least sum of squares): first
    the least largest cost is found, then the most even cut that keeps to it. Takes K n^2 / 2 calls
    of `cost`, twice.

    Args:
        blocks: n >= parts.
        parts: K >= 1; each has a block or more.
        cost: of part k with blocks [start, stop), whatever the other parts have; infinite where
            there can be no such part. The sizes are none where there is no cut without one.
    """
    assert 1 <= parts <= blocks, (parts, blocks)
    limit, _ = _best(blocks, parts, cost, max)
    slack = limit * (1 + 1e-12)  # sums of the same numbers in another order

    def squared(k: int, start: int, stop: int) -> float:
        c = cost(k, start, stop)
        return c * c if c <= slack else math.inf

    return _best(blocks, parts, squared, lambda a, b: a + b)[1]


def _best(
    blocks: int, parts: int, cost: Cost, join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The cut whose joined costs are least, and what they are."""
    # best[stop]: the cut of blocks [0, stop) into the parts so far; none for too few blocks
    none: tuple[float, list[int]] = (math.inf, [])
    best = [(0.0, list[int]()), *[none] * blocks]
    for k in range(parts):
        longer = [none] * (blocks + 1)
        for stop in range(k + 1, blocks - (parts - 1 - k) + 1):  # a block for each part to come
            for start in range(k, stop):
                before, sizes = best[start]
                joined = join(before, cost(k, start, stop)) if before < math.inf else math.inf
                if joined < longer[stop][0]:
                    longer[stop] = (joined, [*sizes, stop - start])
        best = longer
    return best[blocks]
