"""Which code is this?"""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit this code was taken from; None outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
