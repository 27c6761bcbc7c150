"""How is a function that the user names found, and how are blocks made of what it returns?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mach.errors import ConfigError


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
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(_broken(key, place, module, error)) from error
        raise ConfigError(
            f"{key}={place}: expected a module that can be imported; got none named {error.name}. "
            f"It is looked for in {here}, then on PYTHONPATH and among what is installed."
        ) from error
    except AttributeError as error:
        raise ConfigError(
            f"{key}={place}: expected a function {name} in module {module}; it has none. Check the "
            "name."
        ) from error
    except Exception as error:
        raise ConfigError(_broken(key, place, module, error)) from error
    if not callable(found):
        raise ConfigError(
            f"{key}={place}: expected a function; got {type(found).__name__}. Name the function "
            "that makes it."
        )
    function: Callable[..., Any] = found
    return function


def call(key: str, place: str, *arguments: Any, **options: Any) -> Any:
    """Call the function that `place` names.

    Raises:
        ConfigError: there is none, or it raises.
    """
    function = locate(key, place)
    try:
        return function(*arguments, **options)
    except Exception as error:
        raise ConfigError(
            f"{key}={place}: expected {place} to return; it raised {said(error)}"
        ) from error


def call_for_module(key: str, place: str, *arguments: Any) -> nn.Module:
    """Call a function that makes one module.

    Raises:
        ConfigError: there is none, or it makes something else.
    """
    made = call(key, place, *arguments)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{key}={place}: expected an nn.Module; got {_kind(made)}.")
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
        if not isinstance(block, nn.Module):
            raise ConfigError(
                f"{key}={place}: block {index}: expected an nn.Module; got {_kind(block)}. Wrap "
                "it in one."
            )
    return nn.ModuleList(made)


def said(error: Exception) -> str:
    """An exception of the user's code in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _broken(key: str, place: str, module: str, error: Exception) -> str:
    return f"{key}={place}: expected {module} to be imported; it raised {said(error)}"


def _kind(value: object) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, list | tuple) and not value:
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {value!r:.60}"
