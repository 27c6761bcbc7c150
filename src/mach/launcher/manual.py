"""What does `mach train --help` say?

Nothing of its own: what a choice of a group means is said by the comment that its file in `conf/`
opens with, and what an option means by the text below it in `mach.config`.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import MISSING
from itertools import takewhile
from pathlib import Path
from typing import Any

from mach.config import Config
from mach.config.describe import Option, options
from mach.configfile import MODELS, SOURCES

_WIDTH = min(100, shutil.get_terminal_size((100, 0)).columns)
_SWEEPS = ("hydra/launcher", "hydra/sweeper")
"""Groups of Hydra's own that we have choices for."""


def manual(conf: Path, model: str, data: str) -> str:
    """The groups, and the options of a run with this family of networks and this data.

    Args:
        conf: the folder of YAML.
    """
    folders = sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
    groups = [*(path.name for path in folders), *_SWEEPS]
    parts = {"model": MODELS[model], "data": SOURCES[data]}
    lines = [
        "mach train [group=choice ..] [option=value ..]",
        "mach train -m option=value,value ..        a sweep: one run for each combination",
        "",
        "Groups",
        *(line for group in groups for line in _group(conf / group, group)),
        "",
        f"Options, with their defaults (of model={model} data={data}; mach train --help model=gpt",
        "shows those of another family)",
        *(line for option in _options(parts) for line in _described(option)),
        "",
        "Your own YAML: --config-dir FOLDER. To print the config and run nothing: --cfg job.",
        'Tab completion: eval "$(mach train -sc install=bash)", or zsh, or fish.',
    ]
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in what follows a single one


def _group(folder: Path, name: str) -> list[str]:
    lines = [f"  {name}="]
    for path in sorted(folder.glob("*.yaml")):
        first, *rest = _said(path)
        lines += [f"    {path.stem:<18}  {first}", *(" " * 24 + text for text in rest)]
    return lines


def _said(path: Path) -> list[str]:
    """The comment a file opens with, in lines; a command keeps a line of its own."""
    lines = path.read_text().splitlines()
    lines = [line for line in lines if not line.startswith("# @package")]
    comment = [line[2:] for line in takewhile(lambda line: line.startswith("# "), lines)]
    command = comment[:1] if comment[0].startswith("mach train") else []
    text = " ".join(" ".join(comment[len(command) :]).split())
    return [line for said in (*command, text) for line in _wrapped(said, _WIDTH - 24)]


def _options(parts: dict[str, type]) -> list[Option]:
    found: list[Option] = []
    for option in options(Config):
        part, _, rest = option.key.partition(".")
        if not (rest and part in parts):
            found.append(option)
        elif rest == "name":  # the first of its part: here come those of the choice instead
            found += options(parts[part], f"{part}.")
    return found


def _described(option: Option) -> list[str]:
    text = _wrapped(option.text, _WIDTH - 6)
    return [f"  {option.key}{_shown(option.default)}", *(f"      {line}" for line in text)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _shown(default: Any) -> str:
    if default is MISSING:
        return "=..  (must be given)"
    known = {None: "null", True: "true", False: "false"}
    return f"={known[default] if default is None or isinstance(default, bool) else default}"
