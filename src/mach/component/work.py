"""What does a component remember of a microbatch, of all since they were last told of, of all?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mach.component.stash import Version


@dataclass(slots=True)
class Pending:
    """One microbatch between its forward and its backward."""

    inputs: Tensor
    """What the body was given; a leaf whose gradient goes to the child."""
    y: Tensor
    version: int
    """Optimizer steps this component had taken at the forward."""
    from_student: int
    """Leading rows of `inputs` that the student made; the child gets no gradient for them."""
    x: Tensor | None
    """Raw input, where the body is given it as well."""
    output: Tensor | None = None
    """h with its graph, or None where the forward has to be run again."""
    weights: Version | None = None
    """The version of the body that `output` was made with; None where it is the body's own."""
    sent: Tensor | None = None
    """h as the parent has seen it, where its gradient is to be compensated or corrected."""


@dataclass(slots=True)
class StepTotals:
    """Sums since they were last read, on the device, so that training never waits for them."""

    loss: Tensor
    student_loss: Tensor
    predictor_loss: Tensor
    backwards: int = 0
    distillations: int = 0
    predictions: int = 0
    staleness: int = 0
    staleness_max: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> StepTotals:
        """Nothing seen yet."""
        zero = torch.zeros((), device=device)
        return cls(zero, zero.clone(), zero.clone())

    def count(self, loss: Tensor, staleness: int) -> None:
        """A microbatch has been back-propagated."""
        self.loss += loss.detach()
        self.backwards += 1
        self.staleness += staleness
        self.staleness_max = max(self.staleness_max, staleness)


@dataclass(frozen=True)
class Ages:
    """How old the gradients of the whole run were, in optimizer steps."""

    total: int = 0
    gradients: int = 0
    oldest: int = 0

    @property
    def mean(self) -> float:
        """0 where there were none."""
        return self.total / max(1, self.gradients)

    def with_those_of(self, totals: StepTotals) -> Ages:
        """These and those that `totals` counts."""
        return Ages(
            self.total + totals.staleness,
            self.gradients + totals.backwards,
            max(self.oldest, totals.staleness_max),
        )
