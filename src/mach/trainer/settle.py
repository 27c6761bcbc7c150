"""Where is the network of a run cut? Found once, before it begins, and kept in its config.

What a user may leave open is found here: how many blocks the network of `model.factory` has, and
how `model.balance=params` or `time` divide the blocks. All components, and a run that goes on
later, read what was found as `model.depth` and as a list in `model.balance`.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import replace

import torch
from torch import nn

from mach.balance import partition
from mach.config import Config, CustomConfig, ModelConfig
from mach.data import Batches, Dataset
from mach.errors import ConfigError
from mach.models.build import seeded
from mach.models.custom import Custom
from mach.models.examine import ROWS, examine, examine_cut
from mach.trainer.weigh import by_params, by_time

_CPU = torch.device("cpu")


def settle(config: Config, dataset: Dataset, device: torch.device | None = None) -> Config:
    """The config of a run with its cut.

    Args:
        config: as the user wrote it.
        dataset: opened data.
        device: where `model.balance=time` measures; None is the CPU.

    Raises:
        ConfigError: the network cannot be cut so, or cannot be trained as a chain.
    """
    if not isinstance(config.model, CustomConfig):
        return config if config.model.settled else _divided(config, dataset, device or _CPU)
    family = Custom(config.model, dataset.task)
    config = _with_depth(config, config.model, len(family.outputs))
    with _CPU:
        first, second = (seeded(config.seed, "blocks", 0, family.whole) for _ in range(2))
    assert isinstance(first, nn.ModuleList)
    assert isinstance(second, nn.ModuleList)
    # Of one sample a batch norm has no variance, so not of more than the run will have.
    x, _ = Batches(dataset, config.seed, min(ROWS, config.microbatch_size), _CPU).train(0)
    joined = examine(family, first, second, x)
    if not config.model.settled:
        config = _divided(config, dataset, device or _CPU, joined)
    examine_cut(family, first, x, config.bodies(), config.student)
    return config


def inherit(config: Config, before: Config) -> Config:
    """The config with what an earlier run found, where this one asks for it to be found.

    Args:
        before: config of the run that this one goes on from.
    """
    model, found = config.model, before.model
    if type(model) is not type(found):
        return config
    if isinstance(model, CustomConfig) and model.depth is None:
        config = _with(config, depth=found.depth)
    listed = isinstance(found.balance, list) and len(found.balance) == config.components
    if listed and model.balance in ("params", "time"):
        config = _with(config, balance=found.balance)
    return config


def _with(config: Config, **values: object) -> Config:
    model: ModelConfig = replace(config.model, **values)  # type: ignore[arg-type]
    return replace(config, model=model)


def _with_depth(config: Config, model: CustomConfig, depth: int) -> Config:
    if depth < config.components:
        raise ConfigError(
            f"components: expected at most {depth}, one for each block that model.factory="
            f"{model.factory} returns; got {config.components}. Ask for fewer components, or "
            "return smaller blocks."
        )
    return _with(config, depth=depth)


def _divided(
    config: Config, dataset: Dataset, device: torch.device, joined: Set[int] = frozenset()
) -> Config:
    """The config with a list in `model.balance`.

    Args:
        joined: blocks that no component can begin with.
    """
    depth = config.model.total(config.components)
    assert depth >= config.components, "the config has refused it"
    by_size = config.model.balance == "params"
    cost = by_params(config, dataset) if by_size else by_time(config, dataset, device)

    def allowed(k: int, start: int, stop: int) -> float:
        return math.inf if start in joined else cost(k, start, stop)

    sizes = partition(depth, config.components, allowed)
    # Where none is allowed, examine_cut says of the best why not.
    return _with(config, balance=sizes or partition(depth, config.components, cost))
