"""Which samples are trained on, and which are kept back to choose by and to report on?

train       what is left of the training data
validation  `data.validation` samples of it that are never trained on: to choose by
test        the data's own: to report on, once, when everything is chosen
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mach.data.files import Array
from mach.data.order import subset
from mach.metrics import Task


@dataclass(frozen=True, eq=False)
class Split:
    """Samples for one purpose."""

    x: Array
    """Where they are: samples along the first axis; of text its tokens [n]."""
    y: Array | None
    """Labels, one for each sample of `x`; None for text."""
    chosen: Array | None
    """Which samples of `x` these are, in order; None: all, and text."""
    samples: int
    """How many; of held-out text the windows of one evaluation."""
    task: Task
    """What is asked of a model; of text with the bytes behind a token of this split."""


def spared(total: int, validation: int) -> Array:
    """What is left to train on of `total` samples, in order; `subset` chose the others."""
    left = np.ones(total, dtype=bool)
    left[subset(total, validation)] = False
    return np.flatnonzero(left)
