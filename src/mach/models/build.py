"""How does a family become the modules of component k?

Every module is built from a seed of its own, a hash of (run seed, role, index). So a network's
first weights do not depend on how it is cut or on whether it has students.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mach.config import Config, CustomConfig, GptConfig, MlpConfig, ResNetConfig
from mach.metrics import Task
from mach.models.custom import Custom
from mach.models.family import Family
from mach.models.gpt import Gpt
from mach.models.mlp import Mlp
from mach.models.predictor import predictor_for
from mach.models.resnet import ResNet
from mach.shapes import TensorSpec


def family_of(config: Config, task: Task) -> Family:
    """The family that `model.name` chooses."""
    if isinstance(config.model, MlpConfig):
        return Mlp(config.model, task)
    if isinstance(config.model, GptConfig):
        return Gpt(config.model, task, config.model.total(config.components))
    if isinstance(config.model, ResNetConfig):
        return ResNet(config.model, task, config.microbatch_size)
    if isinstance(config.model, CustomConfig):
        return Custom(config.model, task)
    raise AssertionError(f"model {config.model.name!r} has a config but no family")


def seeded(seed: int, role: str, index: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module from the seed of its place; torch's own random state is untouched."""
    digest = hashlib.sha256(f"{seed}/{role}/{index}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return build()


def build_body(
    family: Family, blocks: range, seed: int, below: TensorSpec | None = None
) -> nn.Sequential:
    """The slice `blocks` of the network; the slice that has block 0 begins with the stem.

    Args:
        below: activation of the child, where it is joined with the raw input.
    """
    parts: list[tuple[str, nn.Module]] = []
    if blocks.start == 0:
        parts.append(("stem", seeded(seed, "stem", 0, family.stem)))
    elif below is not None:
        parts.append(("join", seeded(seed, "join", blocks.start, partial(family.join, below))))
    slice_ = family.slice(blocks, partial(seeded, seed))
    parts += [(f"block{i}", block) for i, block in zip(blocks, slice_, strict=True)]
    body = nn.Sequential()
    for name, module in parts:
        body.add_module(name, module)
    return body


def build_head(family: Family, activation: TensorSpec, blocks: range, seed: int) -> nn.Module:
    """Head of the component that has these blocks, on its output."""
    return seeded(seed, "head", blocks.stop, lambda: family.exit(activation, blocks.stop))


def build_student(
    family: Family, activation: TensorSpec, blocks: range, config: Config
) -> nn.Module:
    """Student of the component that has these blocks; it predicts what comes into them."""
    return seeded(
        config.seed, "student", blocks.start, lambda: family.student(activation, config.student)
    )


def build_predictor(
    family: Family, activation: TensorSpec, blocks: range, config: Config
) -> nn.Module:
    """Predictor of the gradient that the component with these blocks is given.

    Raises:
        ConfigError: it is to know the labels, and they do not fit the activation.
    """
    task, labels = family.task, targets_of_a_sample(family)
    return seeded(
        config.seed,
        "predictor",
        blocks.stop,
        lambda: predictor_for(activation, task, labels, config.predictor),
    )


def targets_of_a_sample(family: Family) -> int:
    """How many targets a sample has: one, or of a text one for each position."""
    sample = family.task.sample
    tokens = not sample.dtype.is_floating_point
    y = torch.zeros((1, *sample.shape) if tokens else (1,), dtype=torch.int64, device="cpu")
    return family.targets(y).numel()


def cost(
    module: nn.Module, *samples: TensorSpec, beside: nn.Module | None = None
) -> tuple[int, int]:
    """Parameters, and forward FLOPs per sample, of a module on the default device: as a rule meta.

    Args:
        samples: what it takes; of more than one it is given a tuple.
        beside: parameters that it shares with this one are not counted.
    """
    rows = 2  # a batch norm needs more than one value of a channel
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        zeros = tuple(torch.zeros((rows, *s.shape), dtype=s.dtype) for s in samples)
        module(zeros if len(zeros) > 1 else zeros[0])
    shared = set() if beside is None else set(beside.parameters())
    params = sum(p.numel() for p in module.parameters() if p not in shared)
    return params, counter.get_total_flops() // rows
