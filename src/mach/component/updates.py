"""What does a component ask of whatever turns its gradients into steps?"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Update(Protocol):
    """Steps a set of parameters. `mach.optim` has the real ones; a notebook may bring its own."""

    def step(self, index: int) -> Tensor:
        """Take step `index` (0 is the first) with the gathered gradients and clear them.

        Returns the norm of the gradients before clipping, a scalar on their device.
        """
        ...
