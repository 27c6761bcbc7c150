"""How does a component see the raw input beside its child's activation?

As in the 2019 code: both in one vector, [h; x], from which the first layer of the body takes what
it needs. What the body is given is then the pair of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# B batch, D width


class Join(nn.Module):
    """One linear map of a child's activation [B, D] and the raw input. Returns [B, D]."""

    def __init__(self, width: int, features: int, table: nn.Embedding | None = None) -> None:
        """
        Args:
            width: D.
            features: numbers in a raw input, each token of a text being as many as its vector has.
            table: vectors of tokens; None for inputs that are numbers.
        """
        super().__init__()
        self.table = table
        self.linear = nn.Linear(width + features, width)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        h_BD, x = pair
        return self.mix(h_BD, self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """The raw input as numbers [B, features]."""
        numbers: Tensor = x if self.table is None else self.table(x)
        return numbers.flatten(1)

    def mix(self, h_BD: Tensor, numbers: Tensor) -> Tensor:
        """The linear map of both."""
        out_BD: Tensor = self.linear(torch.cat([h_BD, numbers], 1))
        return out_BD


def joins(body: nn.Module) -> bool:
    """Whether a body begins with a `Join`."""
    return isinstance(next(body.children(), None), Join)


def enter(body: nn.Module, h: Tensor, x: Tensor | None) -> Tensor:
    """What a body is called with: h, or the pair of it and the raw input."""
    if not joins(body):
        return h
    assert x is not None
    return (h, x)  # type: ignore[return-value]  # bodies have one argument, a sequence's is anything
