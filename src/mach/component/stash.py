"""How can a graph be back-propagated after the weights it used have moved?

By keeping the weights: each version in flight is a copy of the body's parameters, and a forward
runs on the copy of its version (weight stashing; Narayanan et al., PipeDream, SOSP 2019). All
copies of a parameter share the parameter's own `.grad`, so a backward through any version adds to
the one gradient that the optimizer reads, with nothing to copy back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WeightStash:
    """The weight versions of one module. A version lives as long as a graph that uses it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copies: dict[str, Tensor] | None = None
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Run the module on a copy of its present weights, made once per version."""
        if self._copies is None:
            self._copies = {n: self._copy(p) for n, p in self._module.named_parameters()}
        out: Tensor = functional_call(self._module, self._copies, (x,))
        return out

    def advance(self) -> None:
        """The weights have moved: the next forward starts a new version."""
        self._copies = None

    @staticmethod
    def _copy(parameter: nn.Parameter) -> Tensor:
        copy = parameter.detach().clone().requires_grad_(parameter.requires_grad)
        copy.grad = parameter.grad
        return copy
