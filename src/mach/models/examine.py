"""Can blocks that somebody brings along be trained as a chain? Tried before any process starts.

A component runs a microbatch through its body more than once (replay, distillation, evaluation), so
a block must be a function of its input and its weights: nothing drawn at random, nothing
remembered. Each is run on the CPU, on samples of the data, with the weights it will begin with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mach.config import StudentConfig
from mach.errors import ConfigError
from mach.models.custom import Custom
from mach.models.factory import MISTAKES, did
from mach.shapes import TensorSpec, spec_of

ROWS = 2
"""Samples that it takes, where a microbatch has as many."""
_DRAWS = 16
"""How often a block that draws random numbers is run to see whether they matter: not where the
probability of a dropout is 0."""


@torch.no_grad()
def examine(
    family: Custom, first: nn.ModuleList, second: nn.ModuleList, x: Tensor
) -> frozenset[int]:
    """Try the blocks, wherever the network will be cut.

    Args:
        first: all blocks, on the CPU.
        second: the same, built once more from the same seed.
        x: raw samples.

    Returns:
        The blocks that change their input in place, with which no component can begin.

    Raises:
        ConfigError: for the first block that mach cannot train, with its index.
    """
    _check_weights(family, first, second)
    overwriting, h = set[int](), x
    with torch.random.fork_rng(devices=[]):
        for index, block in enumerate(first):
            name = family.name(index, block)
            out, _, overwrote = _check_replay(name, block, h)
            if spec_of(out) != (meant := family.outputs[index].batched(len(x))):
                raise ConfigError(
                    f"{name}: expected {meant}, as it makes of zeros; got {spec_of(out)} of "
                    "samples of the data. Make its output's shape depend on its input's alone."
                )
            if overwrote:
                overwriting.add(index)
            h = out
        if family.per_position and x.shape[1] > 1:
            _check_causal(family, second, x)
    return frozenset(overwriting)


def examine_cut(
    family: Custom, blocks: nn.ModuleList, x: Tensor, bodies: list[range], student: StudentConfig
) -> None:
    """Try the components of a cut: their bodies, what they would share, what is put on them.

    Args:
        blocks: all of them, which `examine` has passed.
        x: raw samples.

    Raises:
        ConfigError: for the first thing that two processes cannot do.
    """
    _check_shared(family, blocks, bodies)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        ends, h = list[Tensor](), x
        for k, body in enumerate(bodies):
            name = f"component {k} (blocks {body.start} to {body.stop - 1})"
            h = _check_body(family, name, blocks, body, h)
            ends.append(h)
        with torch.no_grad():
            _check_heads(family, bodies, ends)
            if student.enabled:
                _check_students(family, bodies[:-1], x, student)


# --- one block ---------------------------------------------------------------------------------


class _Ran(NamedTuple):
    out: Tensor
    drew: bool
    """Whether random numbers were drawn."""
    overwrote: bool
    """Whether the input was changed in place."""


def _check_replay(name: str, block: nn.Module, x: Tensor) -> _Ran:
    """What a block makes of x, once it is sure that it always makes the same."""
    buffers = {key: value.clone() for key, value in _buffers(block)}
    ran = _run(name, block, x, 0)
    draws = range(1, _DRAWS if ran.drew else 2)
    again = (_run(name, block, x, draw).out for draw in draws)
    other = next((out for out in again if not _same(ran.out, out)), None)
    for key, value in _buffers(block):
        if key not in buffers or not _same(buffers[key], value):
            raise ConfigError(
                f"{name}: expected buffers that a forward leaves as they are, as mach runs "
                f"forwards again (the running statistics of norms aside); it changed {key}, "
                f"{spec_of(value)}. Take that state out of the block."
            )
    if other is not None:
        most = (ran.out.double() - other.double()).abs().max().item()
        raise ConfigError(
            f"{name}: expected the same output {spec_of(other)} for the same input and weights, "
            f"as mach runs forwards again; got outputs up to {most:.3g} apart. "
            f"{_suspects(block)}Set dropout to 0."
        )
    return ran


def _run(name: str, block: nn.Module, x: Tensor, seed: int) -> _Ran:
    """What a block makes of a copy of x."""
    torch.manual_seed(seed)
    before = _generators()
    given = x.clone()
    out = _tried(name, block, given)
    return _Ran(out.clone(), _generators() != before, _overwritten(given, x))


def _generators() -> tuple[object, ...]:
    """States of whatever a block may draw random numbers from."""
    numpys = np.random.get_state(legacy=False)["state"]
    drawn = numpys["key"].tobytes(), numpys["pos"]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), *drawn


def _tried(who: str, module: nn.Module, x: Tensor) -> Tensor:
    """What somebody's module makes of x itself."""
    taken = f"{spec_of(x)}, numbers from {x.min().item():.6g} to {x.max().item():.6g}"
    try:
        out = module(x)
    except MISTAKES as error:
        raise ConfigError(f"{who}: expected it to take {taken}; it {did(error)}") from error
    if not isinstance(out, Tensor):
        raise ConfigError(f"{who}: expected a tensor of {taken}; got {type(out).__name__}.")
    return out


def _overwritten(given: Tensor, x: Tensor) -> bool:
    """Whether a copy of x was written to: autograd refuses that also where its numbers stay."""
    return given._version > 0 or not _same(given, x)


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


def _check_causal(family: Custom, blocks: nn.ModuleList, x_BT: Tensor) -> None:
    """The token after each position is to be predicted, so it must not be seen.

    Args:
        blocks: all of them; their weights are changed.
    """
    for parameter in blocks.parameters():  # one that begins at zero hides what comes before it
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    known, places_BT = x_BT.unique(return_inverse=True)
    other_BT = x_BT.clone()
    # One of its own: another may be none to the blocks, as to a table no larger than needed.
    other_BT[:, -1] = known.roll(1)[places_BT[:, -1]]
    h, other = x_BT.clone(), other_BT
    for index, block in enumerate(blocks):
        name = family.name(index, block)
        h, other = _tried(name, block, h), _tried(name, block, other)
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


def _check_body(
    family: Custom, component: str, blocks: nn.ModuleList, body: range, x: Tensor
) -> Tensor:
    """What a component makes of its input, once it is sure that it leaves it as it is, and that
    there is something to train."""
    given = out = x.clone()
    for index in body:
        name = family.name(index, blocks[index])
        out = _tried(name, blocks[index], out)
        if _overwritten(given, x):  # by a later block too, where the first returns a view
            raise ConfigError(
                f"{name}: expected its input to stay as it is, as that is what {component} is "
                "given, which runs it again; it changes it in place. Take inplace=True from its "
                "first layer, or cut elsewhere."
            )
    if not out.requires_grad:
        raise ConfigError(
            f"{component}: expected parameters to train; its output depends on none. Set "
            "model.balance to a list that gives it others as well, or components to fewer."
        )
    return out.detach()


# --- what is put on them -----------------------------------------------------------------------


def _check_heads(family: Custom, bodies: list[range], ends: list[Tensor]) -> None:
    positions = family.task.sample.shape[0] if family.per_position else 1
    for body, h in zip(bodies, ends, strict=True):
        head = family.exit(family.outputs[body.stop - 1], body.stop)
        logits = _tried_on_top("model.head", head, h)
        expected = TensorSpec((len(h) * positions, family.task.classes))
        if spec_of(logits).shape != expected.shape:
            raise ConfigError(
                f"model.head: expected logits {expected} of {spec_of(h)}, after block "
                f"{body.stop - 1}; got {spec_of(logits)}."
            )


def _check_students(family: Custom, below: list[range], x: Tensor, config: StudentConfig) -> None:
    for body in below:
        activation = family.outputs[body.stop - 1]
        network = family.student(activation, config)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ConfigError(
                f"model.student: expected parameters to train; {type(network).__name__} has none. "
                "Set student=none to train without students."
            )
        guess = _tried_on_top("model.student", network, x)
        expected = activation.batched(len(x))
        if spec_of(guess).shape != expected.shape:
            raise ConfigError(
                f"model.student: expected {expected}, the activation it predicts, of "
                f"{spec_of(x)}; got {spec_of(guess)}."
            )


def _tried_on_top(key: str, module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of an input that it shares, once it is sure that it leaves that alone."""
    given = x.clone()
    out = _tried(key, module, given)
    if _overwritten(given, x):
        raise ConfigError(
            f"{key}: expected its input {spec_of(x)} to stay as it is, as others are given it as "
            "well; it changes it in place. Take inplace=True from its first layer."
        )
    return out
