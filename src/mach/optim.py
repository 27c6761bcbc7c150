"""How does a component turn its gathered gradients into a step?

Clip, set the rate, step: Muon for the matrices of the body and AdamW for the rest (the default),
AdamW, or SGD, all of them torch's own. To Muon the kernel of a convolution is a matrix, too: one
row for each of its output channels (Jordan et al., Muon, 2024).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mach.config import OptimConfig
from mach.errors import CheckpointError
from mach.muon import Muon


def schedule_factor(step: int, steps: int, warmup: float, cosine: bool) -> float:
    """Factor on the peak rate at `step` of `steps`: linear warm-up, then half a cosine to 0."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if not cosine:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def staleness_factor(step: int, steps: int, tau: float, fraction: float) -> float:
    """(1 + tau)^-e with e falling linearly from 1 to 0 over the first `fraction` of the steps.

    After PipeMare's T1 (Yang et al., MLSys 2021, section 3.1), which divides by tau^e: that is
    nothing at tau = 1, and raises the rate below. 1 + tau slows all that is late, and nothing else.
    """
    horizon = fraction * steps
    exponent = max(0.0, 1 - step / horizon) if horizon > 0 else 0.0
    return float((1 + tau) ** -exponent)


class Optimizer:
    """The optimizers of one set of named parameters, stepped as one. An `Update` of a component."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        steps: int,
        matrices: frozenset[str] = frozenset(),
        tau: float = 0.0,
        hops: int = 0,
        above: int = 0,
    ) -> None:
        """
        Args:
            named: parameters by the name a checkpoint keeps them under.
            config: algorithm, rates, clipping.
            steps: optimizer steps of the run, over which rates are scheduled.
            matrices: names of the parameters that Muon takes when it is asked for: matrices, and
                kernels [out, in, ..].
            tau: staleness of their gradient in optimizer steps.
            hops: how many components a late gradient has come down through.
            above: components between these parameters and the top.
        """
        self._named = dict(named)
        self._config, self._steps, self._tau, self._hops = config, steps, tau, hops
        self._share = config.layer_decay**above
        _spare_dynamo()
        taken = matrices if config.name == "muon" else frozenset()
        self._kernels = {n: _Matrix(p) for n, p in self._named.items() if n in taken and p.ndim > 2}
        # What the optimizers know of each parameter.
        self._stepped = {**self._named, **{n: kernel.matrix for n, kernel in self._kernels.items()}}
        for_muon = [p for n, p in self._stepped.items() if n in taken]
        rest = [p for n, p in self._stepped.items() if n not in taken]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        nesterov = config.correction == "nesterov"
        if for_muon:
            on_cpu = for_muon[0].device.type == "cpu"
            muon = (Muon if on_cpu else torch.optim.Muon)(
                for_muon,
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                momentum=config.look_ahead if nesterov else config.muon_momentum,
            )
            self._optimizers.append((muon, config.muon_lr))
        if rest:
            discount = 1 - config.look_ahead if nesterov and config.name == "sgd" else 1.0
            self._optimizers.append((_first_order(rest, config), config.lr * discount))

    def step(self, index: int) -> Tensor:
        """Clip, take step `index` (0 is the first), clear. Returns the norm before clipping."""
        parameters = [p for p in self._named.values() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._config.clip > 0 and _may_exceed(norm, self._config.clip):
            nn.utils.clip_grads_with_norm_(parameters, self._config.clip, norm)
        factor = self._factor(index)
        for kernel in self._kernels.values():
            kernel.hand_over()
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            _step(optimizer)
            optimizer.zero_grad()
        return norm

    def rate(self, index: int) -> float:
        """Learning rate at step `index`; under muon that of the matrices."""
        return self._optimizers[0][1] * self._factor(index)

    def _factor(self, index: int) -> float:
        config = self._config
        factor = schedule_factor(index, self._steps, config.warmup, config.cosine) * self._share
        if config.slows:
            factor *= staleness_factor(index, self._steps, self._tau, config.correction_fraction)
        elif config.correction == "shrink" and config.name != "sgd":  # sgd is given less gradient
            factor *= config.shrink**self._hops
        return factor

    def state(self) -> dict[str, Tensor]:
        """Every tensor the optimizers remember, as `parameter name/key`."""
        names = {id(p): n for n, p in self._stepped.items()}
        return {
            f"{names[id(p)]}/{key}": value
            for optimizer, _ in self._optimizers
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        }

    def owns(self, name: str) -> bool:
        """Whether an entry of `state` belongs to a parameter of this optimizer."""
        return name.rpartition("/")[0] in self._named

    def check_state(self, names: Iterable[str]) -> None:
        """Refuse what another kind of optimizer has remembered.

        Args:
            names: entries of a `state`; every one must be owned.

        Raises:
            CheckpointError: names the first parameter of which something else is remembered.
        """
        owner = self._owners()
        by_parameter: dict[str, set[str]] = {}
        for name in names:
            parameter_name, _, key = name.rpartition("/")
            by_parameter.setdefault(parameter_name, set()).add(key)
        for name, found in by_parameter.items():
            self._check_kind(name, found, _REMEMBERED[type(owner[name])])

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned in another process; every entry must be owned.

        Raises:
            CheckpointError: it is of another kind of optimizer.
        """
        self.check_state(state)
        owner = self._owners()
        for name, value in state.items():
            parameter_name, _, key = name.rpartition("/")
            parameter = self._stepped[parameter_name]
            owner[parameter_name].state[parameter][key] = _laid_out_as(parameter, value)

    def _owners(self) -> dict[str, torch.optim.Optimizer]:
        """Which of the optimizers steps each parameter, by its name."""
        names = {id(p): n for n, p in self._stepped.items()}
        return {
            names[id(p)]: optimizer
            for optimizer, _ in self._optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }

    def _check_kind(self, name: str, found: Set[str], expected: Set[str]) -> None:
        if found == expected:
            return
        key, value = "optim.name", self._config.name
        if name.startswith("student."):  # its config is made by `beside`
            key = "student.optimizer"
        elif found ^ expected == _OF_NADAM:
            key, value = "optim.correction", self._config.correction
        raise CheckpointError(
            f"{key}={value}: expected of {name} what it remembers "
            f"({', '.join(sorted(expected))}); got {', '.join(sorted(found))}, of another "
            f"optimizer. Go on with the one of the checkpoint: its config.yaml has {key}."
        )


def _may_exceed(norm: Tensor, clip: float) -> bool:
    """Whether clipping may change anything. On CPU this is asked, since torch goes through all
    gradients for a factor of 1, too; elsewhere to ask is to wait."""
    return norm.device.type != "cpu" or not bool(norm + 1e-6 <= clip)  # torch's own, nan as well


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A copy as fused kernels need it: they go through both as they lie in memory."""
    like = parameter if value.shape == parameter.shape else value
    own = torch.empty_like(like, dtype=value.dtype, device=parameter.device, requires_grad=False)
    return own.copy_(value)


_OF_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_OF_NADAM = {"mu_product"}
"""What it remembers more; `correction=nesterov` has it take AdamW's place."""
_REMEMBERED: dict[type, set[str]] = {
    Muon: {"momentum_buffer"},
    torch.optim.Muon: {"momentum_buffer"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: _OF_ADAMW,
    torch.optim.NAdam: _OF_ADAMW | _OF_NADAM,
}
"""The tensors that each keeps of a parameter."""


class _Matrix:
    """A kernel as Muon is to see it: one row for each output channel, in the same memory."""

    def __init__(self, kernel: nn.Parameter) -> None:
        self._kernel = kernel
        # From the slowest axis to the fastest, which makes rows without a copy also of a kernel
        # in channels_last. The order of its columns is nothing to Muon.
        inner = sorted(range(1, kernel.ndim), key=kernel.stride, reverse=True)
        self._axes = (0, *inner)
        self.matrix = nn.Parameter(self._rows(kernel.detach()))
        assert self.matrix.data_ptr() == kernel.data_ptr()

    def hand_over(self) -> None:
        """Move the gathered gradient from the kernel to the matrix."""
        if self._kernel.grad is not None:
            self.matrix.grad = self._rows(self._kernel.grad)
            self._kernel.grad = None

    def _rows(self, kernel: Tensor) -> Tensor:
        return kernel.permute(self._axes).flatten(1)


def matrices_of(prefix: str, module: nn.Module) -> frozenset[str]:
    """What Muon takes of a body: what multiplies, by its name below `prefix`. Its orthogonal step
    is not meant for a table, which is looked up, nor for a norm's scales of [T, D]."""

    def of(*kinds: type[nn.Module]) -> set[str]:
        owners = [(n, m) for n, m in module.named_modules(prefix=prefix) if isinstance(m, kinds)]
        return {f"{n}.{own}" for n, m in owners for own, _ in m.named_parameters(recurse=False)}

    kernels = {name for name in of(_ConvNd) if name.endswith(".weight")}
    named = {f"{prefix}.{name}": p for name, p in module.named_parameters()}
    matrices = {name for name, p in named.items() if p.ndim == 2} | kernels
    real = {name for name, p in named.items() if not p.is_complex()}  # Muon drops the other part
    return frozenset(matrices & real - of(nn.Embedding, nn.LayerNorm, nn.RMSNorm))


def beside(
    config: OptimConfig, lr: float, name: str = "adamw", muon_lr: float = 0.0
) -> OptimConfig:
    """What is trained beside the chain, students and predictors, learns by an optimizer and at
    rates of its own, and from fresh gradients."""
    return replace(config, name=name, lr=lr, muon_lr=muon_lr, correction="none")


# --- torch._dynamo -----------------------------------------------------------------------------
#
# torch.optim imports it at the first use, only to keep its own methods out of compiled graphs
# (torch/_compile.py and torch/optim/optimizer.py of 2.13): 1.3 s and 80 MB in every rank. mach
# compiles no optimizer, so it takes the methods without that wrapping.


def _spare_dynamo() -> None:
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:  # where another version wraps differently, it costs what it costs
            plain.__dict__.setdefault("__dynamo_disable", plain)


@torch.no_grad()
def _step(optimizer: torch.optim.Optimizer) -> None:
    inspect.unwrap(type(optimizer).step)(optimizer)


def _first_order(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    # One kernel for all parameters instead of a Python loop; on CPU as well. It knows real numbers.
    fused = not any(p.is_complex() for p in parameters)
    nesterov = config.correction == "nesterov"
    if nesterov and config.name != "sgd":  # it has no fused kernel
        return torch.optim.NAdam(
            parameters,
            lr=config.lr,
            betas=(config.look_ahead, 0.999),
            weight_decay=config.weight_decay,
            decoupled_weight_decay=True,
        )
    if config.name == "sgd":
        momentum = config.look_ahead if nesterov else config.momentum
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=momentum,
            nesterov=momentum > 0,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused
    )
