"""How does Muon's step stay fast on every processor?

torch's Muon orthogonalises in bfloat16. Without instructions for it a CPU takes 80 ms for a matrix
of 128 x 512 (AVX2, one thread, torch 2.13), twenty times what it takes here, and in a small network
that is nine tenths of a run. Here the products are those of float32, each rounded to bfloat16 as
torch rounds it: the same step, up to the order in which a product is summed. A CPU with AMX takes
bfloat16 itself where a matrix is large enough: half the time at 128 x 512, a seventh at 512 x 512
(one thread). AVX512-BF16 alone is no faster than float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr

_LARGE = 2**21
"""Multiplications of a product from which on AMX is ahead of float32: below, a call costs more."""


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al., 2024) for matrices on a CPU; its state is the same."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients there are."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group)

    def _move(self, matrix: Tensor, gradient: Tensor, group: dict) -> None:
        state, momentum = self.state[matrix], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        direction = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], matrix.shape)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-rate)


def orthogonal(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, about: `steps` Newton-Schulz iterations.

    Args:
        matrix: float32 [m, n].
        coefficients: a, b, c of X <- a X + (b A + c A A) X with A = X X^T.
        steps: how many.
        eps: the least norm that is divided by.

    Returns:
        bfloat16 [m, n].
    """
    a, b, c = coefficients
    x = matrix.bfloat16()
    x = x.T if x.size(0) > x.size(1) else x
    x = x / x.norm().clamp(min=eps)
    x = x if x.size(0) * x.numel() >= _LARGE and has_amx() else x.float()
    for _ in range(steps):
        gram = _rounded(x @ x.T)
        update = _rounded(torch.addmm(gram, gram, gram, beta=b, alpha=c))
        x = _rounded(torch.addmm(x, update, x, beta=a))
    out = x.bfloat16()
    return out.T if matrix.size(0) > matrix.size(1) else out


@lru_cache
def has_amx() -> bool:
    """Whether this CPU has tiles that multiply bfloat16."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.9 has no such function
    return bool(capabilities and capabilities().get("amx_bf16"))


def _rounded(x: Tensor) -> Tensor:
    """As bfloat16 has it, in the type that products are made in."""
    return x.bfloat16().to(x.dtype)
