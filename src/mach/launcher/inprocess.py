"""How does a whole run happen in the process of `mach train`?

The oracle (mach.trainer.oracle) computes the components in turn, with the threads that each would
have in a process of its own: the numbers are those of such a run, bit by bit on CPU, and so is what
is left in the run folder. Nothing has to be started, so small runs take a second: sweeps of them
are for this. What it cannot have is refused by the config: components that die, or are late.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mach import checkpoint, runfolder
from mach.config import Config
from mach.data import open_dataset
from mach.launcher.preflight import resume_point
from mach.outofmemory import OF_A_RUN, told
from mach.rank import device_kind
from mach.report import Reporter, build
from mach.report.artifact import Artifact
from mach.report.console import Progress
from mach.report.trace import traced
from mach.trainer import Hooks, Oracle
from mach.trainer.measure import threads_of_a_rank


def run_inprocess(config: Config, run_dir: Path) -> dict[str, Any]:
    """Run a claimed run folder to its end in this process. Returns its result.

    Raises:
        DivergedError: a loss is no longer finite.
        OutOfMemoryError: the network does not fit.
        SaveError: the last checkpoint could not be written.
    """
    dataset = open_dataset(config.data)
    preprocessing = dataset.preprocessing
    start = resume_point(config, run_dir, 0)
    first_step, began_from = (0, None) if start is None else (start.step, start.path)
    saved = dist.HashStore()  # counts who has saved, as the run's store does
    unsaved: list[int] = []

    def save(k: int, step: int) -> None:
        tensors = checkpoint.tensors_of(oracle.trainers[k].worker.component, oracle.optimizers[k])
        if checkpoint.save_together(run_dir, step, k, tensors, config, saved, preprocessing):
            reporters[k].saved(Artifact("checkpoint", step, checkpoint.part(run_dir, step, k)))
        elif step == config.steps:
            unsaved.append(k)

    with threads_of_a_rank(config, config.components), told(OF_A_RUN), ExitStack() as stack:
        components = range(config.components)
        reporters = [
            stack.enter_context(build(config, run_dir, k, first_step, began_from))
            for k in components
        ]
        hooks: list[Hooks] = [_Hooks(config, k, first_step, reporters[k], save) for k in components]
        device = torch.device(device_kind(config))
        oracle = Oracle(config, dataset, hooks, device, first_step)
        for k in components if start is not None else ():
            assert start is not None
            with oracle.streams.of(k):
                checkpoint.load(start, k, oracle.trainers[k].worker.component, oracle.optimizers[k])
        for trainer, hook in zip(oracle.trainers, hooks, strict=True):
            stack.enter_context(traced(config, run_dir, trainer.worker, hook))
        with Progress(run_dir, config.components, config.steps, config.report.progress):
            result = oracle.run()
    if unsaved:
        raise checkpoint.unsaved(config.steps)
    runfolder.write_result(run_dir, result)
    return result


class _Hooks:
    """Writes a component's log lines and checkpoints."""

    def __init__(
        self,
        config: Config,
        k: int,
        first_step: int,
        reporter: Reporter,
        save: Callable[[int, int], None],
    ) -> None:
        self._config, self._k, self._first_step = config, k, first_step
        self._save = save
        self.logged = reporter.log

    def stepped(self, step: int) -> None:
        """Nothing to do."""

    def flushed(self, step: int, last: bool) -> None:
        """Save, where a checkpoint is due and not the one we began from."""
        if step != self._first_step and self._config.saves_at(step):
            self._save(self._k, step)
