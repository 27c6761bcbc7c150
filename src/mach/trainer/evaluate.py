"""How good are all exits and windows, when one process holds every component?

Under `free` the components do not meet at the end: one of them loads what all have saved. It needs
room for the weights of the whole network, without optimizers and without activations in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mach.component import Component
from mach.data import Batches
from mach.metrics import Score, Task


def evaluate(
    components: Sequence[Component | None],
    batches: Batches,
    task: Task,
    device: torch.device,
    *,
    windows: bool,
    beat: Callable[[], None] = lambda: None,
) -> list[dict[int, dict[str, float]]]:
    """Evaluate on the whole split that `batches` evaluates.

    Args:
        components: the chain; None for one that never saved anything.
        windows: evaluate windows, beside the chain's exits.
        beat: called after each batch; whoever watches sees that this goes on.

    Returns:
        For each component its results by origin: 0 is the chain, j >= 1 the window that begins at
        j. What would need a missing component is left out.
    """
    scores: list[dict[int, Score]] = [{} for _ in components]
    for batch in range(batches.evaluation_batches()):
        x, y = batches.evaluation(batch)
        for origin in range(len(components) if windows else 1):
            h = x
            for k in range(origin, len(components)):
                component = components[k]
                if component is None:
                    break
                if k == origin > 0:
                    h = component.imitate_child(x)
                h = component.infer(h, x)
                score = scores[k].setdefault(origin, Score(device))
                score.add(component.predict(h), component.targets(y))
        beat()
    return [{origin: s.result(task) for origin, s in of_k.items()} for of_k in scores]
