"""What did OmegaConf refuse, said like every other mistake in the config?"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, Node, StringNode
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

_EXPECTED: dict[type[Node], str] = {
    IntegerNode: "a whole number",
    FloatNode: "a number",
    BooleanNode: "true or false",
    StringNode: "text",
    DictConfig: "a group of keys",
}


def refusal(error: OmegaConfBaseException, known: Sequence[str]) -> str:
    """What is wrong with which key.

    Args:
        known: every key there is.
    """
    key = error.full_key
    if key and isinstance(error, ConfigAttributeError | ConfigKeyError):
        return (
            f"{key}: expected a key of the config; got one that it does not have. "
            f"{_did_you_mean(key, known)}All keys: mach train --cfg job"
        )
    node = error.child_node
    expected = _EXPECTED.get(type(node))
    if key and isinstance(error, ValidationError) and expected:
        got = "null" if error.value is None else repr(error.value)
        return f"{key}: expected {expected}{' or null' * node._is_optional()}; got {got}"
    said = str(error).strip().partition("\n")[0]
    return f"{key}: {said}" if key else said


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    if key in known:
        group = key.partition(".")[0]
        return f"Another choice of {group} has it: {group}=.. "
    last = key.rpartition(".")[2]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    near = [*get_close_matches(key, known, n=1, cutoff=0.9), *elsewhere]
    near = near or get_close_matches(key, known, n=3, cutoff=0.7)
    return f"Did you mean {_either(near)}? " if near else ""


def _either(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
