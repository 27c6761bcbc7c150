"""Which tensors make up a component?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from types import ModuleType

import torch
from torch import Tensor

from mach.component import Component
from mach.optim import Optimizer
from mach.randomness import streams

OPTIMIZER, STEPS = "optimizer/", "steps/"
AGES = "ages"


def tensors_of(component: Component, optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """All that a resumed component needs: weights, optimizer state, how far what learns beside the
    chain has come, how old gradients were, random state."""
    state = dict(weights_of(component))
    state |= {STEPS + name: torch.tensor(own.steps) for name, own in component.beside().items()}
    state[AGES] = torch.tensor(astuple(component.ages))
    for optimizer in optimizers.values():
        state |= {OPTIMIZER + name: value for name, value in optimizer.state().items()}
    return {**state, **streams(component.device)}


def weights_of(component: Component) -> dict[str, Tensor]:
    """Parameters and buffers of body, head and student; the module's own tensors, no copies.

    What two of them share is there once, under its first name.
    """
    own: dict[int, tuple[str, Tensor]] = {}
    for part, module in component.modules().items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            own.setdefault(id(tensor), (f"{part}.{name}", tensor))
    return {name: tensor.detach() for name, tensor in own.values()}


def dcp() -> ModuleType:
    """torch.distributed.checkpoint, imported when it is needed: it takes a second, at no start."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint
