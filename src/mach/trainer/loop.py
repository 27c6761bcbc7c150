"""What does a component do from its first step to its last, and who is told?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mach import schedule
from mach.config import Config
from mach.metrics import Task
from mach.optim import Optimizer
from mach.results import Outcome
from mach.schedule import Action, Evaluate, Flush, Step
from mach.trainer.account import Account
from mach.trainer.step import Worker


class Hooks(Protocol):
    """What a run wants to know while it trains. All are called between two actions."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line for the log."""

    def stepped(self, step: int) -> None:
        """Optimizer step `step` is taken."""

    def flushed(self, step: int, last: bool) -> None:
        """The place to save, after optimizer step `step`; under `free` something may be in flight,
        which is not saved."""


def program(
    config: Config, component: int, batches: EvaluationBatches, first_step: int
) -> Iterator[Action]:
    """Everything one component does: the schedule, and the evaluations at its flush points."""
    points = schedule.flush_points(config.steps, config.save_every, config.eval.every)
    for action in schedule.actions(
        config.schedule,
        config.components,
        component,
        config.effective_delay,
        config.accumulate,
        config.steps,
        points,
        first_step,
        reach=config.reach,
        unlocked=config.unlocked,
    ):
        yield action
        if isinstance(action, Flush):  # saved first: an evaluation may take long
            yield from _evaluation(config, component, batches, action.step)


class EvaluationBatches(Protocol):
    """How many batches an evaluation of so many samples takes."""

    def evaluation_batches(self, samples: int | None) -> int: ...


def _evaluation(
    config: Config, component: int, batches: EvaluationBatches, step: int
) -> Iterator[Action]:
    last = step == config.steps
    if last or (config.eval.every and step % config.eval.every == 0):
        samples = None if last else config.eval.samples
        yield from schedule.evaluation(
            component,
            batches.evaluation_batches(samples),
            windows=last and config.student.enabled,
            samples=samples,
        )


class Trainer:
    """Runs a component's program and keeps its account."""

    def __init__(
        self,
        config: Config,
        worker: Worker,
        optimizers: Mapping[str, Optimizer],
        task: Task,
        actions: Iterator[Action],
        hooks: Hooks,
    ) -> None:
        self.worker = worker
        self._config, self._task, self._hooks = config, task, hooks
        self._actions = actions
        self._optimizer = optimizers["chain"]
        self._scores: dict[int, dict[str, float]] = {}
        self._decided: list[Action | None] = []
        self._step = self._steps_taken = 0
        self._wall_s, self._busy_fraction = 0.0, 1.0
        self._account = Account(worker)
        worker.remembers = config.report.salience > 0

    @property
    def next(self) -> Action | None:
        """The action to come; None when the program has ended. Asked for as late as can be:
        under `free` it depends on what has arrived by then."""
        if not self._decided:
            self._decided.append(next(self._actions, None))
        return self._decided[0]

    def run(self) -> Outcome:
        """Train to the end."""
        while self.next is not None:
            self.advance()
        return self.outcome()

    def advance(self) -> None:
        """Do the next action and tell the hooks."""
        action = self.next
        assert action is not None
        self._decided.clear()
        self.worker.run(action)
        match action:
            case Step(step):
                self._steps_taken += 1
                if step % self._config.report.every == 0 or step in (1, self._config.steps):
                    self._hooks.logged(self._record(step))
                self._step = step
                every = self._config.report.salience
                if every and step % every == 0 and (scores := self.worker.salience()):
                    self._hooks.logged({"step": step, **scores})
                self._hooks.stepped(step)
            case Flush(step):
                self._step = step
                self._flush(step)
        if isinstance(action, Evaluate) and not isinstance(self.next, Evaluate):
            self._read_scores()

    def outcome(self) -> Outcome:
        """The account of the whole run."""
        ages = self.worker.component.ages
        return Outcome(
            component=self.worker.index,
            scores=self._scores,
            staleness_mean=ages.mean,
            staleness_max=ages.oldest,
            busy_fraction=self._busy_fraction,
            wall_s=self._wall_s,
            total_s=self._account.wall_s,
            steps=self._steps_taken,
        )

    def _flush(self, step: int) -> None:
        last = step == self._config.steps
        if last:
            self._wall_s, self._busy_fraction = self._account.wall_s, self._account.busy_fraction
            self.worker.trained()
        self._hooks.flushed(step, last)

    def _record(self, step: int) -> dict[str, Any]:
        samples = step * self._config.accumulate * self._config.microbatch_size
        return {
            "step": step,
            "microbatch": step * self._config.accumulate,
            "samples": samples,
            **self._account.interval(samples),
            "gradient_norm": self.worker.component.gradient_norm.item(),
            "lr": self._optimizer.rate(step - 1),
            **self.worker.counters(),
        }

    def _read_scores(self) -> None:
        self._scores = {o: s.result(self._task) for o, s in self.worker.scores.items()}
        self.worker.scores = {}
        values: dict[str, float] = {}
        for origin, scores in self._scores.items():
            own = "window_" if origin == self.worker.index else f"window_{origin}_"
            prefix = own if origin > 0 else ""
            values |= {f"eval_{prefix}{key}": value for key, value in scores.items()}
        self._hooks.logged({"step": self._step, **values})
        self.worker.check_scores(self._scores, self._step)
