"""How does a head learn what a larger model says, and how does that come to it?

Soft targets (Hinton et al., 2015): the larger model's logits on the same samples, at temperature T,

    (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(z' / T) | softmax(z / T))

They come down with the gradient, in one message of a row for each sample: [G | z'].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from mach.component.losses import target_loss

# B batch, N targets, C classes


@dataclass(frozen=True)
class SoftTargets:
    """How much a loss listens to a larger model."""

    weight: float
    """alpha: 0 is the labels alone, 1 the larger model alone."""
    temperature: float
    """T."""

    def loss(self, logits_NC: Tensor, targets_N: Tensor, larger: Tensor) -> Tensor:
        """The formula above, the mean over N, in float32. larger: N x C logits in any shape."""
        t = self.temperature
        says = F.log_softmax(logits_NC.float() / t, 1)
        hears = F.log_softmax(larger.reshape(logits_NC.shape).float() / t, 1)
        apart = F.kl_div(says, hears, reduction="batchmean", log_target=True)
        hard = target_loss(logits_NC, targets_N)
        return (1 - self.weight) * hard + self.weight * t * t * apart


def pack(gradient: Tensor, logits_NC: Tensor) -> Tensor:
    """Gradient [B, ...] and logits of the same B samples as one tensor [B, ..]."""
    rows = len(gradient)
    return torch.cat([gradient.flatten(1), logits_NC.view(rows, -1).to(gradient.dtype)], 1)


def unpack(message: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Gradient [*shape] and logits, a row for each sample, of what `pack` made."""
    size = prod(shape[1:])
    return message[:, :size].reshape(shape), message[:, size:]
