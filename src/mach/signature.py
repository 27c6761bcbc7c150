"""What does a model take, and what do its answers mean?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mach.data import Dataset
from mach.data.order import subset
from mach.data.tokenizers import Tokenizer, restore
from mach.errors import CheckpointError
from mach.inference import Run
from mach.shapes import TensorSpec

_LOOKED_AT = 4096
"""Training samples whose range is looked at."""

_BEYOND = 1e6
"""Times the largest feature of the training samples."""


@dataclass(frozen=True)
class Signature:
    """Of a model that predicts from samples as its data has them: features are not standardised."""

    shape: tuple[int, ...]
    """Of a sample; [T] of text."""
    classes: int
    """C, labels or different tokens."""
    metric: str
    """accuracy, bits_per_byte or bits_per_token."""
    text: bool
    """Samples are int64 tokens; else they are features, float32 or what converts to it."""
    per_position: bool
    """Of text: the logits are [B T, C], those of the token after each one; else [B, C]."""
    shorter: bool
    """Of text: fewer than T tokens will do, too."""
    tokenizer: dict[str, Any] | None
    """Its description; None: no text, or nobody knows what the tokens mean."""
    low: float
    """Least feature of the training samples."""
    high: float
    """Largest one."""

    @property
    def largest(self) -> float:
        """A feature may be so large, either way: far beyond all samples, and no square of it
        overflows in a network."""
        return _BEYOND * max(1.0, abs(self.low), abs(self.high))

    @property
    def sample(self) -> TensorSpec:
        """One input."""
        return TensorSpec(self.shape, torch.int64 if self.text else torch.float32)

    @property
    def logits(self) -> int:
        """Of a sample."""
        return self.classes * (self.shape[0] if self.per_position else 1)

    def restore_tokenizer(self) -> Tokenizer | None:
        """What makes tokens of text."""
        return None if self.tokenizer is None else restore(self.tokenizer)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Signature:
        """What `to_json` made.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            found = Signature(**values)
            shape = tuple(int(size) for size in found.shape)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"model.json: signature: expected that of a model; got {error}"
            ) from error
        return Signature(**{**values, "shape": shape})


def signature_of(run: Run) -> Signature:
    """That of all models of a run."""
    task = run.task
    text = not task.sample.dtype.is_floating_point
    rows = 1
    if text:
        y = torch.zeros((1, *task.sample.shape), dtype=torch.int64)
        rows = len(run.assembly.family.targets(y))
    low, high = (0.0, float(task.classes - 1)) if text else _range(run.dataset)
    return Signature(
        shape=tuple(task.sample.shape),
        classes=task.classes,
        metric=task.metric,
        text=text,
        per_position=rows > 1,
        shorter=run.assembly.family.takes_fewer_tokens,
        tokenizer=None if run.tokenizer is None else run.tokenizer.describe(),
        low=low,
        high=high,
    )


def _range(dataset: Dataset) -> tuple[float, float]:
    x = np.asarray(dataset.x_train)
    seen = x[subset(len(x), min(len(x), _LOOKED_AT))]
    return float(seen.min()), float(seen.max())
