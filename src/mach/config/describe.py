"""What does each option mean? Read from where it is defined: the text below a dataclass's field."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One key of a config."""

    key: str
    default: Any
    """dataclasses.MISSING: the user has to give one."""
    text: str
    """What it means, in one line."""


def options(kind: type, prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass, in the order they are defined; of parts of it, `part.option`."""
    texts = _texts(kind)
    for field in fields(kind):
        part = field.default_factory
        if isinstance(part, type) and is_dataclass(part):
            yield from options(part, f"{prefix}{field.name}.")
            continue
        default = field.default if part is MISSING else part()
        default = MISSING if default == "???" else default  # OmegaConf's word for it
        yield Option(prefix + field.name, default, texts.get(field.name, ""))


@cache
def _texts(kind: type) -> dict[str, str]:
    """Texts below the fields of a class, and of those it inherits from."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not is_dataclass(one):
            continue
        (definition,) = ast.parse(inspect.getsource(one)).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts
