"""Where and with what was a section measured?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """As it is now."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "src", "conf")),
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/wire/main.py", *map(_nameless, sys.argv[1:])]),
    }


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


def _git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parents[2]), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip() if done.returncode == 0 else None
