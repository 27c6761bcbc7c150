"""How does a component learn to do without its child?

Its student s_k predicts the child's activation from the raw input. What it is trained on has just
arrived, made with the weights the child had then: a stale distillation target.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mach.component.losses import distillation_loss
from mach.component.updates import Update


class Student:
    """A student network, its optimizer and its loss."""

    def __init__(
        self,
        network: nn.Module,
        update: Update,
        *,
        task_weight: float,
        accumulate: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            network: maps raw inputs [B, ...] to the child's activation [B, ...].
            update: steps the network's parameters.
            task_weight: mu, weight of the task loss through the frozen body and head.
            accumulate: M, microbatches per step.
            dtype: the activation's, which under autocast need not be the network's; None: it is.
        """
        self.network = network
        self._dtype = dtype
        self.update = update
        self._task_weight = task_weight
        self._accumulate = accumulate
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self.seen = 0
        """Microbatches gathered."""

    def imitate(self, x: Tensor) -> Tensor:
        """What the child would make of the raw input [B, ...], by guess."""
        guess: Tensor = self.network(x)
        return guess if self._dtype is None else guess.to(self._dtype)

    def distil(
        self,
        x: Tensor,
        target: Tensor,
        task_loss: Callable[[Tensor], Tensor],
        precision: AbstractContextManager[object] | None = None,
    ) -> Tensor:
        """Gather the gradient of one microbatch; every M-th call takes a step.

        Args and what it returns as for `gather`.
        """
        loss = self.gather(x, target, task_loss, precision)
        self.count()
        return loss

    def gather(
        self,
        x: Tensor,
        target: Tensor,
        task_loss: Callable[[Tensor], Tensor],
        precision: AbstractContextManager[object] | None = None,
    ) -> Tensor:
        """Gather the gradient of one microbatch.

        Args:
            x: raw input [B, ...].
            target: the child's activation on it [B, ...].
            task_loss: loss of body and head on a given input; neither is trained by it.
            precision: what the forward runs in: autocast, which is not meant for the rest.

        Returns:
            S_k of design section 2, detached.
        """
        with precision or nullcontext():
            prediction = self.imitate(x)
            loss = distillation_loss(prediction, target)
            if self._task_weight > 0:
                loss = loss + self._task_weight * task_loss(prediction)
        # `inputs` keeps the gradient out of body and head, and autograd skips their weights' part.
        torch.autograd.backward(loss / self._accumulate, inputs=self._parameters)
        return loss.detach()

    def count(self) -> None:
        """A microbatch has been gathered; the M-th takes a step."""
        self.seen += 1
        if self.seen % self._accumulate == 0:
            self.update.step(self.steps - 1)

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self.seen // self._accumulate

    def resume(self, step: int) -> None:
        """Go on after optimizer step `step`."""
        self.seen = step * self._accumulate
