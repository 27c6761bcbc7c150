"""What does a rank have before it talks to its neighbours?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mach.channels import Link
from mach.checkpoint import Checkpoint, load
from mach.component import Component
from mach.config import Config
from mach.data import Batches, open_dataset
from mach.data.preprocessing import Preprocessing
from mach.launcher.preflight import check_data, resume_point
from mach.metrics import Task
from mach.optim import Optimizer
from mach.rank import Rank, occupy
from mach.trainer import Assembly


@dataclass(frozen=True)
class Seat:
    """A rank with its device, its data, and its component as it was last saved."""

    rank: Rank
    config: Config
    run_dir: Path
    device: torch.device
    task: Task
    assembly: Assembly
    batches: Batches
    preprocessing: Preprocessing
    """Of the data; every checkpoint describes it."""
    component: Component
    optimizers: Mapping[str, Optimizer]
    start: Checkpoint | None
    """What it goes on from."""

    @property
    def first_step(self) -> int:
        return self.start.step if self.start is not None else 0

    @property
    def began_from(self) -> Path | None:
        """Checkpoint it goes on from, as `<run>/checkpoints/step-<n>`."""
        return self.start.path if self.start is not None else None

    def links(self) -> list[Link]:
        """The edges of the whole chain."""
        return self.assembly.links(self.device)


def take_seat(rank: Rank, config: Config, run_dir: Path) -> Seat:
    """Build component `rank.index` on its device, as it was last saved."""
    k = rank.index
    device = occupy(rank, config)
    dataset = open_dataset(config.data)
    assembly = Assembly(config, dataset.task)
    component, optimizers = assembly.component(k, device)
    start = resume_point(config, run_dir, k)
    if start is not None:
        check_data(start, run_dir, dataset.preprocessing)
        load(start, k, component, optimizers)
    batches = Batches(
        dataset,
        config.seed,
        config.microbatch_size,
        device,
        config.data.prefetch,
        config.eval.split,
    )
    assembly.rehearse(k, component, batches)
    return Seat(
        rank=rank,
        config=config,
        run_dir=run_dir,
        device=device,
        task=batches.task,
        assembly=assembly,
        batches=batches,
        preprocessing=dataset.preprocessing,
        component=component,
        optimizers=optimizers,
        start=start,
    )
