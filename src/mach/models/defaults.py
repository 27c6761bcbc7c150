"""Which head and which student fit an activation, whatever network it comes from?

By its shape, one sample of it:

    activation   head                              student
    [C, H, W]    mean over the pixels, linear      strided convolutions, from an image
    [T, D]       linear, at each position or on    transformer: causal from tokens, plain from
                 the mean of them                  vectors or the patches of an image
    others       linear, of all its numbers        MLP that ends in the shape
"""

from __future__ import annotations

from math import gcd, prod

import torch
from torch import Tensor, nn

from mach.config import StudentConfig
from mach.metrics import Task
from mach.models import gpt, mlp
from mach.models.resnet import Convolve, PreActivationBlock, conv
from mach.shapes import TensorSpec

# B batch, T positions, D width, C channels, H height, W width, F features of a position

_HEADS = 4
_EMBEDDING = 32


class Pool(nn.Module):
    """One vector of many: the last position of a text, else the mean. [B, T, D] -> [B, D]."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD[:, -1] if self.last else h_BTD.mean(1)


class Patches(nn.Module):
    """An image as T vectors: its square patches, and zeros before them where the network has more
    positions than patches (a class token). [B, C, H, W] or [B, H, W] -> [B, T, D]."""

    def __init__(self, channels: int, size: int, positions: int, width: int) -> None:
        super().__init__()
        self.positions = positions
        self.embed = Convolve([nn.Conv2d(channels, width, size, stride=size)])

    def forward(self, x: Tensor) -> Tensor:
        h_BTD = self.embed(x).flatten(2).transpose(1, 2)
        return nn.functional.pad(h_BTD, (0, 0, self.positions - h_BTD.shape[1], 0))


class Placed(nn.Module):
    """Adds a learned vector to each position. [B, T, D], same out."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.vectors_TD = nn.Parameter(0.02 * torch.randn(positions, width))

    def forward(self, h_BTD: Tensor) -> Tensor:
        return h_BTD + self.vectors_TD


def head_for(activation: TensorSpec, task: Task, *, per_position: bool) -> nn.Module:
    """From an activation [B, *activation.shape] to logits [N, classes].

    Args:
        per_position: every position of [T, D] has a target of its own, N = B T; else N = B.
    """
    shape, classes = activation.shape, task.classes
    if per_position:
        return gpt.Unembed(shape[-1], classes)
    if len(shape) == 3:
        pool, width = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), shape[0]
    elif len(shape) == 2:
        pool, width = nn.Sequential(Pool(last=is_tokens(task))), shape[1]
    else:
        pool, width = nn.Sequential(nn.Flatten()), prod(shape)
    return nn.Sequential(*pool, nn.LayerNorm(width), nn.Linear(width, classes))


def student_for(activation: TensorSpec, task: Task, config: StudentConfig) -> nn.Module:
    """From raw samples [B, *task.sample.shape] to a guess at [B, *activation.shape]."""
    shape, sample = activation.shape, task.sample.shape
    if is_tokens(task) and len(shape) == 2 and shape[0] == sample[0]:
        return _causal(shape, task, config)
    if not is_tokens(task):
        if len(shape) == 3 and len(sample) in (2, 3):
            return _strided(shape, sample, config)
        if len(shape) == 2 and (entrance := _positions_of(sample, shape[0], config.width)):
            return _plain(entrance, shape, config)
    blocks = [mlp.ResidualBlock(config.width, 4 * config.width) for _ in range(config.depth)]
    return nn.Sequential(
        mlp.embed(task, _EMBEDDING, config.width),
        *blocks,
        nn.LayerNorm(config.width),
        nn.Linear(config.width, prod(shape)),
        nn.Unflatten(1, shape),
    )


def is_tokens(task: Task) -> bool:
    """Whether a sample is a text."""
    return not task.sample.dtype.is_floating_point


def _causal(shape: tuple[int, ...], task: Task, config: StudentConfig) -> nn.Module:
    positions, width = shape
    parts: list[nn.Module] = [gpt.Embed(task.classes, config.width, positions, learned=True)]
    for _ in range(config.depth):
        heads = gcd(_HEADS, config.width)
        block = gpt.Block(config.width, 4 * config.width, heads, positions, rotary=False)
        block.init(config.depth)
        parts.append(block)
    return nn.Sequential(*parts, nn.LayerNorm(config.width), nn.Linear(config.width, width))


def _plain(entrance: nn.Module, shape: tuple[int, ...], config: StudentConfig) -> nn.Module:
    positions, width = shape
    layers = [
        nn.TransformerEncoderLayer(
            config.width,
            gcd(_HEADS, config.width),
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        for _ in range(config.depth)
    ]
    end = [nn.LayerNorm(config.width), nn.Linear(config.width, width)]
    return nn.Sequential(entrance, Placed(positions, config.width), *layers, *end)


def _positions_of(sample: tuple[int, ...], positions: int, width: int) -> nn.Module | None:
    """What makes so many vectors of a sample; None where it has no such parts."""
    if len(sample) == 2 and sample[0] == positions:
        return nn.Linear(sample[1], width)
    if len(sample) not in (2, 3):
        return None
    channels, height, across = (1, *sample)[-3:]
    for size in range(1, min(height, across) + 1):
        fits = height % size == across % size == 0
        if fits and (height // size) * (across // size) in (positions, positions - 1):
            return Patches(channels, size, positions, width)
    return None


def _strided(shape: tuple[int, ...], sample: tuple[int, ...], config: StudentConfig) -> nn.Module:
    """Strides down to the activation's pixels, then `depth` blocks, then its channels."""
    channels, height, across = (1, *sample)[-3:]
    layers: list[nn.Module] = []
    while not layers or (height >= 2 * shape[1] and across >= 2 * shape[2]):
        stride = 2 if height >= 2 * shape[1] and across >= 2 * shape[2] else 1
        layers += [conv(channels, config.width, stride), _norm(config.width), nn.ReLU()]
        channels, height, across = config.width, -(-height // stride), -(-across // stride)
    if (height, across) != shape[1:]:
        layers.append(nn.AdaptiveAvgPool2d((shape[1], shape[2])))
    for _ in range(config.depth):
        norms = (_norm(config.width), _norm(config.width))
        layers.append(PreActivationBlock(norms, config.width, config.width))
    return Convolve([*layers, _norm(config.width), nn.ReLU(), nn.Conv2d(channels, shape[0], 1)])


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(gcd(8, channels), channels)
