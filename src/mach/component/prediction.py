"""Which weights will a module have some steps from now?

Those it will have if every step is as the last one was: W + s (W - W'), with W' the weights before
it. Under SGD with plain momentum this is SpecTrain's prediction (Chen et al., 2018), W - s lr v;
mach's sgd has Nesterov's momentum, so that there the last step is lr (g + momentum v). Under Adam
it is that of PipeOptim (Guan et al., 2025), whose step of the optimizer the last one is; and it is
known for Muon as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WeightPrediction(nn.Module):
    """The weights of a module before its last step, and what follows from them.

    Its buffers belong to the component's state: a resumed run must predict the same.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = [module]  # in a list: not a part of this one
        self._names = {name.replace(".", "/"): name for name, _ in module.named_parameters()}
        for key, name in self._names.items():
            self.register_buffer(key, module.get_parameter(name).detach().clone())

    @torch.no_grad()
    def remember(self) -> None:
        """A step is about to be taken."""
        for key, name in self._names.items():
            self.get_buffer(key).copy_(self._module[0].get_parameter(name))

    @torch.no_grad()
    def weights(self, steps: float) -> dict[str, Tensor]:
        """Every parameter as it will be `steps` optimizer steps from now, by name."""
        weights = {}
        for key, name in self._names.items():
            present = self._module[0].get_parameter(name).detach()
            weights[name] = present + steps * (present - self.get_buffer(key))
        return weights

    def run(self, steps: float, x: Tensor) -> Tensor:
        """The module as it will be, on x."""
        out: Tensor = functional_call(self._module[0], self.weights(steps), (x,))
        return out
