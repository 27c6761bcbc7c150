"""Decoder-only transformers: every position predicts the token after it."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mach.config import GptConfig, StudentConfig
from mach.errors import ConfigError
from mach.metrics import Task
from mach.models.family import Family
from mach.shapes import TensorSpec

# B batch, T tokens, D width, H heads, E width of a head, V vocabulary

_STD = 0.02
"""Of first weights (Radford et al., 2019: GPT-2)."""


class Rotary(nn.Module):
    """Turns each pair of a query's or key's features by an angle that grows with its position, so
    that their product depends on how far apart they are (Su et al., RoFormer, 2021)."""

    cos: Tensor  # [T, E]
    sin: Tensor

    def __init__(self, context: int, size: int) -> None:
        super().__init__()
        frequencies = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x_BHTE: Tensor) -> Tensor:
        tokens = x_BHTE.shape[-2]
        first, second = x_BHTE.chunk(2, dim=-1)  # pair i is (i, i + E / 2)
        turned_BHTE = torch.cat((-second, first), dim=-1)
        out_BHTE = x_BHTE * self.cos[:tokens] + turned_BHTE * self.sin[:tokens]
        return out_BHTE.to(x_BHTE.dtype)


class Attention(nn.Module):
    """Causal self-attention: a position sees itself and what is before it. [B, T, D], same out."""

    def __init__(self, width: int, heads: int, context: int, rotary: bool) -> None:
        super().__init__()
        self._heads = heads
        # Three matrices: Muon orthogonalises each by itself.
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(context, width // heads) if rotary else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE = self.rotary(self._split(self.query(x_BTD)))
        k_BHTE = self.rotary(self._split(self.key(x_BTD)))
        v_BHTE = self._split(self.value(x_BTD))
        mixed_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
        out_BTD: Tensor = self.project(mixed_BHTE.transpose(1, 2).flatten(2))
        return out_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self._heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + W2 gelu(W1 norm(x)). [B, T, D], same out."""

    def __init__(self, width: int, hidden: int, heads: int, context: int, rotary: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads, context, rotary)
        self.norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, hidden, bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        out_BTD: Tensor = x_BTD + self.contract(F.gelu(self.expand(self.norm(x_BTD))))
        return out_BTD

    def init(self, depth: int) -> None:
        """First weights, of one block of `depth`: the more write to the residual stream, the less
        each adds (Radford et al., 2019, section 2.3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_STD)
        for module in (self.attention.project, self.contract):
            nn.init.normal_(module.weight, std=_STD / sqrt(2 * depth))


class Embed(nn.Module):
    """Tokens [B, T] as vectors [B, T, D]; with learned positions those are added."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        context: int,
        learned: bool,
        *,
        scale: float = 1.0,
        std: float = _STD,
    ) -> None:
        """
        Args:
            vocabulary: V.
            width: D.
            context: largest T.
            learned: add a vector for each position.
            scale: factor on the vectors of the tables.
            std: of the tables' first values.
        """
        super().__init__()
        self._scale = scale
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=std)
        self.positions = nn.Embedding(context, width) if learned else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=std)

    def forward(self, x_BT: Tensor) -> Tensor:
        h_BTD: Tensor = self.tokens(x_BT)
        if self.positions is not None:
            h_BTD = h_BTD + self.positions.weight[: x_BT.shape[1]]
        return h_BTD if self._scale == 1 else h_BTD * self._scale


class Unembed(nn.Module):
    """Logits of the token after each position: [B, T, D] to [B * T, V]."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.linear = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.linear.weight, std=_STD)

    def forward(self, h_BTD: Tensor) -> Tensor:
        logits_NV: Tensor = self.linear(self.norm(h_BTD)).flatten(0, 1)
        return logits_NV


class Gpt(Family):
    """Embedding, pre-norm transformer blocks, norm and unembedding; activations [B, T, width]."""

    takes_fewer_tokens = True

    def __init__(self, config: GptConfig, task: Task, depth: int) -> None:
        """
        Args:
            depth: blocks of the whole network.

        Raises:
            ConfigError: the data is no text.
        """
        super().__init__(task)
        shape = task.sample.shape
        if task.sample.dtype.is_floating_point or len(shape) != 1:
            raise ConfigError(
                f"model=gpt: expected data whose samples are tokens, int64[T]; got {task.sample}. "
                "Use data=text data.path=FILE, or another model."
            )
        self._config, self._depth, self._context = config, depth, shape[0]

    def stem(self) -> nn.Module:
        return self._embed(self._config.width)

    def block(self, index: int) -> nn.Module:
        return self._block(self._config.width, self._depth)

    def activations(self, ends: Sequence[int]) -> list[TensorSpec]:
        return [TensorSpec((self._context, self._config.width)) for _ in ends]

    def head(self, activation: TensorSpec) -> nn.Module:
        return Unembed(activation.shape[-1], self.task.classes)

    def student(self, activation: TensorSpec, config: StudentConfig) -> nn.Module:
        width = activation.shape[-1]
        parts: list[nn.Module] = [self._embed(config.width)]
        parts += [self._block(config.width, config.depth) for _ in range(config.depth)]
        if config.width != width:
            parts.append(nn.Linear(config.width, width, bias=False))
        return nn.Sequential(*parts)

    def targets(self, y: Tensor) -> Tensor:
        return y.flatten()

    def tie(self, body: nn.Module, head: nn.Module) -> None:
        if self._config.tied:
            stem = body.get_submodule("stem")
            assert isinstance(stem, Embed)
            assert isinstance(head, Unembed)
            head.linear.weight = stem.tokens.weight

    def _embed(self, width: int) -> Embed:
        learned = self._config.positions == "learned"
        scale, std = 1.0, _STD
        if self._config.scaled:
            scale = sqrt(width)
            std = std if self._config.tied else 1 / scale
        return Embed(self.task.classes, width, self._context, learned, scale=scale, std=std)

    def _block(self, width: int, depth: int) -> Block:
        config = self._config
        hidden = max(1, round(config.expansion * width))
        rotary = config.positions == "rotary"
        block = Block(width, hidden, config.heads, self._context, rotary)
        block.init(depth)
        return block
