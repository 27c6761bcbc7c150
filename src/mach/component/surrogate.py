"""How is a gradient that belongs to an old activation made to fit the present one?

When the parent's gradient comes the body has moved: run again it makes another activation than the
one that was sent. The head stands in for the parents, who are not at hand: by as much as its own
gradient changes between the two activations the parent's is taken to change, too.

    # h activation now, h' as it was sent, G(h') from the parent, g the head as it is now
    # G(h) ~ G(h') + c (dCE(g(h), y)/dh - dCE(g(h'), y)/dh)

A control variate; to first order, the head's Hessian times h - h'. Where nothing moves nothing is
added: as the rates fall the gradient becomes the parent's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slope(loss: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """dloss/dh at h [B, ...], same out. Adds nothing to the gradient of any weight."""
    at = h.detach().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]
