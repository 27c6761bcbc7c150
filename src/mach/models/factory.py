"""How is a function that the user names found, and how are blocks made of what it returns?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mach.errors import ConfigError, MachError

MISTAKES = (Exception, SystemExit)
"""How code of the user's may end. The second would end the command as well, and without a word."""

_importing: list[str] = []
"""Modules of the user's that are being imported now."""


def locate(key: str, place: str) -> Callable[..., Any]:
    """The function that `place` names.

    Looked for as `python -m` does: in the folder where the command was typed, which the ranks have
    as theirs, then on PYTHONPATH and among what is installed.

    Args:
        key: of the config, for the message.
        place: `package.module:function`.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = place.partition(":")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        imported = _import(module)
    except MachError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(_broken(key, place, module, error)) from error
        raise ConfigError(
            f"{key}={place}: expected a module that can be imported; got none named {error.name}. "
            f"It is looked for in {here}, then on PYTHONPATH and among what is installed."
        ) from error
    except MISTAKES as error:
        raise ConfigError(_broken(key, place, module, error)) from error
    if not hasattr(imported, name):
        raise ConfigError(
            f"{key}={place}: expected a function {name} in module {module}; it has none. Check the "
            "name."
        )
    found = getattr(imported, name)
    if not callable(found):
        raise ConfigError(
            f"{key}={place}: expected a function; got {type(found).__name__}. Name the function "
            "that makes it."
        )
    function: Callable[..., Any] = found
    return function


def refuse_if_imported() -> None:
    """Refuse to train from a module that is just being imported for a function of its own.

    Every process imports it, and each would start a run, and so on.

    Raises:
        ConfigError: it is.
    """
    if _importing:
        raise ConfigError(
            f"mach.fit: expected to be called by the program; got a call from {_importing[-1]} "
            f"while it is imported, as every process of a run does. Put what the program does "
            f'under `if __name__ == "__main__":`'
        )


def _import(module: str) -> ModuleType:
    _importing.append(module)
    try:
        with torch.device("cpu"):  # tensors that it makes are there for good
            return importlib.import_module(module)
    finally:
        _importing.pop()


def call(key: str, place: str, *arguments: Any, **options: Any) -> Any:
    """Call the function that `place` names.

    Raises:
        ConfigError: there is none, or it raises.
    """
    function = locate(key, place)
    try:
        return function(*arguments, **options)
    except MISTAKES as error:
        raise ConfigError(f"{key}={place}: expected {place} to return; it {did(error)}") from error


def call_for_module(key: str, place: str, *arguments: Any) -> nn.Module:
    """Call a function that makes one module.

    Raises:
        ConfigError: there is none, or it makes something else.
    """
    made = call(key, place, *arguments)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{key}={place}: expected an nn.Module; got {_kind(made)}.")
    _refuse_lazy(f"{key}={place}", made)
    return made


def call_for_blocks(key: str, place: str, options: dict[str, Any]) -> nn.ModuleList:
    """Call a function that makes the blocks of a network.

    Raises:
        ConfigError: there is none, it raises, or returns something else.
    """
    made = call(key, place, **options)
    if isinstance(made, nn.Module) and not isinstance(made, nn.Sequential | nn.ModuleList):
        raise ConfigError(
            f"{key}={place}: expected a list of nn.Module blocks or an nn.Sequential; got one "
            f"{type(made).__name__}. Return its layers, so that mach can cut between them."
        )
    if not isinstance(made, list | tuple | nn.Sequential | nn.ModuleList) or not len(made):
        raise ConfigError(
            f"{key}={place}: expected a list of nn.Module blocks or an nn.Sequential; got "
            f"{_kind(made)}. Does the function end with `return`?"
        )
    for index, block in enumerate(made):
        who = f"{key}={place}: block {index}"
        if not isinstance(block, nn.Module):
            raise ConfigError(f"{who}: expected an nn.Module; got {_kind(block)}. Wrap it in one.")
        _refuse_lazy(f"{who} ({type(block).__name__})", block)
    return nn.ModuleList(made)


def did(error: BaseException) -> str:
    """What code of the user's did instead of what it was called for, in one line."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text}" if text else f"raised {type(error).__name__}"


def _broken(key: str, place: str, module: str, error: BaseException) -> str:
    return f"{key}={place}: expected {module} to be imported; importing {module} {did(error)}"


def _refuse_lazy(who: str, made: nn.Module) -> None:
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(
                f"{who}: expected weights that have their shapes when it is built; {name} gets its "
                "own with the first input, as in nn.LazyLinear. Say the sizes: nn.Linear(in, out)."
            )


def _kind(value: object) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, list | tuple) and not value:
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {value!r:.60}"
