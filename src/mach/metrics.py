"""How good is a prediction, and how is that counted over many batches?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mach.shapes import TensorSpec

# B batch, C classes


@dataclass(frozen=True)
class Task:
    """What the data asks of a model."""

    sample: TensorSpec
    """One input: float32 features, or int64 tokens of shape [T]."""
    classes: int
    """C: number of labels, or of different tokens."""
    metric: str
    """accuracy (fraction of labels guessed), bits_per_byte, or bits_per_token where nobody knows
    how much text a token is."""
    bytes_per_target: float = 1.0
    """Bytes of text behind one target, on average over the held-out part; for bits_per_byte."""


class Score:
    """Loss and metric of one exit, summed over batches on the device and read once."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._targets = 0

    def add(self, logits_BC: Tensor, targets_B: Tensor) -> None:
        """Count one batch of logits [B, C] against integer targets [B]."""
        logits_BC = logits_BC.float()
        self._loss += F.cross_entropy(logits_BC, targets_B, reduction="sum").double()
        self._correct += (logits_BC.argmax(-1) == targets_B).sum()
        self._targets += len(targets_B)

    def result(self, task: Task) -> dict[str, float]:
        """Mean loss in nats per target, and the task's metric."""
        loss = self._loss.item() / self._targets
        if task.metric == "bits_per_byte":
            return {"loss": loss, "bits_per_byte": loss / math.log(2) / task.bytes_per_target}
        if task.metric == "bits_per_token":
            return {"loss": loss, "bits_per_token": loss / math.log(2)}
        return {"loss": loss, "accuracy": self._correct.item() / self._targets}
