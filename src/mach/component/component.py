"""What does one component compute?

A component is a slice of the network that trains by itself: it turns its child's activation into
its own, and later its parent's gradient into a step and a gradient for its child. It knows nothing
of processes, channels or schedules; calls in the right order are all it needs, so it runs in a
notebook as it does in a rank.

    # f body, g head, s student; h activation, G gradient of the parent's loss with respect to h
    # L_k = lambda_k CE(g(h), y) + <h, G>
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from mach.component.compiled import as_written, compile_in_place
from mach.component.losses import scale_gradient, target_loss
from mach.component.modes import Modes
from mach.component.predictor import GradientPredictor
from mach.component.stash import Version, WeightStash
from mach.component.student import Student
from mach.component.updates import Update
from mach.component.work import Pending, StepTotals
from mach.errors import ConfigError


class Component:
    """Body, head and student of component k, and the microbatches it has in flight."""

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        update: Update,
        *,
        targets: Callable[[Tensor], Tensor] = lambda y: y,
        head_update: Update | None = None,
        head_weight: float = 1.0,
        student: Student | None = None,
        mix: float = 0.0,
        predictor: GradientPredictor | None = None,
        predicted: bool = False,
        feedback: float = 0.0,
        accumulate: int = 1,
        replay: str = "recompute",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        """
        Args:
            body: f, from the child's activation (or the raw input) [B, ...] to h [B, ...].
            head: g, from h [B, ...] to logits [N, C].
            update: steps the body; with the head where `head_update` is None (the top).
            targets: from the data's y to the N targets of the head's logits.
            head_update: steps a head that is trained beside the chain.
            head_weight: lambda, what the body feels of the head's gradient.
            student: predicts the child's activation; None at the bottom, or without distillation.
            mix: fraction of each microbatch whose input the student makes.
            predictor: predicts the parent's gradient, so that the body learns at once; None at the
                top, or where it learns from the gradient itself.
            predicted: whether the child has one. To learn from, a gradient at the student's guess
                will do, which the child's body could not be given.
            feedback: gamma, factor on the gradient returned to the child; at 0 it is not computed,
                as at the bottom, which has no child.
            accumulate: M, microbatches per step.
            replay: `recompute` or `stash` (design section 2).
            precision: `fp32`, or `bf16` for autocast.
            compiled: train with compiled modules; `rehearse` compiles them.
        """
        self.body, self.head, self.student, self.predictor = body, head, student, predictor
        self._chain_modes = Modes(body, head)
        self._modes = Modes(body, head, *([] if student is None else [student.network]))
        self._update, self._head_update = update, head_update
        self._targets = targets
        self._head_weight, self._feedback, self._mix = head_weight, feedback, mix
        self._predicted = predicted
        self._accumulate = accumulate
        self._stash = WeightStash(body) if replay == "stash" else None
        self._device = next(chain(head.parameters(), body.parameters())).device
        self._autocast = precision == "bf16"
        self._compiled = compiled
        if compiled:
            compile_in_place(body, head, *([] if student is None else [student.network]))
        self.version = 0
        self.pending: dict[Hashable, Pending] = {}
        self.gradient_norm: Tensor = torch.zeros((), device=self._device)
        self.totals = self._zero_totals()

    # --- training ------------------------------------------------------------------------

    def forward(
        self, microbatch: Hashable, inputs: Tensor, x: Tensor | None, y: Tensor, staleness: int = 0
    ) -> Tensor:
        """h of one microbatch, detached: what is sent to the parent.

        Args:
            microbatch: its number or name, by which `backward` finds it again.
            inputs: the child's activation, or the raw input at the bottom.
            x: raw input, where a student needs it.
            y: targets as the data has them.
            staleness: optimizer steps that will come before its backward; at 0 the graph is kept.
        """
        from_student = 0
        if self._mix > 0 and self.student is not None and x is not None:
            from_student = round(self._mix * len(inputs))
            inputs = self._mixed(inputs, x, from_student)
        inputs = inputs.detach().requires_grad_(self._feedback > 0)
        output, weights = None, None
        if staleness == 0:
            output = self._run(self.body, inputs)
        elif self._stash is not None:
            weights = self._stash.present()
            output = self._run(partial(self._stash.forward, weights), inputs)
        self.pending[microbatch] = Pending(inputs, output, y, self.version, weights, from_student)
        if output is not None:
            return output.detach()
        with torch.no_grad():
            return self._run(self.body, inputs)

    def backward(
        self, microbatch: Hashable, gradient: Tensor | None, *, alone: bool = False
    ) -> Tensor | None:
        """Back-propagate a microbatch.

        Args:
            microbatch: one that `forward` has seen and `backward` has not.
            gradient: G from the parent [B, ...]; None at the top or where the chain is cut.
            alone: no gradient will come where one should: the body feels its head in full.

        Returns:
            The gradient of its inputs times feedback [B, ...]; None where feedback is 0.
        """
        work = self.pending.pop(microbatch)
        if self.predictor is not None:
            self._teach(self.predictor, work, gradient)
            return None
        h = work.output if work.output is not None else self._replay(work.inputs)
        return self._gather(work, h, gradient, 1.0 if alone else self._head_weight)

    @property
    def answers(self) -> bool:
        """Whether the child's gradient comes from `answer`, rather than from `backward`."""
        return self.predictor is not None

    def answer(self, microbatch: Hashable) -> Tensor | None:
        """Back-propagate a microbatch that has just been forwarded, with a predicted gradient.

        Returns:
            As `backward`, which will only teach the predictor.
        """
        assert self.predictor is not None
        work = self.pending[microbatch]
        h = work.output
        assert h is not None, "what is learnt from at once is not stale"
        work.output = h.detach()
        guess = self.predictor.predict(h, self._targets(work.y))
        return self._gather(work, h, guess, self._head_weight)

    def distil(self, x: Tensor, child: Tensor, y: Tensor) -> None:
        """Train the student on the activation `child` that has just come for the raw input `x`."""
        assert self.student is not None
        self.totals.student_loss += self._gather_distillation(x, child, y)
        self.totals.distillations += 1
        self.student.count()

    def step(self) -> None:
        """Take one optimizer step with the gradients gathered since the last."""
        self.gradient_norm = self._update.step(self.version)
        if self._head_update is not None:
            self._head_update.step(self.version)
        self.version += 1
        if self._stash is not None:
            self._stash.advance()

    def rehearse(self, inputs: Tensor, x: Tensor, y: Tensor) -> None:
        """Run once all that training runs, and leave no trace: modules are compiled by their first
        run, and nobody waits for this component yet.

        Args:
            inputs: like those of `forward`, whatever the numbers.
            x, y: a microbatch.

        Raises:
            ConfigError: a module cannot be compiled.
        """
        gpus = [self._device] if self._device.type == "cuda" else []
        mix, self._mix = self._mix, 0.0
        try:
            with torch.random.fork_rng(devices=gpus), self._modes.uncounted():
                for staleness in (0,) if self.answers else (0, 1):
                    h = self.forward("rehearsal", inputs, x, y, staleness)
                    if self.answers:
                        self.answer("rehearsal")
                        del self.pending["rehearsal"]
                    else:
                        self.backward("rehearsal", torch.zeros_like(h))
                if self.student is not None:
                    self._gather_distillation(x, inputs, y)
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise ConfigError(
                "model.compile=true: expected modules that torch can compile; got "
                f"{type(error).__name__}: {said}. Set model.compile=false."
            ) from error
        finally:
            self._mix = mix
        for module in self.modules().values():
            module.zero_grad()
        self.totals = self._zero_totals()

    def forget_gradients(self) -> None:
        """Drop what was gathered since the last step: a component that has taken all its steps
        goes on computing for its neighbours."""
        for module in (self.body, self.head):
            module.zero_grad()

    def resume(self, step: int) -> None:
        """Go on after optimizer step `step`, with nothing in flight."""
        assert not self.pending
        self.version = step
        if self.predictor is not None:
            self.predictor.resume(step)
        if self.student is not None:
            self.student.resume(step)

    # --- inference -----------------------------------------------------------------------

    @torch.no_grad()
    def infer(self, inputs: Tensor) -> Tensor:
        """h for the child's activation, with nothing remembered."""
        with self._as_written(), self._modes.inference():
            return self._run(self.body, inputs)

    @torch.no_grad()
    def imitate_child(self, x: Tensor) -> Tensor:
        """The student's guess at the child's activation: where a window begins."""
        assert self.student is not None
        with self._as_written(), self._modes.inference():
            return self._run(self.student.imitate, x)

    @torch.no_grad()
    def predict(self, h: Tensor) -> Tensor:
        """Logits [N, C] of the head."""
        with self._as_written(), self._modes.inference():
            return self._run(self.head, h)

    def targets(self, y: Tensor) -> Tensor:
        """The N targets of the head's logits."""
        return self._targets(y)

    def read_totals(self) -> StepTotals:
        """Sums since the last call."""
        totals, self.totals = self.totals, self._zero_totals()
        return totals

    def modules(self) -> dict[str, nn.Module]:
        """What is trained here, by name."""
        named = {"body": self.body, "head": self.head}
        if self.student is not None:
            named["student"] = self.student.network
        if self.predictor is not None:
            named["predictor"] = self.predictor.network
        return named

    # --- details -------------------------------------------------------------------------

    def _gather(
        self, work: Pending, h: Tensor, gradient: Tensor | None, weight: float
    ) -> Tensor | None:
        """Gather the gradient of weight CE(g(h), y) + <h, gradient>. Returns the child's."""
        loss = self._head_loss(scale_gradient(h, weight), work.y)
        roots: list[Tensor] = [loss / self._accumulate]
        seeds: list[Tensor | None] = [None]
        if gradient is not None:
            roots, seeds = [h, *roots], [gradient.to(h.dtype), *seeds]
        # A checkpointed block is run once more inside of this.
        with self._gathering(work.weights), self._chain_modes.uncounted():
            torch.autograd.backward(roots, seeds)
        self._count(loss, self.version - work.version)
        child_gradient = work.inputs.grad
        if child_gradient is None:
            return None
        if work.from_student and not self._predicted:
            child_gradient[: work.from_student] = 0
        return child_gradient if self._feedback == 1 else child_gradient * self._feedback

    def _teach(self, predictor: GradientPredictor, work: Pending, gradient: Tensor | None) -> None:
        """Train the predictor on the gradient that its guess was made for."""
        assert work.output is not None
        if gradient is None:
            return
        self.totals.predictor_loss += predictor.learn(work.output, self._targets(work.y), gradient)
        self.totals.predictions += 1

    def _gather_distillation(self, x: Tensor, child: Tensor, y: Tensor) -> Tensor:
        assert self.student is not None

        def task_loss(imitated: Tensor) -> Tensor:
            return self._head_loss(self.body(imitated), y)

        with self._chain_modes.uncounted():
            return self.student.gather(x, child, task_loss, self._precision())

    def _as_written(self) -> AbstractContextManager[object]:
        return as_written() if self._compiled else nullcontext()

    def _precision(self) -> AbstractContextManager[object]:
        if not self._autocast:
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _gathering(self, weights: Version | None) -> AbstractContextManager[object]:
        if weights is None:
            return nullcontext()
        assert self._stash is not None
        return self._stash.lending(weights)

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with self._precision():
            return function(x)

    def _replay(self, inputs: Tensor) -> Tensor:
        with self._chain_modes.uncounted():
            return self._run(self.body, inputs)

    def _head_loss(self, h: Tensor, y: Tensor) -> Tensor:
        return target_loss(self._run(self.head, h), self._targets(y))

    def _mixed(self, inputs: Tensor, x: Tensor, rows: int) -> Tensor:
        mixed = inputs.clone()
        mixed[:rows] = self.imitate_child(x[:rows])
        return mixed

    def _count(self, loss: Tensor, staleness: int) -> None:
        self.totals.loss += loss.detach()
        self.totals.backwards += 1
        self.totals.staleness += staleness
        self.totals.staleness_max = max(self.totals.staleness_max, staleness)

    def _zero_totals(self) -> StepTotals:
        zero = torch.zeros((), device=self._device)
        return StepTotals(zero, zero.clone(), zero.clone())
