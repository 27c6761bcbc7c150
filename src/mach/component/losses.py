"""Which losses train a component, and how is a gradient scaled on its way?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# B batch, C classes


def target_loss(logits_BC: Tensor, targets_B: Tensor) -> Tensor:
    """Cross-entropy in nats, the mean over the batch, in float32 whatever the logits are."""
    return F.cross_entropy(logits_BC.float(), targets_B)


def distillation_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error as a fraction of the target's variance: 1 is as good as guessing the mean.

    Both are [B, ...]. Dividing by the variance keeps the loss comparable between components and
    over time; a sum in its place once drowned the task loss 3,200-fold (the 2019 code).
    """
    target = target.float()
    variance = target.var(correction=0).clamp_min(1e-8)
    return F.mse_loss(prediction.float(), target) / variance


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that flows back through is multiplied by `factor`."""
    if factor == 1:
        return x
    if factor == 0:
        return x.detach()
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled
