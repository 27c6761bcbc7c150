"""What does a component remember of a microbatch, and of all since they were last told of?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mach.component.stash import Version


@dataclass(slots=True)
class Pending:
    """One microbatch between its forward and its backward."""

    inputs: Tensor
    """What the body was given; a leaf whose gradient goes to the child."""
    output: Tensor | None
    """h with its graph, or None where the forward has to be run again."""
    y: Tensor
    version: int
    """Optimizer steps this component had taken at the forward."""
    weights: Version | None
    """The version of the body that `output` was made with; None where it is the body's own."""
    from_student: int
    """Leading rows of `inputs` that the student made; the child gets no gradient for them."""


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
