"""How large must a network be that is trained alone beside an exit, a window, or a whole run?

A window's first part is a student, which is no block of the chain, so that the width is what has to
give: the network has as many blocks as the window has bodies and student, and the width that comes
nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from grid import TASKS

from mach.data import open_dataset
from mach.launcher.compose import compose
from mach.results import Cost
from mach.trainer import Assembly

Size = tuple[int, int]
"""Blocks and width."""


def sizes(name: str, path: str, cache: str) -> list[Size]:
    """Networks of the size of every exit below the top, of every window, and of all that `mach`
    trains together."""
    task = TASKS[name]
    common = [f"experiment={task.experiment}", f"data.path={path}", f"data.cache={cache}"]

    def assembled(*words: str) -> Assembly:
        config = compose([*common, *words])
        return Assembly(config, open_dataset(config.data).task)

    whole = assembled(f"components={task.components}")
    costs, width = whole.costs(), whole.config.model.width  # type: ignore[attr-defined]

    def alone(blocks: int, width: int) -> Cost:
        words = [f"components={blocks}", f"model.width={width}", "student=none"]
        return assembled(*words).costs().model(0, blocks - 1)

    top = task.components - 1
    found = [(k + 1, width) for k in range(top)]
    for j in range(1, top + 1):
        bodies = top - j + 1
        wanted = costs.model(j, top).flops
        found.append((bodies + 1, nearest(wanted, _by_width(alone, bodies + 1, "flops"), width)))
    parts: Iterable[Cost] = (*costs.bodies, *costs.heads, *costs.students.values())
    together = sum(part.params for part in parts)
    of_params = _by_width(alone, task.components, "params")
    return [*found, (task.components, nearest(together, of_params, width))]


def nearest(wanted: int, cost: Callable[[int], int], start: int) -> int:
    """The width whose cost, which grows with it, comes nearest to `wanted`."""
    low = high = start
    while cost(high) < wanted:
        high *= 2
    while low > 1 and cost(low) > wanted:
        low //= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= wanted else (low, middle)
    return min((low, high), key=lambda width: abs(cost(width) - wanted))


def _by_width(alone: Callable[[int, int], Cost], blocks: int, what: str) -> Callable[[int], int]:
    with torch.device("cpu"):
        return lambda width: int(getattr(alone(blocks, width), what))
