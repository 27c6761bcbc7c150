"""Which runs lie at or below a path?"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mach import runfolder
from mach.errors import RunFolderError
from mach.paths import looked_at
from mach.records.notes import Notes

_CLOSED = {runfolder.CHECKPOINTS, runfolder.LOGS, "wandb", ".git", ".venv", "node_modules"}
"""Folders in which no run lies, some of them large."""


def find_runs(path: Path, notes: Notes | None = None) -> list[Path]:
    """Run folders at or below `path`, in the order of their names (job 2 before job 10).

    Args:
        notes: is told of folders that cannot be read.

    Raises:
        RunFolderError: there is none, or no such path.
    """
    with looked_at(str(path), RunFolderError):
        if not path.is_dir():
            raise RunFolderError(
                f"{path}: expected a run folder, or a folder with runs; got "
                f"{'a file' if path.exists() else 'nothing of that name'}. Runs are in runs/ where "
                "`mach train` was typed."
            )
    if is_run(path):
        return [path]
    found, closed = [], list[OSError]()
    for parent, below, _ in os.walk(path, onerror=closed.append):
        folder = Path(parent)
        if is_run(folder):
            found.append(folder)
            below.clear()  # no run lies within a run
        below[:] = sorted(set(below) - _CLOSED)
    if not found:
        told = "".join(
            f" {error.filename} cannot be read: {error.strerror}." for error in closed[:3]
        )
        raise RunFolderError(
            f"{path}: expected a run folder, or a folder with runs; found no run in it. A run has "
            f"a {runfolder.CONFIG} and a component-0.jsonl." + told
        )
    for error in closed:
        if notes is not None:
            notes.add(error.filename, f"cannot be read: {error.strerror}; left out")
    return sorted(found, key=natural)


def is_run(folder: Path) -> bool:
    """Whether a run has left anything here. A config.yaml that is another program's is no run."""
    try:
        if any(folder.glob("component-*.jsonl")) or (folder / runfolder.CHECKPOINTS).is_dir():
            return True
        text = (folder / runfolder.CONFIG).read_text()
    except (OSError, ValueError):
        return False
    return re.search(r"^components:", text, re.MULTILINE) is not None


def natural(path: Path) -> tuple[tuple[int, str], ...]:
    """A key to sort by in which numbers count as numbers."""
    parts = re.findall(r"\d+|\D+", str(path))
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)
