"""How far is a late gradient from the exact one, and how far have the weights gone meanwhile?

Component k takes step s with a gradient of microbatches whose forward passed the components when
their weights were older. The exact one is that of the same microbatches through all components as
they are at their step s: what back-propagation would have, at the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, cross_entropy

from mach.data import Batches
from mach.optim import matrices_of
from mach.trainer import Oracle

Kept = dict[str, Tensor]
LAG = 6
"""Steps over which the way of the weights is measured, at every delay: what is late by a delay of 4
at the bottom of four components."""


class Alignment:
    """Listens to a chain on its way, and changes nothing of it."""

    def __init__(self, oracle: Oracle, batches: Batches, steps: Iterable[int]) -> None:
        """
        Args:
            oracle: classifies, and is about to run.
            batches: what it is trained on.
            steps: when to listen; each `LAG` and more.
        """
        self._config, self._batches = oracle.config, batches
        self._parts = [(t.worker.component.body, t.worker.component.head) for t in oracle.trainers]
        self._steps = frozenset(steps)
        self._then: dict[int, Kept] = {}
        self._heard: dict[int, dict[int, tuple[Kept, Kept, Kept]]] = {}
        self.cosines: dict[int, dict[int, float]] = {}
        """By step and component: between late and exact gradient of its matrices."""
        self.moved: dict[int, dict[int, float]] = {}
        """How far these have gone in `LAG` steps, in parts of their norm."""
        for k, optimizers in enumerate(oracle.optimizers):
            optimizer = optimizers["chain"]
            heard = partial(self._hear, k, optimizer.step)
            optimizer.step = heard  # type: ignore[method-assign]

    def _hear(self, k: int, step: Any, index: int) -> Tensor:
        body, head = self._parts[k]
        if index + LAG in self._steps:
            self._then[k] = _matrices(_weights(body), body)
        if index in self._steps:
            weights = _weights(body)
            now, then = (_flat(kept) for kept in (_matrices(weights, body), self._then[k]))
            self.moved.setdefault(index, {})[k] = float((now - then).norm() / now.norm())
            gathered = {n: p.grad.clone() for n, p in body.named_parameters() if p.grad is not None}
            heard = self._heard.setdefault(index, {})
            heard[k] = weights, _weights(head), _matrices(gathered, body)
            if len(heard) == len(self._parts):
                self.cosines[index] = dict(enumerate(self._compare(index)))
        norm: Tensor = step(index)
        return norm

    def _compare(self, index: int) -> list[float]:
        heard = self._heard.pop(index)
        in_order = [heard[k] for k in range(len(heard))]
        exact = self._exact(index, [body for body, _, _ in in_order], in_order[-1][1])
        pairs = zip((late for _, _, late in in_order), exact, strict=True)
        return [float(cosine_similarity(_flat(a), _flat(b), dim=0)) for a, b in pairs]

    def _exact(self, index: int, bodies: Sequence[Kept], head: Kept) -> list[Kept]:
        """The gradient of every component's matrices, by back-propagation through all."""
        for parameter in chain(*(body.values() for body in bodies)):
            parameter.requires_grad_()
        accumulate = self._config.accumulate
        for b in range(index * accumulate, (index + 1) * accumulate):
            h, y = self._batches.train(b)
            for (body, _), weights in zip(self._parts, bodies, strict=True):
                h = functional_call(body, weights, (h,))
            loss = cross_entropy(functional_call(self._parts[-1][1], head, (h,)), y)
            (loss / accumulate).backward()
        gradients = ({n: p.grad for n, p in b.items() if p.grad is not None} for b in bodies)
        parts = zip(gradients, self._parts, strict=True)
        return [_matrices(gradient, body) for gradient, (body, _) in parts]


def _weights(module: nn.Module) -> Kept:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _matrices(kept: Mapping[str, Tensor], body: nn.Module) -> Kept:
    """Of what is kept of a body's parameters, that of those which Muon takes."""
    wanted = matrices_of("body", body)
    return {name: value for name, value in kept.items() if f"body.{name}" in wanted}


def _flat(kept: Kept) -> Tensor:
    return torch.cat([kept[name].detach().flatten() for name in sorted(kept)])
