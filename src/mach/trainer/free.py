"""How does a component train when it waits for nobody?

`policy` decides, this file does it. What came is worked on whatever it is: each frame names the
component that chose its samples, the life of that component and the number of the microbatch, and
that is all it takes to draw the same samples here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mach import policy, schedule
from mach.channels import Channels, Header, Kind, Receiver
from mach.component import Component
from mach.config import Config
from mach.data import Batches
from mach.policy import Look
from mach.schedule import Action, Evaluate, Flush, Move, Step
from mach.trainer.step import Worker

IDLE_S = 0.5
"""Longest sleep of a component that has nothing to do; anything that arrives ends it."""


class Clock(Protocol):
    """Time, and a sleep that whatever arrives ends. An argument, so that tests have their own."""

    def now(self) -> float:
        """Seconds."""

    def wait(self, timeout_s: float) -> object:
        """Sleep until something arrives, for `timeout_s` at most."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Names a microbatch: who chose its samples, in which life, and its number there."""

    origin: int
    life: int
    number: int


class FreeWorker(Worker):
    """Carries out component k's moves."""

    def __init__(
        self,
        index: int,
        component: Component,
        channels: Channels,
        batches: Batches,
        device: torch.device,
        *,
        config: Config,
        life: int,
        clock: Clock,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args as for a `Worker`, and

        life: which life of this component it is.
        over: whether nobody needs this component any more; asked before every move.
        """
        super().__init__(index, component, channels, batches, device)
        self.life = life
        self.serving = False
        """All steps are taken: it computes for its neighbours and trains no more."""
        self.over = over
        self.progress = 0
        """Grows with every action."""
        self.backwards = 0
        self.counts = {
            "imagined": 0,  # microbatches whose input the student made
            "alone": 0,  # trained on the local loss for want of the parent's gradient
            "dropped_up": 0,  # activations not sent: the parent's queue was full
            "dropped_down": 0,  # gradients not sent: the child's queue was full
            "late_activations": 0,  # came, and were too old
            "late_gradients": 0,  # came, and were too old, or their microbatch trained alone
        }
        self._clock = clock
        self._patience_ms = config.patience_ms
        self._most_activation_age = policy.most_activation_age(config.delay)
        self._most_gradient_age = policy.most_gradient_age(config.components, index, config.delay)
        self._begun = 0
        self._in_flight: dict[Sample, int] = {}  # and when, on our own count, each was begun
        self._in_a_row = 0
        """Forwards since the last backward."""
        self._orphaned = 0
        """For what was begun up to here the parent is gone; its successor has none of it."""
        self._chosen = 0
        self._after_gradient = False
        self._heard_s: float | None = None

    def counters(self) -> dict[str, int]:
        return {"life": self.life, **self.counts}

    def trained(self) -> None:
        self.serving = True

    def check_finite(self, step: int) -> None:
        if not self.serving:
            super().check_finite(step)

    # --- deciding ------------------------------------------------------------------------------

    def decide(self) -> Move:
        """The next move, from what has arrived by now."""
        self._miss_parent()
        move = policy.decide(self._look(), self._patience_ms)
        self._after_gradient = move is Move.GRADIENT
        return move

    def _look(self) -> Look:
        channels, child = self.channels, self.channels.from_child
        # A bottom always has data; one that only serves has no use for what it cannot send.
        data = not self.serving or self._room_above()
        return Look(
            gradient=channels.from_parent is not None and _has_frame(channels.from_parent),
            after_gradient=self._after_gradient,
            overdue=self._overdue(),
            activation=data if child is None else _has_frame(child),
            child_up=child is not None and child.alive,
            silent_ms=self._silent_s() * 1e3,
            has_student=self._can_imagine(),
        )

    @property
    def can_evaluate(self) -> bool:
        """Whether there is a model that begins here, without a child."""
        return self.index == 0 or self.component.student is not None

    def _can_imagine(self) -> bool:
        return self.component.student is not None and not self.serving

    def _silent_s(self) -> float:
        if self._heard_s is None:  # the first look: nobody listened while the chain came up
            self._heard_s = self._clock.now()
        return self._clock.now() - self._heard_s

    def _miss_parent(self) -> None:
        parent = self.channels.from_parent
        if parent is not None and not parent.alive:
            self._orphaned = self._begun

    def _overdue(self) -> bool:
        if not self._in_flight:
            return False
        oldest = next(iter(self._in_flight.values()))
        return oldest <= self._orphaned or self._begun - oldest > self._most_gradient_age

    def _room_above(self) -> bool:
        parent = self.channels.to_parent
        return parent is not None and parent.alive and parent.ready()

    # --- doing ---------------------------------------------------------------------------------

    def run(self, action: Action) -> None:
        """Do one move, or what every worker can do."""
        self.progress += 1
        match action:
            case Move.GRADIENT:
                self._take_gradient()
            case Move.ALONE:
                self._finish(next(iter(self._in_flight)), None, alone=True)
            case Move.ACTIVATION:
                self._take_activation()
            case Move.IMAGINE:
                self._imagine()
            case Move.WAIT:
                self._wait()
            case Evaluate(origin, batch, samples):
                x, y = self._batches.evaluation(batch, samples)
                self._score(origin, self._enter(origin, x), x, y)
            case Step() | Flush():
                super().run(action)

    def _take_gradient(self) -> None:
        assert self.channels.from_parent is not None
        frame = self.channels.from_parent.poll()
        if frame is None:
            return
        header, gradient = frame
        sample = Sample(header.origin, header.life, header.microbatch)
        begun = self._in_flight.get(sample)
        if begun is None:
            self._count("late_gradients")
        elif self._begun - begun > self._most_gradient_age:
            self._count("late_gradients")
            self._finish(sample, None, alone=True)
        else:
            self._finish(sample, gradient)

    def _take_activation(self) -> None:
        child = self.channels.from_child
        if child is None:
            sample = self._choose()
            x, y = self._draw(sample.number, sample.origin, sample.life)
            assert x is not None
            self._remember(x, x, y)
            self._begin(sample, x, x, y)
            return
        frame = child.poll()
        self._heard_s = self._clock.now()
        if frame is None:
            return
        header, inputs = frame
        newest = child.newest
        assert newest is not None
        if newest.clock - header.clock > self._most_activation_age:
            self._count("late_activations")
            return
        x, y = self._draw(header.microbatch, header.origin, header.life)
        self._remember(inputs, x, y)
        self._begin(Sample(header.origin, header.life, header.microbatch), inputs, x, y)
        if self.component.student is not None and not self.serving:
            assert x is not None
            self.component.distil(x, inputs, y)

    def _imagine(self) -> None:
        sample = self._choose()
        x, y = self._draw(sample.number, sample.origin, sample.life)
        assert x is not None
        self._count("imagined")
        self._begin(sample, self.component.imitate_child(x), x, y)

    def _choose(self) -> Sample:
        self._chosen += 1
        return Sample(self.index, self.life, self._chosen - 1)

    def _wait(self) -> None:
        began = self._clock.now()
        child = self.channels.from_child
        timeout_s = IDLE_S
        if self._can_imagine():  # sleep for as long as there is patience, but do sleep
            timeout_s = min(IDLE_S, max(1e-3, self._patience_ms / 1e3 - self._silent_s()))
        self._clock.wait(timeout_s)
        waited_for = child if child is not None else self.channels.to_parent
        if waited_for is not None:
            waited_for.wait_s += self._clock.now() - began

    def _begin(self, sample: Sample, inputs: Tensor, x: Tensor | None, y: Tensor) -> None:
        """Forward a microbatch; back-propagate it at once where no gradient will come for it."""
        self._begun += 1
        component, parent = self.component, self.channels.to_parent
        gradient_comes = self._gradient_comes()
        with self._counting():
            h = component.forward(sample, inputs, x, y, staleness=int(gradient_comes))
        if parent is None:
            self._finish(sample, None)
            return
        header = self._header(sample)
        sent = parent.offer(header, h)
        if sent and gradient_comes:
            self._in_flight[sample] = self._begun
            self._in_a_row += 1
            return
        if not sent and parent.alive:
            self._count("dropped_up")
        self._finish(sample, None, alone=self.channels.from_parent is not None)

    def _gradient_comes(self) -> bool:
        """Whether a microbatch that is begun now is to wait for the parent's gradient."""
        if self.channels.from_parent is None or not self._room_above():
            return False
        return self._in_a_row < policy.MOST_FORWARDS_IN_A_ROW

    def _finish(self, sample: Sample, gradient: Tensor | None, alone: bool = False) -> None:
        """Back-propagate a microbatch, and send the child its gradient if it is the child's."""
        self._in_flight.pop(sample, None)
        self._in_a_row = 0
        self.backwards += 1
        if alone:
            self._count("alone")
        with self._counting():
            child_gradient = self.component.backward(sample, gradient, alone=alone)
        child = self.channels.to_child
        if child is None or child_gradient is None or sample.origin == self.index:
            return
        if not child.offer(self._header(sample), child_gradient) and child.alive:
            self._count("dropped_down")

    def _counting(self) -> AbstractContextManager[None]:
        """Whether microbatches count in running statistics, which are as trained as weights."""
        return self.component.uncounted() if self.serving else nullcontext()

    def _count(self, what: str) -> None:
        """Of what it is trained on: a component that has taken all its steps goes on for others."""
        if not self.serving:
            self.counts[what] += 1

    def _header(self, sample: Sample) -> Header:
        return Header(
            Kind.TRAIN,
            sample.number,
            self.component.version,
            sample.origin,
            sample.life,
            self._begun,
        )


def _has_frame(receiver: Receiver) -> bool:
    """Whether `poll` has something. A broken edge is `ready`, too: nothing is waited for there."""
    return receiver.alive and receiver.ready()


def moves(
    config: Config, worker: FreeWorker, evaluation_batches: int, first_step: int
) -> Iterator[Action]:
    """What a component does under `free`, decided as late as can be.

    Args:
        evaluation_batches: of one evaluation on the way.
        first_step: the step it goes on from.
    """
    step, points = first_step, set(schedule.flush_points(config.steps, config.save_every))
    if step == config.steps:  # it was done, and died while it served
        yield Flush(step)
    while not worker.over():
        before = worker.backwards
        yield worker.decide()
        if worker.backwards == before or worker.backwards % config.accumulate:
            continue
        if worker.serving:
            worker.component.forget_gradients()
            continue
        step += 1
        yield Step(step)
        if step in points:
            yield Flush(step)
        if config.eval.every and step % config.eval.every == 0 and worker.can_evaluate:
            for batch in range(evaluation_batches):
                yield Evaluate(worker.index, batch, config.eval.samples)
