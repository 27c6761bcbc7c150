"""Which Python does a file need that rebuilds a model without mach?

Not a copy kept by hand: the source of the classes that the model has, and of all they refer to, is
taken from mach's own modules.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HEADER = '''"""{title}, as a plain PyTorch module: needs torch and safetensors alone.

    from model import load

    model = load()       # from the files beside this one
    logits = model(x)    # {usage}

Written by mach {version}, with the source of its layers (MIT licence). Suffixes are shapes:
B batch, T tokens or positions, D width, H hidden width or heads, E width of a head, V vocabulary,
C channels or classes, N rows of logits. README.md says what the model is.
"""
'''

_FOOTER = '''
def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model, in evaluation mode on the CPU."""
    return load_folder(Path(folder), globals())
'''


def standalone(title: str, usage: str, roots: Iterable[Any]) -> str:
    """The source of a file that has these classes and functions, all they need, and `load`.

    Args:
        title: what the model is.
        usage: what it takes and returns, in a few words.
        roots: classes and functions of mach; `mach.export.plain.load_folder` among them.
    """
    source = _Source()
    for root in roots:
        source.take(root.__module__, root.__name__)
    header = _HEADER.format(title=title, usage=usage, version=version("mach"))
    lines = ["from __future__ import annotations", "", *sorted(source.imports)]
    return "\n\n".join([header + "\n".join(lines) + "\n", *source.definitions, _FOOTER.strip("\n")])


@dataclass
class _Source:
    imports: set[str] = field(default_factory=set)
    definitions: list[str] = field(default_factory=list)
    _taken: dict[str, str] = field(default_factory=dict)

    def take(self, module: str, name: str) -> None:
        """Take a definition, after those it refers to."""
        if name in self._taken:
            assert self._taken[name] == module, f"{name} of {module} and of {self._taken[name]}"
            return
        self._taken[name] = module
        parsed = _parsed(module)
        node = parsed.definitions[name]
        for other in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}):
            if other in parsed.definitions:
                self.take(module, other)
            elif other in parsed.imports:
                where, original, line = parsed.imports[other]
                if where.split(".")[0] == "mach":
                    self.take(where, original)
                else:
                    self.imports.add(line)
        self.definitions.append(parsed.text(node) + "\n")


@dataclass
class _Module:
    lines: list[str]
    definitions: dict[str, ast.stmt]
    """What its top level defines, by name."""
    imports: dict[str, tuple[str, str, str]]
    """By the name it has here: module, name there, and a line that imports it alone."""
    ends: dict[ast.stmt, int]
    """Last line of a definition, with the text that explains it."""

    def text(self, node: ast.stmt) -> str:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(one.lineno for one in decorators)])
        return "\n".join(self.lines[start - 1 : self.ends[node]])


@cache
def _parsed(module: str) -> _Module:
    file = sys.modules[module].__file__
    assert file is not None
    text = Path(file).read_text()
    found = _Module(text.splitlines(), {}, {}, {})
    body = ast.parse(text).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        explained = isinstance(node, ast.Assign) and isinstance(after, ast.Expr)
        found.ends[node] = (after if explained and after else node).end_lineno or node.lineno
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            found.definitions |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
                line = f"from {node.module} import {name}"
                found.imports[alias.asname or alias.name] = (node.module, alias.name, line)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.imports[alias.name] = (alias.name, "", f"import {alias.name}")
    return found
