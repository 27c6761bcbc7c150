"""How does a component go back to where it was saved?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mach.checkpoint.catalog import Checkpoint, verify
from mach.checkpoint.state import AGES, OPTIMIZER, STEPS, dcp, weights_of
from mach.component import Ages, Component
from mach.errors import CheckpointError
from mach.optim import Optimizer
from mach.randomness import RANDOM, go_on_from, streams

if TYPE_CHECKING:
    from mach.checkpoint.index import IndexReader


def load_weights(checkpoint: Checkpoint, k: int, component: Component) -> None:
    """Take over body, head and student alone: what inference needs.

    Raises:
        CheckpointError: damaged, or of another network: names what differs.
    """
    verify(checkpoint, k)
    check_fit(checkpoint, k, component)
    _read(checkpoint, k, weights_of(component))


def load(
    checkpoint: Checkpoint, k: int, component: Component, optimizers: Mapping[str, Optimizer]
) -> None:
    """Put component k back to where it was saved.

    Raises:
        CheckpointError: damaged, or of another network: names what differs.
    """
    verify(checkpoint, k)
    stored = check_fit(checkpoint, k, component)
    modules = weights_of(component)
    optimizer_state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(OPTIMIZER)
    }
    random = {name: now for name, now in streams(component.device).items() if name in stored}
    steps = {name: torch.tensor(0) for name in stored if name.startswith(STEPS)}
    ages = torch.tensor(astuple(Ages()))
    aged = {AGES: ages} if AGES in stored else {}  # checkpoints of before have none
    _read(checkpoint, k, {**modules, **optimizer_state, **steps, **aged, **random})
    for optimizer in optimizers.values():
        optimizer.load_state(
            {
                name: value
                for key, value in optimizer_state.items()
                if optimizer.owns(name := key.removeprefix(OPTIMIZER))
            }
        )
    go_on_from(random, component.device)
    component.resume(checkpoint.step, Ages(*ages.tolist()))
    for name, own in component.beside().items():
        if STEPS + name in steps:  # nor these
            own.resume(int(steps[STEPS + name]))


def _read(checkpoint: Checkpoint, k: int, tensors: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp().load(tensors, storage_reader=_reader(checkpoint, k), no_dist=True)


def check_fit(checkpoint: Checkpoint, k: int, component: Component) -> Mapping[str, Any]:
    """Compare names and shapes with those of component k. Returns what is stored, by name.

    Raises:
        CheckpointError: the checkpoint is of another network; names the first tensor that differs.
    """
    stored: Mapping[str, Any] = _reader(checkpoint, k).read_metadata().state_dict_metadata
    _same_tensors(checkpoint.path / f"component-{k}", weights_of(component), stored)
    return stored


def _reader(checkpoint: Checkpoint, k: int) -> IndexReader:
    from mach.checkpoint.index import IndexReader  # not before it must be: see dcp()

    return IndexReader(checkpoint.path / f"component-{k}")


def _same_tensors(folder: Path, here: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    there = {n for n in stored if not n.startswith((OPTIMIZER, STEPS, AGES, RANDOM))}
    for name in sorted(here.keys() | there):
        expected = list(here[name].shape) if name in here else "no such tensor"
        got = list(stored[name].size) if name in there else "no such tensor"
        if expected != got:
            raise CheckpointError(
                f"{folder}: {name}: expected {expected}, got {got}. The checkpoint is of another "
                "network; repeat the config it was trained with."
            )
