"""How does a body do without keeping what its blocks computed?

It keeps the input of each block alone and runs the block once more in the backward pass, where what
is inside is needed (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). The same
operations on the same numbers: gradients are those without it, bit by bit.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Sequential):
    """A body of blocks that are run again. Its parameters are named as those of the body it is
    made of, whose blocks it takes over."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(OrderedDict(body.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        """As the body. Without gradients nothing would be kept, so nothing is left out."""
        for block in self:
            x = _run(block, x) if torch.is_grad_enabled() else block(x)
        return x


def _run(block: nn.Module, x: Tensor) -> Tensor:
    # A stash lends its weights to the body for the forward only (functional_call puts the body's
    # own ones back). The block has to be run again with those it has now.
    weights: dict[str, Tensor] = dict(block.named_parameters())

    def forward(x: Tensor) -> Tensor:
        out: Tensor = functional_call(block, weights, (x,))
        return out

    out: Tensor = checkpoint(forward, x, use_reentrant=False)
    return out
