"""Which code is this, and what does it run on?"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def commit() -> str | None:
    """The commit this code was taken from; None outside a git checkout."""
    return _git("rev-parse", "HEAD") or None


def environment() -> dict[str, Any]:
    """Where and with what the running program measures something, and how it was called."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit(),
        "changed": bool(_git("status", "--porcelain", "--", ":/src", ":/conf")),
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *map(_nameless, [_program(), *sys.argv[1:]])]),
    }


def machine_of(environment: Mapping[str, Any]) -> str:
    """The machine and its software, in a line."""
    e = environment
    return (
        f"{e['cpu']}, {e['cores']} cores; {e['system']}; Python {e['python']}, torch {e['torch']}"
    )


def commit_of(environment: Mapping[str, Any]) -> str:
    """The commit, short, and whether the code had been changed since."""
    return (environment["commit"] or "none yet")[:12] + " with changes" * environment["changed"]


def _program() -> str:
    """As it is called from the root of the checkout: folders above that are nobody's business."""
    return str(Path(*Path(sys.argv[0]).resolve().parts[-3:]))


def _nameless(argument: str) -> str:
    """Without the folders of this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu() -> str:
    """Name, family and model: a virtual machine's name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.partition(":")[::2] for line in lines]
    fields = {key.strip(): value.strip() for key, value in pairs}
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model})"


def _git(*arguments: str) -> str:
    """What git says; nothing outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
