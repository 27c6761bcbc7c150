"""How do a component's modules run compiled, without being compiled for ever?

Each block of the body, the head and the student is compiled by itself and in place. So parameters
keep their names, a block that is stashed or recomputed runs compiled, too, and blocks that are
alike share what was compiled for the first of them. Training has one shape and few variants (with
and without gradients); inference, which has others (a short last batch, norms that use what they
have counted), runs the modules as they are written.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

_MOST_VARIANTS = 64
"""Of one piece of code: kinds of blocks (shapes, strides) times ways to run them."""


def compile_in_place(body: nn.Module, *others: nn.Module) -> None:
    """Compile every child of the body, and the other modules, each at its first run.

    From then on a piece of code that needs more variants than are reasonable is an error. (torch
    would go on uncompiled and only log it; and its limit of 8 is below what a network of blocks
    with different shapes needs.)
    """
    import torch._dynamo.config as limits  # seconds, which uncompiled runs are spared

    limits.recompile_limit = max(limits.recompile_limit, _MOST_VARIANTS)
    limits.fail_on_recompile_limit_hit = True
    for module in (*body.children(), *others):
        module.compile(dynamic=False)


def as_written() -> AbstractContextManager[object]:
    """In here compiled modules run uncompiled, and nothing is compiled."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
