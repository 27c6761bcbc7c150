"""How is a module written down, so that it can be built again from JSON?

By what it was made with: while a network is built, the arguments of every constructor are noted.
A layer written by mach or torch is described by its class and these, a container by its children.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mach.errors import ConfigError

_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Made:
    """How a module was made."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]


@contextmanager
def noting(classes: Iterable[type[nn.Module]]) -> Iterator[dict[nn.Module, Made]]:
    """Note the arguments of all modules of these classes that are built in here."""
    made: dict[nn.Module, Made] = {}
    kinds = set(classes) - set(_CONTAINERS)
    before = {kind: kind.__dict__.get("__init__") for kind in kinds}
    originals = {kind: kind.__init__ for kind in kinds}
    for kind in kinds:
        setattr(kind, "__init__", _noting(originals[kind], made))  # noqa: B010  # mypy: no method
    try:
        yield made
    finally:
        for kind, own in before.items():
            if own is None:
                del kind.__init__
            else:
                setattr(kind, "__init__", own)  # noqa: B010


def _noting(original: Any, made: dict[nn.Module, Made]) -> Any:
    @functools.wraps(original)
    def init(self: nn.Module, *arguments: Any, **options: Any) -> None:
        # What is called first is the constructor of the class itself, not of one it inherits from.
        made.setdefault(self, Made(arguments, options))
        original(self, *arguments, **options)

    return init


def describe(module: nn.Module, made: Mapping[nn.Module, Made]) -> dict[str, Any]:
    """A module as JSON: what `mach.export.plain.build` makes it of.

    Raises:
        ConfigError: it holds a layer whose source mach does not have.
    """
    kind = type(module)
    name = f"nn.{kind.__name__}" if getattr(nn, kind.__name__, None) is kind else kind.__name__
    if type(module) in _CONTAINERS:
        # Not named_children, which gives one that is there twice but once.
        own = ((child, one) for child, one in module._modules.items() if one is not None)
        children = {child: describe(one, made) for child, one in own}
        return {"class": name, "children": children}
    if not name.startswith("nn.") and not kind.__module__.startswith("mach."):
        raise ConfigError(
            f"format=safetensors: expected layers of mach and torch.nn; got "
            f"{kind.__module__}.{kind.__qualname__}, whose source mach does not have. Set "
            "format=torch or format=onnx, which need no source."
        )
    noted = made[module]
    options = {key: _value(module, value, made) for key, value in noted.options.items()}
    arguments = [_value(module, value, made) for value in noted.arguments]
    return {"class": name, "arguments": arguments, "options": options}


def _value(owner: nn.Module, value: Any, made: Mapping[nn.Module, Made]) -> Any:
    if isinstance(value, nn.Module):
        return describe(value, made)
    if isinstance(value, list):
        return [_value(owner, one, made) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_value(owner, one, made) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"format=safetensors: expected {type(owner).__name__} to be made with numbers, text and "
        f"modules; got {value!r:.60}, which JSON cannot hold. Set format=torch or format=onnx."
    )
