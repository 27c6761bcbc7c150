"""How do student, bodies and head of a window learn together, and which step is the best?

# z logits of the window, z' of its teacher on the same samples, y labels
# (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(z' / T) | softmax(z / T))    mach.component.soft
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from mach.component.losses import target_loss
from mach.component.soft import SoftTargets
from mach.config import OptimConfig
from mach.data import Batches
from mach.errors import DivergedError
from mach.inference import Window
from mach.optim import Optimizer, matrices_of

# B batch, N targets, C classes

Scores = dict[str, float]
"""Loss and metric."""


def optimizer_of(window: Window, optim: OptimConfig, steps: int) -> Optimizer:
    """The optimizer of all that a window has; Muon takes what multiplies in bodies and student, as
    in a run it takes that of bodies."""
    matrices = matrices_of("bodies", window.bodies)
    if window.student is not None:
        matrices |= matrices_of("student", window.student)
    return Optimizer(window.named_parameters(), optim, steps=steps, matrices=matrices)


class Together:
    """A window that learns as one network."""

    def __init__(
        self,
        window: Window,
        teacher: nn.Module,
        batches: Batches,
        targets: Callable[[Tensor], Tensor],
        soft: SoftTargets,
        optimizer: Optimizer,
    ) -> None:
        """
        Args:
            window: it is trained in place.
            teacher: to logits [N, C]; in evaluation mode, and not changed.
            batches: each gives a step its samples.
            targets: from the data's y to the N targets of the logits.
            soft: how the window listens to the teacher; with weight 0 it is not asked.
            optimizer: of all parameters of the window.
        """
        self.window = window
        self._teacher, self._soft = teacher, soft
        self._batches, self._targets, self._optimizer = batches, targets, optimizer

    def step(self, index: int) -> Tensor:
        """Take step `index`, with microbatch `index`. Returns its loss."""
        x, y = self._batches.train(index)
        logits_NC = self.window(x)
        if self._soft.weight > 0:
            with torch.no_grad():
                larger = self._teacher(x)
            loss = self._soft.loss(logits_NC, self._targets(y), larger)
        else:
            loss = target_loss(logits_NC, self._targets(y))
        loss.backward()
        self._optimizer.step(index)
        return loss.detach()


@dataclass
class Course:
    """How it went, and the best weights that were seen."""

    best_step: int
    best: Scores
    weights: dict[str, Tensor]
    looks: list[dict[str, Any]] = field(default_factory=list)
    """Step, loss of the training since the look before, and the scores of each."""


def learn(
    together: Together,
    score: Callable[[nn.Module], Scores],
    *,
    steps: int,
    every: int,
    patience: int,
    say: Callable[[str], None],
) -> Course:
    """Take steps, look, and end with the best weights of all looks.

    The window has them then, and is in evaluation mode.

    Args:
        score: of the window on samples that it is not trained on.
        steps: at most.
        every: steps between two looks; the last step is always followed by one.
        patience: looks without a better one that end it; 0: none do.
        say: is told of each look.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    window = together.window.eval()
    before = score(window)
    course = Course(0, before, _copy(window), [{"step": 0, **before}])
    losses: list[Tensor] = []
    worse = 0
    window.train()
    for index in range(steps):
        losses.append(together.step(index))
        if (index + 1) % every and index + 1 < steps:
            continue
        loss = float(torch.stack(losses).mean())
        losses.clear()
        found = score(window.eval())
        if not isfinite(loss) or not isfinite(found["loss"]):
            raise DivergedError(
                f"step {index + 1}: expected a finite loss; got {loss}, and {found['loss']} on "
                "validation. Set a smaller lr (and muon_lr)."
            )
        course.looks.append({"step": index + 1, "train_loss": loss, **found})
        say(_told(index + 1, steps, loss, found))
        worse += 1
        if is_better(found, course.best):
            course.best_step, course.best, course.weights = index + 1, found, _copy(window)
            worse = 0
        if patience and worse >= patience:
            break
        window.train()
    window.load_state_dict(course.weights)
    window.eval()
    return course


def is_better(now: Scores, before: Scores) -> bool:
    """By the task's metric, and where that is the same by the loss."""

    def key(scores: Scores) -> tuple[float, float]:
        name = metric_of(scores)
        value = scores[name]
        return (value if name == "accuracy" else -value, -scores["loss"])

    return key(now) > key(before)


def metric_of(scores: Scores) -> str:
    """Its name."""
    return next(key for key in scores if key != "loss")


def shown(scores: Scores) -> str:
    """The metric, as people read it."""
    name = metric_of(scores)
    value = scores[name]
    text = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {text}"


def _told(step: int, steps: int, loss: float, found: Scores) -> str:
    return f"step {step:,} of {steps:,}: loss {loss:.4f}, validation {shown(found)}"


def _copy(window: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in window.state_dict().items()}
