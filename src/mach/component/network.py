"""What do body and head compute of one microbatch, whatever their weights?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mach.component.join import enter, joins
from mach.component.losses import target_loss
from mach.component.modes import Modes
from mach.component.soft import SoftTargets

# B batch, N targets, C classes

Run = Callable[[Tensor], Tensor]
"""A module, or what runs it at other weights."""


class Network:
    """A body and its head, in the precision of the run."""

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        targets: Callable[[Tensor], Tensor],
        autocast: torch.device | None,
    ) -> None:
        """
        Args:
            targets: from the data's y to the N targets of the head's logits.
            autocast: the device on which to compute in bf16; None computes in float32.
        """
        self.body, self.head, self.targets = body, head, targets
        self.modes = Modes(body, head)
        self.joins = joins(body)
        """Whether the body is given the raw input as well."""
        self._autocast = autocast

    def precision(self) -> AbstractContextManager[object]:
        """What forwards run in."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._autocast.type, torch.bfloat16)

    def activation(self, inputs: Tensor, x: Tensor | None, body: Run | None = None) -> Tensor:
        """h [B, ...] of the child's activation, and of the raw input where the body joins it."""
        with self.precision():
            return (body or self.body)(enter(self.body, inputs, x) if self.joins else inputs)

    def logits(self, h: Tensor, head: Run | None = None) -> Tensor:
        """What the head says, [N, C]."""
        with self.precision():
            return (head or self.head)(h)

    def loss(
        self,
        logits_NC: Tensor,
        y: Tensor,
        soft: SoftTargets | None = None,
        larger: Tensor | None = None,
    ) -> Tensor:
        """Of the data's y, and of what a larger model says where the run listens to it."""
        if soft is None or larger is None:
            return target_loss(logits_NC, self.targets(y))
        return soft.loss(logits_NC, self.targets(y), larger)

    def input_gradient(
        self,
        inputs: Tensor,
        x: Tensor | None,
        loss: Callable[[Tensor], Tensor],
        gradient: Tensor | None = None,
        body: Run | None = None,
        head: Run | None = None,
    ) -> Tensor:
        """Gradient of loss(logits) + <h, gradient> with respect to the inputs; parameters gather
        nothing."""
        leaf = inputs.detach().requires_grad_()
        with self.modes.uncounted():
            h = self.activation(leaf, x, body)
            total = loss(self.logits(h, head))
            if gradient is not None:
                total = total + (h * gradient).sum()
            (found,) = torch.autograd.grad(total, leaf)
        return found
