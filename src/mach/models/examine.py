"""Can blocks that somebody brings along be trained as a chain? Tried before any process starts.

A component runs a microbatch through its body more than once (replay, distillation, evaluation), so
a block must be a function of its input and its weights: nothing drawn at random, nothing
remembered. Each is run on the CPU, on two samples of the data, with the weights it will begin with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mach.config import StudentConfig
from mach.errors import ConfigError
from mach.models.custom import Custom
from mach.shapes import TensorSpec, spec_of

ROWS = 2
"""Samples that it takes."""
_DRAWS = 16
"""How often a block that draws random numbers is run to see whether they matter: not where the
probability of a dropout is 0."""


@dataclass(frozen=True)
class Found:
    """Blocks that are functions of input and weights."""

    blocks: nn.ModuleList
    overwriting: frozenset[int]
    """Those that change their input in place."""


@torch.no_grad()
def examine(family: Custom, first: nn.ModuleList, second: nn.ModuleList, x: Tensor) -> Found:
    """Try the blocks, wherever the network will be cut.

    Args:
        first: all blocks, on the CPU.
        second: the same, built once more from the same seed.
        x: raw samples [ROWS, ...].

    Raises:
        ConfigError: for the first block that mach cannot train, with its index.
    """
    _check_weights(family, first, second)
    overwriting, h = set[int](), x
    with torch.random.fork_rng(devices=[]):
        for index, block in enumerate(first):
            name = family.name(index, block)
            out = _check_replay(name, block, h)
            if spec_of(out) != (meant := family.outputs[index].batched(ROWS)):
                raise ConfigError(
                    f"{name}: expected {meant}, as it makes of zeros; got {spec_of(out)} of "
                    "samples of the data. Make its output's shape depend on its input's alone."
                )
            given = h.clone()
            block(given)
            if not _same(given, h):
                overwriting.add(index)
            h = out
    if family.per_position and x.shape[1] > 1:
        _check_causal(family, first, x, h)
    return Found(first, frozenset(overwriting))


def examine_cut(family: Custom, found: Found, bodies: list[range], student: StudentConfig) -> None:
    """Try the components of a cut: what they would share, and the modules put on them.

    Raises:
        ConfigError: for the first thing that two processes cannot do.
    """
    _check_shared(family, found.blocks, bodies)
    for k, body in enumerate(bodies):
        name = f"component {k} (blocks {body.start} to {body.stop - 1})"
        if not any(p.requires_grad for i in body for p in found.blocks[i].parameters()):
            raise ConfigError(
                f"{name}: expected parameters to train; its blocks have none. Set model.balance to "
                "a list that gives it others as well, or components to fewer."
            )
        if body.start in found.overwriting:
            raise ConfigError(
                f"{family.name(body.start, found.blocks[body.start])}: expected its input to stay "
                f"as it is, as {name} begins with it and runs its input again; it changes it in "
                "place. Take inplace=True from its first layer, or cut elsewhere."
            )
    ends = [family.outputs[body.stop - 1] for body in bodies]
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        _check_heads(family, bodies, ends)
        if student.enabled:
            _check_students(family, ends[:-1], student)


# --- one block ---------------------------------------------------------------------------------


def _check_replay(name: str, block: nn.Module, x: Tensor) -> Tensor:
    """What a block makes of x, once it is sure that it always makes the same."""
    buffers = {key: value.clone() for key, value in _buffers(block)}
    out, drew = _run(block, x, 0)
    for draw in range(1, _DRAWS if drew else 2):
        again, _ = _run(block, x, draw)
        if not _same(out, again):
            most = (out.double() - again.double()).abs().max().item()
            raise ConfigError(
                f"{name}: expected the same output {spec_of(out)} for the same input and weights, "
                f"as mach runs forwards again; got outputs up to {most:.3g} apart. "
                f"{_suspects(block)}Set dropout to 0."
            )
    for key, value in _buffers(block):
        if key not in buffers or not _same(buffers[key], value):
            raise ConfigError(
                f"{name}: expected buffers that a forward leaves as they are, as mach runs "
                f"forwards again (the running statistics of norms aside); it changed {key}, "
                f"{spec_of(value)}. Take that state out of the block."
            )
    return out


def _run(block: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, bool]:
    """What a block makes of a copy of x, and whether it drew random numbers for it."""
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    out: Tensor = block(x.clone())
    return out.clone(), not torch.equal(before, torch.get_rng_state())


def _buffers(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers by name, without those that mach itself sees to (mach.component.modes)."""
    for prefix, module in block.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            continue
        yield from module.named_buffers(prefix, recurse=False)


def _suspects(block: nn.Module) -> str:
    dropouts = [
        f"{name or 'itself'} = {module!r}"
        for name, module in block.named_modules()
        if isinstance(getattr(module, "p", None), float) and module.p > 0
    ]
    return f"It has {', '.join(dropouts[:3])}. " if dropouts else ""


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


# --- all of them -------------------------------------------------------------------------------


def _check_weights(family: Custom, first: nn.ModuleList, second: nn.ModuleList) -> None:
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        one, other = a.state_dict(), b.state_dict()
        if one.keys() != other.keys() or not all(
            _same(one[key], other[key]) for key in one if isinstance(one[key], Tensor)
        ):
            raise ConfigError(
                f"{family.name(index, a)}: expected the same first weights from the same seed, as "
                "every component calls the factory; got others when it was called again. Let torch "
                "draw them (torch.nn.init), on the CPU."
            )


def _check_causal(family: Custom, blocks: nn.ModuleList, x_BT: Tensor, h: Tensor) -> None:
    """The token after each position is to be predicted, so it must not be seen."""
    other_BT = x_BT.clone()
    other_BT[:, -1] = (other_BT[:, -1] + 1) % family.task.classes
    other: Tensor = other_BT
    for block in blocks:
        other = block(other)
    if not torch.allclose(h[:, :-1], other[:, :-1], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ConfigError(
            f"model.factory: expected blocks that see no later token, as each of the "
            f"{x_BT.shape[1]} positions predicts the one after it; what they make of the first "
            f"{x_BT.shape[1] - 1} change with the last. Make attention causal: is_causal=True."
        )


def _check_shared(family: Custom, blocks: nn.ModuleList, bodies: list[range]) -> None:
    owner: dict[int, tuple[int, int, str]] = {}
    for k, body in enumerate(bodies):
        for index in body:
            for name, parameter in blocks[index].named_parameters():
                other_k, other, other_name = owner.setdefault(id(parameter), (k, index, name))
                if other_k != k:
                    raise ConfigError(
                        f"{family.name(index, blocks[index])}: expected parameters of its own in "
                        f"component {k}; {name} is {other_name} of block {other} in component "
                        f"{other_k}, and two processes cannot step one parameter. Untie them, or "
                        "cut so that one component has both blocks."
                    )


# --- what is put on them -----------------------------------------------------------------------


def _check_heads(family: Custom, bodies: list[range], ends: list[TensorSpec]) -> None:
    targets = ROWS * family.task.sample.shape[0] if family.per_position else ROWS
    expected = TensorSpec((targets, family.task.classes))
    for body, activation in zip(bodies, ends, strict=True):
        head = family.exit(activation, body.stop)
        logits = _tried("model.head", head, activation)
        if spec_of(logits).shape != expected.shape:
            raise ConfigError(
                f"model.head: expected logits {expected} of {activation.batched(ROWS)}, after "
                f"block {body.stop - 1}; got {spec_of(logits)}."
            )


def _check_students(family: Custom, ends: list[TensorSpec], config: StudentConfig) -> None:
    for activation in ends:
        guess = _tried("model.student", family.student(activation, config), family.task.sample)
        if spec_of(guess).shape != activation.batched(ROWS).shape:
            raise ConfigError(
                f"model.student: expected {activation.batched(ROWS)}, the activation it predicts, "
                f"of {family.task.sample.batched(ROWS)}; got {spec_of(guess)}."
            )


def _tried(key: str, module: nn.Module, sample: TensorSpec) -> Tensor:
    x = torch.zeros((ROWS, *sample.shape), dtype=sample.dtype)
    try:
        out = module(x)
    except Exception as error:
        raise ConfigError(
            f"{key}: expected it to take {spec_of(x)}; it raised {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if not isinstance(out, Tensor):
        raise ConfigError(f"{key}: expected a tensor of {spec_of(x)}; got {type(out).__name__}.")
    return out
