"""How much does a component lean on its child, how much on its student or on the raw input?

The diagnostics of the 2019 code. A source v is what comes into the body: the child's activation,
the student's guess in its place, or the raw input. All but two of the scores say, in nats, how much
the loss of a sample would rise if the source were zero, at increasing cost:

    # g gradient of a sample's loss with respect to v; sums over the numbers of v, mean over samples
    pruning_first     - sum g v                            first order
    pruning_second    - sum g v + 1/2 sum (g v)^2          with Fisher's diagonal in place of the
                                                           Hessian's (Theis et al., 2018)
    integrated        - sum v int_0^1 g(a v) da            integrated gradients (Sundararajan et
                                                           al., 2017): over all sources it is the
                                                           loss without them minus that with them
    gradient          sum |g|
    weight            sum |w| of the first matrix that the source meets

A source that enters alone has the whole integral, which is then two losses, with no quadrature.
Child and raw input that enter together (`Join`, as in mach2019) share it, by quadrature: their sum
was off by 0.005 nats of 1 to 8 at most, on trained MLPs of width 12 and 64. Beside a raw input the
student's guess, which would stand in for the child alone, is not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mach.component.component import Component
from mach.component.join import Join
from mach.component.losses import target_loss

Sources = Mapping[str, Tensor]
Loss = Callable[[Sources], Tensor]
"""Sum over the samples of a batch of each one's mean loss, of the sources' values."""

# A norm bends the way near its beginning, where what it divides by grows past sqrt(eps): 24 points
# on the whole of [0, 1] lay behind that, and found 0.001 of 4.4 nats. So each part is four times as
# long as the one before.
_PARTS, _POINTS = 7, 8
"""Of the path, and of each part by Gauss and Legendre."""


def salience(component: Component, inputs: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
    """The scores of one microbatch, as `salience/<source>/<score>`.

    Nothing of the training is touched: neither gradients nor random state nor running statistics.

    Args:
        inputs: the child's activation, or the raw input at the bottom.
        x: raw input.
        y: targets as the data has them.
    """
    scores: dict[str, float] = {}
    first, *rest = component.body.children()
    after = nn.Sequential(*rest) if isinstance(first, Join) else component.body

    def loss(entering: Tensor) -> Tensor:
        logits = component.head(after(entering))
        return target_loss(logits, component.targets(y)) * len(entering)

    def joined(sources: Sources) -> Tensor:
        assert isinstance(first, Join)
        return loss(first.mix(sources["child"], sources["input"]))

    with component.evaluating():
        if isinstance(first, Join):
            scores |= _scores({"child": inputs.float(), "input": first.embed(x)}, joined)
            width = inputs.shape[1]
            scores["salience/child/weight"] = _size(first.linear.weight[:, :width])
            scores["salience/input/weight"] = _size(first.linear.weight[:, width:])
        elif inputs.is_floating_point():  # tokens have no gradient
            name = "input" if inputs is x else "child"
            scores |= _scores({name: inputs.float()}, lambda sources: loss(sources[name]))
            matrices = [p for p in component.body.parameters() if p.ndim > 1]
            if matrices:
                scores[f"salience/{name}/weight"] = _size(matrices[0])
        if component.student is not None and not isinstance(first, Join):
            with torch.no_grad():
                guess = component.student.imitate(x).float()
            scores |= _scores({"student": guess}, lambda sources: loss(sources["student"]))
    return scores


def integrated_gradients(sources: Sources, loss: Loss) -> dict[str, Tensor]:
    """Of each source what its numbers add to the loss, on the straight way from zero: all sources
    together, loss(sources) - loss(zeros), about. Same shapes."""
    found = {name: torch.zeros_like(v) for name, v in sources.items()}
    for place, weight in _quadrature():
        for name, gradient in _gradients(sources, loss, place).items():
            found[name] += weight * gradient * sources[name]
    return found


def _scores(sources: Sources, loss: Loss) -> dict[str, float]:
    scores: dict[str, float] = {}
    gradients, integrated = _gradients(sources, loss), _integrated(sources, loss)
    for name, v in sources.items():
        g, rows = gradients[name], len(v)
        first_order, second_order = -(g * v).sum() / rows, (g * v).square().sum() / (2 * rows)
        values = {
            "pruning_first": first_order,
            "pruning_second": first_order + second_order,
            "gradient": g.abs().sum() / rows,
            "integrated": integrated[name] / rows,
        }
        scores |= {f"salience/{name}/{score}": value.item() for score, value in values.items()}
    return scores


def _integrated(sources: Sources, loss: Loss) -> dict[str, Tensor]:
    """What the loss of a batch would rise by, shared among the sources."""
    if len(sources) > 1:
        return {name: -found.sum() for name, found in integrated_gradients(sources, loss).items()}
    ((name, v),) = sources.items()
    with torch.no_grad():
        return {name: loss({name: torch.zeros_like(v)}) - loss(sources)}


def _gradients(sources: Sources, loss: Loss, place: float = 1.0) -> dict[str, Tensor]:
    """Gradient of the loss where every source has gone `place` of its way from zero."""
    leaves = {name: (place * v).detach().requires_grad_() for name, v in sources.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@cache
def _quadrature() -> list[tuple[float, float]]:
    """Places on [0, 1] and their weights."""
    places, weights = np.polynomial.legendre.leggauss(_POINTS)
    ends = [0.0, *(4.0**-n for n in reversed(range(_PARTS)))]
    return [
        (start + (end - start) * (place + 1) / 2, (end - start) * weight / 2)
        for start, end in pairwise(ends)
        for place, weight in zip(places.tolist(), weights.tolist(), strict=True)
    ]


def _size(weight: Tensor) -> float:
    return weight.detach().abs().sum().item()
