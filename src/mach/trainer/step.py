"""How does an action of the schedule become computation and messages?"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from mach.channels import Channels, Header, Kind, Receiver, Sender
from mach.component import Component
from mach.component.salience import salience
from mach.component.soft import pack, unpack
from mach.data import Batches
from mach.errors import DivergedError
from mach.metrics import Score
from mach.schedule import Action, Backward, Evaluate, Flush, Forward, Step


class Worker:
    """Carries out component k's actions, one after another."""

    def __init__(
        self,
        index: int,
        component: Component,
        channels: Channels,
        batches: Batches,
        device: torch.device,
    ) -> None:
        self.index = index
        self.component = component
        self.channels = channels
        self.scores: dict[int, Score] = {}
        """Of the evaluation under way, by origin."""
        self.remembers = False
        """Whether the last microbatch that came is kept, for `salience`."""
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self.wait_data_s = 0.0
        """Seconds spent waiting for microbatches, or making them."""
        self._batches = batches
        self._device = device

    def ready(self, action: Action) -> bool:
        """Whether `run` would not have to wait for a neighbour."""
        channels, to_child = self.channels, self.channels.to_child
        answers = self.component.answers
        ends: tuple[Sender | Receiver | None, ...] = ()
        match action:
            case Forward():
                ends = (channels.from_child, channels.to_parent, to_child if answers else None)
            case Backward():
                ends = (channels.from_parent, None if answers else to_child)
            case Evaluate(origin=origin):
                below = channels.from_child if origin < self.index else None
                ends = (below, channels.to_parent)
        return all(end is None or end.ready() for end in ends)

    def run(self, action: Action) -> None:
        """Do one action, waiting for what it needs."""
        match action:
            case Forward(microbatch, staleness):
                self._forward(microbatch, staleness)
            case Backward(microbatch):
                self._backward(microbatch)
            case Step(step):
                self.check_finite(step - 1)
                self.component.step()
            case Evaluate(origin, batch, samples):
                self._evaluate(origin, batch, samples)
            case Flush(step):
                self.check_finite(step)

    def counters(self) -> dict[str, int]:
        """What the log tells of this kind of worker alone."""
        return {}

    def salience(self) -> dict[str, float]:
        """What the component leans on, by the last microbatch that came; empty before the first."""
        return salience(self.component, *self._last) if self._last is not None else {}

    def _draw(
        self, microbatch: int, origin: int = 0, life: int = 0
    ) -> tuple[Tensor | None, Tensor]:
        """Samples of a microbatch, x where it is looked at, and the time they take: in one process
        all draw from the same batches, each its own."""
        batches, x = self._batches, None
        before = batches.wait_s
        if self._looks_at_x:
            x, y = batches.train(microbatch, origin, life)
        else:
            y = batches.targets(microbatch, origin, life)
        self.wait_data_s += batches.wait_s - before
        return x, y

    @property
    def _looks_at_x(self) -> bool:
        """A body that begins with the raw input or joins it, a student, and `salience` do."""
        component = self.component
        return self.index == 0 or component.student is not None or component.joins or self.remembers

    def _remember(self, inputs: Tensor, x: Tensor | None, y: Tensor) -> None:
        if self.remembers:
            assert x is not None
            self._last = (inputs, x, y)

    def trained(self) -> None:
        """The last step is taken. Close the gradients' edges now, not at the end: neighbours must
        not sit out each other's final evaluation."""
        self.channels.close_down()

    def check_finite(self, step: int) -> None:
        """Stop a run that has diverged.

        Looks at the norm of the last step taken, not of the one to come: by now it has been
        computed on any device, so training never waits for this.
        """
        norm = self.component.gradient_norm.item()
        if not isfinite(norm):
            raise self._diverged(f"a gradient of norm {norm} at step {step}")

    def check_scores(self, scores: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Stop a run whose top exit is worth nothing, which no step may be left to find out."""
        if self.channels.to_parent is None and 0 in scores and not isfinite(scores[0]["loss"]):
            raise self._diverged(f"{scores[0]['loss']} in the evaluation after step {step}")

    def _diverged(self, got: str) -> DivergedError:
        return DivergedError(
            f"component {self.index}: expected a finite loss, got {got}. Checkpoints are kept, "
            "the last of which may have what led to it. Lower optim.lr and optim.muon_lr, or raise "
            "optim.warmup."
        )

    def _forward(self, microbatch: int, staleness: int) -> None:
        channels, component = self.channels, self.component
        header = Header(Kind.TRAIN, microbatch, component.version)
        x, y = self._draw(microbatch)
        inputs = x if channels.from_child is None else channels.from_child.receive(header)
        assert inputs is not None
        h = component.forward(microbatch, inputs, x, y, staleness)
        if channels.to_parent is not None:  # before any other work: the parent may be waiting
            channels.to_parent.send(header, h)
        self._remember(inputs, x, y)
        if component.answers:
            self._return(header, component.answer(microbatch))
        if component.student is not None:
            assert x is not None
            component.distil(x, inputs, y)

    def _backward(self, microbatch: int) -> None:
        channels, component = self.channels, self.component
        header = Header(Kind.TRAIN, microbatch, component.version)
        from_parent = channels.from_parent
        gradient = from_parent.receive(header) if from_parent is not None else None
        larger = None
        if component.soft is not None and gradient is not None and channels.to_parent is not None:
            gradient, larger = unpack(gradient, channels.to_parent.edge.payload.shape)
        self._return(header, component.backward(microbatch, gradient, larger))

    def _return(self, header: Header, child_gradient: Tensor | None) -> None:
        if self.channels.to_child is None or child_gradient is None:
            return
        logits = self.component.logits
        message = child_gradient if logits is None else pack(child_gradient, logits)
        self.channels.to_child.send(header, message)

    def _evaluate(self, origin: int, batch: int, samples: int | None) -> None:
        channels = self.channels
        header = Header(Kind.EVALUATE, batch, self.component.version, origin)
        x = None
        if origin == self.index or self.component.joins:
            x, y = self._batches.evaluation(batch, samples)
        else:
            y = self._batches.evaluation_targets(batch, samples)
        if origin < self.index:
            assert channels.from_child is not None
            inputs = channels.from_child.receive(header)[: len(y)]
        else:
            assert x is not None
            inputs = self._enter(origin, x)
        h = self._score(origin, inputs, x, y)
        if channels.to_parent is not None:
            channels.to_parent.send(header, _padded(h, channels.to_parent.edge.payload.shape[0]))

    def _enter(self, origin: int, x: Tensor) -> Tensor:
        """What the body of component `origin` is given where the chain or a window begins."""
        return x if origin == 0 else self.component.imitate_child(x)

    def _score(self, origin: int, inputs: Tensor, x: Tensor | None, y: Tensor) -> Tensor:
        component = self.component
        h = component.infer(inputs, x)
        score = self.scores.setdefault(origin, Score(self._device))
        score.add(component.predict(h), component.targets(y))
        return h


def _padded(h: Tensor, rows: int) -> Tensor:
    """The last test batch may be short; frames have one size."""
    missing = rows - len(h)
    return torch.cat([h, h.new_zeros((missing, *h.shape[1:]))]) if missing else h
