"""Which network predicts the gradient of an activation?

By the activation's shape, one sample of it, as heads are (`mach.models.defaults`):

    [C, H, W]    3 x 3 convolutions
    [T, D]       linear layers, at each position by itself
    [D]          linear layers
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from mach.config import PredictorConfig
from mach.errors import ConfigError
from mach.metrics import Task
from mach.shapes import TensorSpec

# B batch, T positions, D width


class PredictGradient(nn.Module):
    """Norm, layers with ReLU between them, and a last layer that begins at zero, so that the first
    guess is no gradient. [B, ...] -> [B, ...].

    The label's vector is added to what the first layer makes: as if that layer were given the label
    as one of `classes` inputs.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, config: PredictorConfig) -> None:
        super().__init__()
        self._image = len(shape) == 3
        width = shape[0] if self._image else shape[-1]
        self.norm = nn.GroupNorm(1, width) if self._image else nn.LayerNorm(width)
        layer = partial(nn.Conv2d, kernel_size=3, padding=1) if self._image else nn.Linear
        sizes = [width, *[config.width] * config.depth, width]
        self.layers = nn.ModuleList(layer(a, b) for a, b in pairwise(sizes))
        self.table = nn.Embedding(classes, sizes[1]) if config.labels else None
        silent = [self.layers[-1]]
        if config.depth == 0 and self.table is not None:  # added to what the last layer makes, then
            silent.append(self.table)
        for module in silent:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def forward(self, h: Tensor, labels_N: Tensor | None = None) -> Tensor:
        """Args: labels_N: one for each sample, or for each position of [B, T, D]."""
        first, *rest = self.layers
        out: Tensor = first(self.norm(h))
        if self.table is not None and labels_N is not None:
            vectors = self.table(labels_N.view(len(h), -1))  # [B, 1 or T, width]
            if self._image:
                vectors = vectors.mT.unsqueeze(-1)
            elif h.ndim == 2:
                vectors = vectors[:, 0]
            out = out + vectors
        for layer in rest:
            out = layer(torch.relu(out))
        return out


def predictor_for(
    activation: TensorSpec, task: Task, labels: int, config: PredictorConfig
) -> nn.Module:
    """From h [B, *activation.shape] to a guess at the gradient with respect to it.

    Args:
        labels: how many a sample has: every head has one target for each.

    Raises:
        ConfigError: the activation has no place for so many.
    """
    shape = activation.shape
    positions = shape[0] if len(shape) == 2 else 1
    if config.labels and labels not in (1, positions):
        raise ConfigError(
            f"predictor.labels=true: expected one label for each sample or for each of "
            f"{positions} positions of an activation; got {labels} for each sample, and an "
            f"activation of {list(shape)}. Set predictor.labels=false."
        )
    return PredictGradient(shape, task.classes, config)
