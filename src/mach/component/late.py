"""What is done about weights that have moved between a forward and its backward?

The body is run again at the weights that it has now (`recompute`), or the gradient is that of the
weights it had then (`stash`; design section 2). What comes from the parent fits neither quite: it
may be compensated, corrected by the head, or made for weights that are predicted.

    # h activation now, h' as it was sent, G(h') from the parent, g the head, c how much it counts
    # G(h) ~ G(h') + lambda G(h')^2 (h - h')                     compensation
    # G(h) ~ G(h') + c (dCE(g(h), y)/dh - dCE(g(h'), y)/dh)      surrogate
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mach.component.compensation import compensated
from mach.component.network import Network, Run
from mach.component.prediction import WeightPrediction
from mach.component.stash import WeightStash
from mach.component.work import Pending


@dataclass(frozen=True)
class Late:
    """How a component learns from gradients that come after its weights have moved."""

    replay: str = "recompute"
    """`recompute` or `stash`."""
    compensation: float = 0.0
    """lambda of DC-ASGD: of late gradients of the weights under `stash`, of the parent's under
    `recompute`; 0 leaves them as they come."""
    surrogate: float = 0.0
    """c, how much of the change of the head's gradient since the forward is added to the parent's
    (mach.component.surrogate); not under `stash`, where nothing changes."""
    predict: str = "nothing"
    """What is made with predicted weights: `nothing`, `forward` (what is sent up, with those of its
    backward) or `backward` (the gradient for the child)."""
    ahead: float = 0.0
    """For how many steps weights are predicted in the backward."""


AS_IT_COMES = Late()
"""Run again, nothing corrected."""


class Replay:
    """A body's activations at their forward, and once more at their backward."""

    def __init__(self, net: Network, late: Late, accumulate: int) -> None:
        self._net, self._late, self._accumulate = net, late, accumulate
        self._stash = WeightStash(net.body) if late.replay == "stash" else None
        self._predictions: dict[str, WeightPrediction] = {}
        if late.predict == "forward":
            self._predictions = {"body": WeightPrediction(net.body)}
        elif late.predict == "backward" and late.ahead > 0:
            parts = {"body": net.body, "head": net.head}
            self._predictions = {name: WeightPrediction(part) for name, part in parts.items()}

    def forward(self, work: Pending, staleness: int) -> Tensor:
        """h [B, ...] as it is sent, detached. `work` keeps what its backward needs.

        Args:
            staleness: optimizer steps that will come before its backward; at 0 the graph is kept.
        """
        net, late = self._net, self._late
        if staleness == 0:
            work.output = net.activation(work.inputs, work.x)
        elif self._stash is not None:
            work.weights = self._stash.present()
            body = partial(self._stash.forward, work.weights)
            work.output = net.activation(work.inputs, work.x, body)
        if work.output is not None:
            return work.output.detach()
        with torch.no_grad():
            h = net.activation(work.inputs, work.x, self._at_its_backward(staleness))
        if late.compensation or late.surrogate:
            work.sent = h
        return h

    def activation(self, work: Pending) -> Tensor:
        """h with its graph: as it was made, or run again."""
        if work.output is not None:
            return work.output
        with self._net.modes.uncounted():
            return self._net.activation(work.inputs, work.x)

    def corrected(
        self, work: Pending, h: Tensor, gradient: Tensor | None, slope: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | None, float]:
        """The parent's gradient as it would be at h.

        Args:
            slope: of the head's loss with respect to an activation.

        Returns:
            The gradient, without the head's slope at h, and what the body feels more of its head
            for that: the slope at h comes with the head's own loss.
        """
        late = self._late
        if work.sent is None or gradient is None:
            return gradient, 0.0
        if late.compensation:
            scale = len(self._net.targets(work.y)) * self._accumulate  # as the loss is, of each
            moved = h.detach() - work.sent
            gradient = compensated(gradient, moved, late.compensation, scale)
        if late.surrogate:
            gradient = gradient - late.surrogate * slope(work.sent)
        return gradient, late.surrogate

    def gathering(self, work: Pending) -> AbstractContextManager[object]:
        """A backward through `work` in here adds to the gradients of the body's own weights."""
        if work.weights is None:
            return nullcontext()
        assert self._stash is not None
        strength = self._late.compensation
        if strength:
            adjust = partial(compensated, strength=strength, scale=self._accumulate)
            return self._stash.adjusting(work.weights, adjust)
        return self._stash.lending(work.weights)

    def for_the_child(self) -> tuple[Run, Run] | None:
        """What runs body and head at the weights that the child's gradient is made for; None: at
        their own."""
        if "head" not in self._predictions:  # only where they are predicted for backwards
            return None
        body, head = (partial(self._predictions[p].run, self._late.ahead) for p in ("body", "head"))
        return body, head

    def before_step(self) -> None:
        """An optimizer step is about to be taken."""
        for prediction in self._predictions.values():
            prediction.remember()

    def weights_moved(self) -> None:
        """The weights are others than before."""
        if self._stash is not None:
            self._stash.advance()

    def modules(self) -> dict[str, WeightPrediction]:
        """What belongs to the component's state, by name."""
        return {f"before_{name}": prediction for name, prediction in self._predictions.items()}

    def _at_its_backward(self, steps: int) -> Run | None:
        """What runs the body with the weights that it will have then, where they are predicted for
        forwards."""
        if self._late.predict != "forward":
            return None
        return partial(self._predictions["body"].run, steps)
