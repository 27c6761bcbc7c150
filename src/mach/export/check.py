"""Does an exported model answer as the run's own does, and how good is it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mach.data import Batches
from mach.inference import Run, computed_together
from mach.models import targets_of_a_sample

# B batch, N rows of logits, C classes

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """Of two models on the same test samples."""

    samples: int
    max_difference: float
    """Of any logit; nan if one of either is."""
    max_logit: float
    """Largest absolute logit of the original."""
    same_answer: float
    """Fraction of rows whose largest logit is the same."""

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest logit."""
        return self.max_difference / max(self.max_logit, 1e-30)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(run: Run, original: nn.Module, exported: Predict, samples: int) -> Agreement:
    """Compare on test samples, spread over all there are.

    Args:
        original: takes samples as training standardised them.
        exported: takes them as the data has them.
        samples: as many, or all if there are fewer.
    """
    standardised, raw = _batches(run, raw=False), _batches(run, raw=True)
    difference = largest = torch.zeros(())
    same = rows = seen = 0
    with torch.inference_mode():
        for batch in range(raw.evaluation_batches(samples)):
            x, _ = standardised.evaluation(batch, samples)
            expected_NC = original(x)
            found_NC = exported(raw.evaluation(batch, samples)[0])
            # Not Python's max, to which nothing is larger than a number, nan neither.
            difference = torch.maximum(difference, (expected_NC - found_NC).abs().max())
            largest = torch.maximum(largest, expected_NC.abs().max())
            same += int((expected_NC.argmax(-1) == found_NC.argmax(-1)).sum())
            rows += len(expected_NC)
            seen += len(x)
    return Agreement(seen, float(difference), float(largest), same / rows)


def metrics(run: Run, exported: Predict) -> dict[str, float]:
    """Loss and metric of an exported model on the whole test split."""
    return run.score(exported, _batches(run, raw=True))


def _batches(run: Run, raw: bool) -> Batches:
    dataset = replace(run.dataset, mean=0.0, std=1.0) if raw else run.dataset
    batch = computed_together(targets_of_a_sample(run.assembly.family) * run.task.classes)
    return Batches(dataset, run.config.seed, batch, torch.device("cpu"))
