"""How can a graph be back-propagated after the weights it used have moved?

By keeping the weights: each version in flight is a copy of the body's parameters, and a forward
runs on the copy of its version (weight stashing; Narayanan et al., PipeDream, SOSP 2019). A
backward through a copy is lent the parameter's own `.grad`, so whatever the version it adds to
the one gradient that the optimizer reads, and nothing is copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

Version = dict[str, Tensor]
"""A copy of every parameter of a module, by name."""


class WeightStash:
    """The weight versions of one module. A version lives as long as somebody holds it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._present: Version | None = None

    def present(self) -> Version:
        """A copy of the weights as they are, made once per version."""
        if self._present is None:
            self._present = {
                name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
                for name, parameter in self._module.named_parameters()
            }
        return self._present

    def forward(self, version: Version, x: Tensor) -> Tensor:
        """Run the module on one of its versions."""
        out: Tensor = functional_call(self._module, version, (x,))
        return out

    def advance(self) -> None:
        """The weights have moved: the next version begins."""
        self._present = None

    @contextmanager
    def adjusting(
        self, version: Version, adjust: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[None]:
        """As `lending`; adds adjust(gradient, present weights - those of the version)."""
        yield
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                gradient, version[name].grad = version[name].grad, None
                if gradient is not None:
                    added = adjust(gradient, parameter - version[name])
                    parameter.grad = added if parameter.grad is None else parameter.grad + added

    @contextmanager
    def lending(self, version: Version) -> Iterator[None]:
        """A backward through `version` in here adds to the gradients of the module's parameters."""
        own = dict(self._module.named_parameters())
        for name, copy in version.items():
            copy.grad = own[name].grad
        yield
        for name, copy in version.items():
            own[name].grad, copy.grad = copy.grad, None
