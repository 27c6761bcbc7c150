"""What does one component compute?

A component is a slice of the network that trains by itself: it turns its child's activation into
its own, and later its parent's gradient into a step and a gradient for its child. It knows nothing
of processes, channels or schedules; calls in the right order are all it needs, so it runs in a
notebook as it does in a rank.

    # f body, g head, s student; h activation, G gradient of the parent's loss with respect to h
    # L_k = lambda_k CE(g(h), y) + <h, G>
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from mach.component.compiled import as_written, compile_in_place
from mach.component.late import AS_IT_COMES, Late, Replay
from mach.component.losses import scale_gradient
from mach.component.modes import Modes
from mach.component.network import Network
from mach.component.predictor import GradientPredictor
from mach.component.soft import SoftTargets
from mach.component.student import Student
from mach.component.surrogate import slope
from mach.component.updates import Update
from mach.component.work import Ages, Pending, StepTotals
from mach.errors import ConfigError
from mach.randomness import apart, drawn_again


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
        soft: SoftTargets | None = None,
        student_soft: SoftTargets | None = None,
        teaches: bool = False,
        one_hop: bool = False,
        late: Late = AS_IT_COMES,
        feedback: float = 0.0,
        accumulate: int = 1,
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
            soft: how the head listens to the parent's logits; None does not.
            student_soft: how the student listens to what body and head say of the child's own
                activation.
            teaches: whether `logits` is kept for the child.
            one_hop: the child is given the gradient of the head's loss alone, at once; the parent's
                goes no further.
            late: what is done about gradients that come after the weights have moved.
            feedback: gamma, factor on the gradient returned to the child; at 0 it is not computed,
                as at the bottom, which has no child.
            accumulate: M, microbatches per step.
            precision: `fp32`, or `bf16` for autocast.
            compiled: train with compiled modules; `rehearse` compiles them.
        """
        self.body, self.head, self.student, self.predictor = body, head, student, predictor
        self._modes = Modes(body, head, *([] if student is None else [student.network]))
        self._update, self._head_update = update, head_update
        self._head_weight, self._feedback, self._mix = head_weight, feedback, mix
        self._predicted, self._one_hop = predicted, one_hop
        self._student_soft = student_soft
        self.soft, self.teaches = soft, teaches
        self.logits: Tensor | None = None
        """What the head said of the microbatch that was back-propagated last, if it teaches."""
        self._accumulate = accumulate
        self.device = next(chain(head.parameters(), body.parameters())).device
        """Where its tensors live."""
        autocast = self.device if precision == "bf16" else None
        self._net = Network(body, head, targets, autocast)
        self._replay = Replay(self._net, late, accumulate)
        self._compiled = compiled
        if compiled:
            compile_in_place(body, head, *([] if student is None else [student.network]))
        self.version = 0
        self.pending: dict[Hashable, Pending] = {}
        self.gradient_norm: Tensor = torch.zeros((), device=self.device)
        self.totals = StepTotals.zero(self.device)
        self._ages = Ages()

    # --- training ------------------------------------------------------------------------

    @property
    def joins(self) -> bool:
        """Whether the body sees the raw input beside the child's activation."""
        return self._net.joins

    def forward(
        self, microbatch: Hashable, inputs: Tensor, x: Tensor | None, y: Tensor, staleness: int = 0
    ) -> Tensor:
        """h of one microbatch, detached: what is sent to the parent.

        Args:
            microbatch: its number or name, by which `backward` finds it again.
            inputs: the child's activation, or the raw input at the bottom.
            x: raw input, where a student or the body needs it.
            y: targets as the data has them.
            staleness: optimizer steps that will come before its backward; at 0 the graph is kept.
        """
        from_student = 0
        if self._mix > 0 and self.student is not None and x is not None:
            from_student = round(self._mix * len(inputs))
            inputs = self._mixed(inputs, x, from_student)
        inputs = inputs.detach().requires_grad_(self._feedback > 0)
        raw = x if self._net.joins else None
        work = Pending(inputs, y, self.version, from_student, raw)
        self.pending[microbatch] = work
        return self._replay.forward(work, staleness)

    def backward(
        self,
        microbatch: Hashable,
        gradient: Tensor | None,
        larger: Tensor | None = None,
        *,
        alone: bool = False,
    ) -> Tensor | None:
        """Back-propagate a microbatch.

        Args:
            microbatch: one that `forward` has seen and `backward` has not.
            gradient: G from the parent [B, ...]; None at the top or where the chain is cut.
            larger: the parent's logits, N x C of them, where the head listens to them.
            alone: no gradient will come where one should: the body feels its head in full.

        Returns:
            The gradient of its inputs times feedback [B, ...]; None where feedback is 0.
        """
        work = self.pending.pop(microbatch)
        if self.predictor is not None:
            self._teach(self.predictor, work, gradient)
            return None
        h = self._replay.activation(work)
        head_slope = partial(self._head_slope, work.y, larger)
        gradient, more = self._replay.corrected(work, h, gradient, head_slope)
        weight = (1.0 if alone else self._head_weight) + more
        if alone and work.weights is None:
            work.version = self.version  # nothing of what it learns from was made before
        child_gradient = self._gather(work, h, gradient, weight, larger)
        return None if self._one_hop else child_gradient

    @property
    def answers(self) -> bool:
        """Whether the child's gradient comes from `answer`, rather than from `backward`."""
        return self.predictor is not None or self._one_hop

    def answer(self, microbatch: Hashable) -> Tensor | None:
        """What the child is given for a microbatch that has just been forwarded.

        With a predictor the body learns from it, too, and `backward` only teaches the predictor.

        Returns:
            As `backward`.
        """
        work = self.pending[microbatch]
        if self.predictor is None:
            if not work.inputs.requires_grad:
                return None
            loss = partial(self._weighted_loss, work.y, self._head_weight)
            return self._for_child(work, self._net.input_gradient(work.inputs, work.x, loss))
        h = work.output
        assert h is not None, "what is learnt from at once is not late"
        work.output = h.detach()
        guess = self.predictor.predict(h, self.targets(work.y))
        return self._gather(work, h, guess, self._head_weight)

    def distil(self, x: Tensor, child: Tensor, y: Tensor) -> None:
        """Train the student on the activation `child` that has just come for the raw input `x`."""
        assert self.student is not None
        self.totals.student_loss += self._gather_distillation(x, child, y)
        self.totals.distillations += 1
        self.student.count()

    def step(self) -> None:
        """Take one optimizer step with the gradients gathered since the last."""
        self._replay.before_step()
        self.gradient_norm = self._update.step(self.version)
        if self._head_update is not None:
            self._head_update.step(self.version)
        self.version += 1
        self._replay.weights_moved()

    def rehearse(self, inputs: Tensor, x: Tensor, y: Tensor) -> None:
        """Run once all that training runs, and leave no trace: modules are compiled by their first
        run, and nobody waits for this component yet.

        Args:
            inputs: like those of `forward`, whatever the numbers.
            x, y: a microbatch.

        Raises:
            ConfigError: a module cannot be compiled.
        """
        gpus = [self.device] if self.device.type == "cuda" else []
        mix, self._mix = self._mix, 0.0
        try:
            with torch.random.fork_rng(devices=gpus), self._modes.uncounted():
                for staleness in (0,) if self.predictor is not None else (0, 1):
                    h = self.forward("rehearsal", inputs, x, y, staleness)
                    if self.answers:
                        self.answer("rehearsal")
                    if self.predictor is None:
                        self.backward("rehearsal", torch.zeros_like(h))
                self.pending.clear()
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
        self.totals = StepTotals.zero(self.device)

    def forget_gradients(self) -> None:
        """Drop what was gathered since the last step: a component that has taken all its steps
        goes on computing for its neighbours."""
        for module in (self.body, self.head):
            module.zero_grad()

    def uncounted(self) -> AbstractContextManager[None]:
        """In here no microbatch is counted in running statistics: what is computed for the
        neighbours alone, after the last step, is no training."""
        return self._modes.uncounted()

    def resume(self, step: int, ages: Ages | None = None) -> None:
        """Go on after optimizer step `step`, with nothing in flight.

        Args:
            ages: of the gradients until then; None where nobody knows them.
        """
        assert not self.pending
        self.version, self._ages = step, ages or Ages()
        self._replay.weights_moved()
        for own in self.beside().values():
            own.resume(step)

    def beside(self) -> dict[str, Student | GradientPredictor]:
        """What learns beside the chain, in steps of its own: where a component goes on alone, or
        its child is away, they are others than the body's."""
        own = {"student": self.student, "predictor": self.predictor}
        return {name: one for name, one in own.items() if one is not None}

    # --- inference -----------------------------------------------------------------------

    @torch.no_grad()
    def infer(self, inputs: Tensor, x: Tensor | None = None) -> Tensor:
        """h for the child's activation, with nothing remembered. x: raw input, where needed."""
        with self.evaluating():
            return self._net.activation(inputs, x)

    @torch.no_grad()
    def imitate_child(self, x: Tensor) -> Tensor:
        """The student's guess at the child's activation: where a window begins."""
        assert self.student is not None
        with self.evaluating(), self._net.precision():
            return self.student.imitate(x)

    @torch.no_grad()
    def predict(self, h: Tensor) -> Tensor:
        """Logits [N, C] of the head."""
        with self.evaluating():
            return self._net.logits(h)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """In here the modules run as at inference, uncompiled."""
        with self._as_written(), self._modes.inference():
            yield

    def targets(self, y: Tensor) -> Tensor:
        """The N targets of the head's logits."""
        return self._net.targets(y)

    @property
    def ages(self) -> Ages:
        """Of all gradients so far."""
        return self._ages.with_those_of(self.totals)

    def read_totals(self) -> StepTotals:
        """Sums since the last call."""
        self._ages = self.ages
        totals, self.totals = self.totals, StepTotals.zero(self.device)
        return totals

    def modules(self) -> dict[str, nn.Module]:
        """What is trained here, by name."""
        named = {"body": self.body, "head": self.head}
        if self.student is not None:
            named["student"] = self.student.network
        if self.predictor is not None:
            named["predictor"] = self.predictor.network
        return named | self._replay.modules()

    # --- details -------------------------------------------------------------------------

    def _gather(
        self,
        work: Pending,
        h: Tensor,
        gradient: Tensor | None,
        weight: float,
        larger: Tensor | None = None,
    ) -> Tensor | None:
        """Gather the gradient of weight CE(g(h), y) + <h, gradient>. Returns the child's."""
        logits = self._net.logits(scale_gradient(h, weight))
        loss = self._net.loss(logits, work.y, self.soft, larger)
        if self.teaches:
            self.logits = logits.detach()
        roots: list[Tensor] = []
        seeds: list[Tensor | None] = []
        if gradient is not None:
            roots.append(h)
            seeds.append(gradient.to(h.dtype))
        if loss.requires_grad:  # not where the body does not feel a head that has nothing to learn
            roots.append(loss / self._accumulate)
            seeds.append(None)
        # A checkpointed block is run once more inside of this.
        with self._replay.gathering(work), self._net.modes.uncounted():
            torch.autograd.backward(roots, seeds)
        self.totals.count(loss, self.version - work.version)
        child_gradient = work.inputs.grad
        if child_gradient is None:
            return None
        at = self._replay.for_the_child()
        if at is not None:
            loss_there = partial(self._weighted_loss, work.y, weight, larger=larger)
            child_gradient = self._net.input_gradient(
                work.inputs, work.x, loss_there, gradient, *at
            )
        return self._for_child(work, child_gradient)

    def _for_child(self, work: Pending, gradient: Tensor) -> Tensor:
        """What the child is given of the gradient of this component's inputs."""
        if work.from_student and not self._predicted:
            gradient[: work.from_student] = 0
        return gradient if self._feedback == 1 else gradient * self._feedback

    def _weighted_loss(
        self, y: Tensor, weight: float, logits: Tensor, larger: Tensor | None = None
    ) -> Tensor:
        return self._net.loss(logits, y, self.soft, larger) * (weight / self._accumulate)

    def _teach(self, predictor: GradientPredictor, work: Pending, gradient: Tensor | None) -> None:
        """Train the predictor on the gradient that its guess was made for."""
        assert work.output is not None
        if gradient is None:
            return
        self.totals.predictor_loss += predictor.learn(work.output, self.targets(work.y), gradient)
        self.totals.predictions += 1

    def _gather_distillation(self, x: Tensor, child: Tensor, y: Tensor) -> Tensor:
        assert self.student is not None

        def say(h: Tensor) -> Tensor:
            return self._net.logits(self._net.activation(h, x))

        def task_loss(imitated: Tensor) -> Tensor:
            larger = None
            if self._student_soft is not None:
                with torch.no_grad():
                    larger = say(child)
            return self._net.loss(say(imitated), y, self._student_soft, larger)

        # A head that draws random numbers must not draw others because there is a student.
        with self._net.modes.uncounted(), apart(self.student.seen, self.device):
            return self.student.gather(x, child, task_loss, self._net.precision())

    def _as_written(self) -> AbstractContextManager[object]:
        return as_written() if self._compiled else nullcontext()

    def _head_slope(self, y: Tensor, larger: Tensor | None, h: Tensor) -> Tensor:
        def loss(at: Tensor) -> Tensor:
            return self._net.loss(self._net.logits(at), y, self.soft, larger) / self._accumulate

        # A head that draws random numbers draws the same ones at both activations.
        with self._net.modes.uncounted(), drawn_again(self.device):
            return slope(loss, h)

    def _mixed(self, inputs: Tensor, x: Tensor, rows: int) -> Tensor:
        mixed = inputs.clone()
        mixed[:rows] = self.imitate_child(x[:rows])
        return mixed
