"""What would the chain compute if nothing ran at the same time?

The oracle runs the action lists of all components in one process over in-memory channels. The
numbers do not depend on who runs when, so a run of K processes must give the same weights, bit by
bit (on CPU, with the same number of threads). For small networks it is also the fastest way.
"""

from __future__ import annotations

from typing import Any

import torch

from mach.channels import connect_in_memory
from mach.config import Config
from mach.data import Batches, Dataset
from mach.errors import ScheduleError
from mach.optim import Optimizer
from mach.randomness import Streams
from mach.results import Outcome, result_of
from mach.trainer.assemble import Assembly
from mach.trainer.loop import Hooks, Trainer, program
from mach.trainer.settle import settle
from mach.trainer.step import Worker


class Quiet:
    """Hooks that listen to nothing."""

    def logged(self, record: dict[str, Any]) -> None:
        """Not kept."""

    def stepped(self, step: int) -> None:
        """Nothing to do."""

    def flushed(self, step: int, last: bool) -> None:
        """Not saved."""


class Oracle:
    """A whole chain in one process."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        hooks: list[Hooks] | None = None,
        device: torch.device | None = None,
        first_step: int = 0,
    ) -> None:
        """
        Args:
            config: as for a run of processes; transport and launch are not used.
            dataset: opened data.
            hooks: one for each component; None listens to nothing.
            device: where everything lives; None is the CPU.
            first_step: the step to go on from. Its checkpoint is yet to be loaded.
        """
        device = device or torch.device("cpu")
        self._first_step = first_step
        self.config = config = settle(config, dataset, device)
        self.assembly = Assembly(config, dataset.task)
        batches = Batches(
            dataset, config.seed, config.microbatch_size, device, split=config.eval.split
        )
        chain = self.assembly.links(device)
        ends = connect_in_memory(chain, config.transport.timeout_s)
        self.streams = Streams(config.seed, config.components, device)
        self.trainers: list[Trainer] = []
        self.optimizers: list[dict[str, Optimizer]] = []
        for k, channels in enumerate(ends):
            component, optimizers = self.assembly.component(k, device)
            self.assembly.rehearse(k, component, batches)
            worker = Worker(k, component, channels, batches, device)
            actions = program(config, k, batches, first_step)
            mine = hooks[k] if hooks else Quiet()
            self.trainers.append(Trainer(config, worker, optimizers, batches.task, actions, mine))
            self.optimizers.append(optimizers)

    def run(self) -> dict[str, Any]:
        """Train to the end. Returns the run's result (design section 6)."""
        while any(trainer.next is not None for trainer in self.trainers):
            moved = [self._advance(trainer) for trainer in self.trainers]
            if not any(moved):
                waiting = {t.worker.index: t.next for t in self.trainers}
                raise ScheduleError(f"every component waits for another: {waiting}")
        outcomes: list[Outcome] = [trainer.outcome() for trainer in self.trainers]
        return result_of(self.config, self.assembly.costs(), outcomes, first_step=self._first_step)

    def _advance(self, trainer: Trainer) -> bool:
        """Go on with one component for as long as it need not wait."""
        moved = False
        with self.streams.of(trainer.worker.index):
            while trainer.next is not None and trainer.worker.ready(trainer.next):
                trainer.advance()
                moved = True
        return moved
