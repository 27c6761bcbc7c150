"""What is taken out of Muon, and what stands beside it?

Muon's step is a direction: momentum, brought to singular values of about 1. Between it and plain
momentum lie two things. The step has a size of its own, whatever the gradient's, and it is flat: as
large along directions that gradients seldom have as along those that they always have. A few
Newton-Schulz iterations fewer leave the first and take the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

import mach.muon


@dataclass(frozen=True)
class Way:
    """A way to step."""

    about: str
    words: tuple[str, ...] = ()
    """Overrides of `mach train`."""
    rate: str = "optim.muon_lr"
    """The value that is chosen at every delay."""
    first: float = 0.01
    """Where the search for it begins."""
    iterations: int | None = None
    """Of Newton-Schulz, with the size of the whole step; None: Muon as it is."""


WAYS = {
    "muon": Way("Muon"),
    "muon-2": Way("Muon with 2 of its 5 iterations", iterations=2),
    "muon-0": Way("Muon with none of them: momentum of a fixed size", iterations=0),
    "muon-fresh": Way("Muon without momentum", ("optim.muon_momentum=0",)),
    "adamw": Way("AdamW", ("optim=adamw",), "optim.lr", 2e-3),
    "sgd": Way("SGD with momentum", ("optim=sgd",), "optim.lr", 0.1),
}


@contextmanager
def stepping(way: Way) -> Iterator[None]:
    """Inside, Muon takes the steps of a way."""
    if way.iterations is None:
        yield
        return
    whole = mach.muon.orthogonal

    def partly(
        matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
    ) -> Tensor:
        assert way.iterations is not None
        direction = whole(matrix, coefficients, way.iterations, eps).float()
        # The Frobenius norm of a matrix with orthonormal rows or columns.
        return direction * (min(matrix.shape) ** 0.5 / direction.norm().clamp(min=eps))

    with patch.object(mach.muon, "orthogonal", partly):
        yield
