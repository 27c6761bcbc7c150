"""How does a component get a gradient before its parent has made one?

It predicts it (synthetic gradients; Jaderberg et al., "Decoupled Neural Interfaces using Synthetic
Gradients", 2017, section 2.1): a network maps h, and the labels where it is conditioned on them, to
a guess at the gradient of the parent's loss with respect to h. It learns from the gradient that
comes later, which the parent has made with a guess of its own at what lies above.

    # s labels of a microbatch times microbatches of a step: what the loss is averaged over
    # guess = p(h, y) / s        loss = |p(h, y) - s G|^2 / var(s G)

The network works on the gradient of one sample's own loss: that of the mean is thousands of times
smaller, smaller than one step of Adam changes what a network says. Dividing by the variance, which
the paper does not, changes nothing for Adam, and lets the losses of components compare.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mach.component.losses import distillation_loss
from mach.component.updates import Update


class GradientPredictor:
    """A network that predicts gradients, and its optimizer."""

    def __init__(self, network: nn.Module, update: Update, *, accumulate: int, labels: bool):
        """
        Args:
            network: from h [B, ...], and the labels if `labels`, to [B, ...]. It begins at zero.
            update: steps the network's parameters.
            accumulate: M, microbatches per step.
            labels: whether the network is given the labels.
        """
        self.network = network
        self._update, self._accumulate, self._labels = update, accumulate, labels
        self._seen = 0

    @torch.no_grad()
    def predict(self, h: Tensor, labels: Tensor) -> Tensor:
        """A guess at the gradient of the parent's loss with respect to h [B, ...].

        Args:
            labels: the microbatch's N targets: one of a sample, or one of each position.
        """
        return (self._run(h, labels) / (len(labels) * self._accumulate)).to(h.dtype)

    def learn(self, h: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
        """Gather the gradient of one microbatch; every M-th call takes a step.

        Args:
            h: activation [B, ...].
            labels: as for `predict`.
            gradient: what the parent has made of it [B, ...].

        Returns:
            The loss, detached.
        """
        target = gradient.float() * (len(labels) * self._accumulate)
        loss = distillation_loss(self._run(h, labels), target)
        (loss / self._accumulate).backward()
        self._seen += 1
        if self._seen % self._accumulate == 0:
            self._update.step(self.steps - 1)
        return loss.detach()

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._seen // self._accumulate

    def resume(self, step: int) -> None:
        """Go on after optimizer step `step`."""
        self._seen = step * self._accumulate

    def _run(self, h: Tensor, labels: Tensor) -> Tensor:
        given = (labels,) if self._labels else ()
        out: Tensor = self.network(h.detach().float(), *given)
        return out
