"""Residual MLPs: the family that trains anywhere in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from mach.component.join import Join
from mach.config import MlpConfig, StudentConfig
from mach.metrics import Task
from mach.models.family import Family
from mach.shapes import TensorSpec

# B batch, D width, H hidden width, T bytes of context, E embedding, C classes


class ResidualBlock(nn.Module):
    """x + W2 gelu(W1 norm(x)). [B, D] -> [B, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        h_BH = nn.functional.gelu(self.expand(self.norm(x_BD)))
        out_BD: Tensor = x_BD + self.contract(h_BH)
        return out_BD


class FlatEmbed(nn.Module):
    """The raw input as one vector. Features are flattened; bytes are embedded, then flattened."""

    def __init__(self, size: int, width: int, tokens: tuple[int, int] | None = None) -> None:
        """
        Args:
            size: features, or tokens, of a sample.
            width: of the vector.
            tokens: how many there are and the width each is embedded in; None: features.
        """
        super().__init__()
        self.table = None if tokens is None else nn.Embedding(*tokens)
        self.linear = nn.Linear(size if tokens is None else size * tokens[1], width)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is not None:
            x = self.table(x)
        out_BD: Tensor = self.linear(x.flatten(1))
        return out_BD


def embed(task: Task, embedding: int, width: int) -> FlatEmbed:
    """What makes one vector of a sample; of text with so many numbers for each token."""
    tokens = None if task.sample.dtype.is_floating_point else (task.classes, embedding)
    return FlatEmbed(prod(task.sample.shape), width, tokens)


class Mlp(Family):
    """Embedding, residual blocks, LayerNorm and a linear head. Every activation is [B, width].

    On text it predicts the byte after the context alone (Bengio et al., 2003), not one per
    position.
    """

    def __init__(self, config: MlpConfig, task: Task) -> None:
        super().__init__(task)
        self._config = config

    def stem(self) -> nn.Module:
        return embed(self.task, self._config.embedding, self._config.width)

    def block(self, index: int) -> nn.Module:
        width = self._config.width
        return ResidualBlock(width, max(1, round(self._config.expansion * width)))

    def activations(self, ends: Sequence[int]) -> list[TensorSpec]:
        return [TensorSpec((self._config.width,)) for _ in ends]

    def head(self, activation: TensorSpec) -> nn.Module:
        width = prod(activation.shape)
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.task.classes))

    def join(self, activation: TensorSpec) -> nn.Module:
        size, table = prod(self.task.sample.shape), None
        if not self.task.sample.dtype.is_floating_point:
            table = nn.Embedding(self.task.classes, self._config.embedding)
            size *= self._config.embedding
        return Join(self._config.width, size, table)

    def student(self, activation: TensorSpec, config: StudentConfig) -> nn.Module:
        blocks = [ResidualBlock(config.width, 4 * config.width) for _ in range(config.depth)]
        return nn.Sequential(
            embed(self.task, self._config.embedding, config.width),
            *blocks,
            nn.LayerNorm(config.width),
            nn.Linear(config.width, prod(activation.shape)),
        )

    def targets(self, y: Tensor) -> Tensor:
        return y if y.ndim == 1 else y[:, -1]
