"""What would a gradient be where the weights, or activations, are now?

    g + lambda g g (now - then)

The second term stands for the Hessian times the way gone, with the square of a gradient in place of
the Hessian's diagonal (DC-ASGD; Zheng et al., ICML 2017, equation 10).
"""

from __future__ import annotations

from torch import Tensor


def compensated(gradient: Tensor, moved: Tensor, strength: float, scale: float) -> Tensor:
    """A late gradient, moved along.

    Args:
        gradient: what was made then, of a loss that was divided by `scale`.
        moved: what it is the gradient with respect to, now, minus then.
        strength: lambda, for the gradient of the undivided loss.
        scale: what the loss was divided by.
    """
    return gradient + (strength * scale) * gradient * gradient * moved
