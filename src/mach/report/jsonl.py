"""How does a component's log survive whatever ends the component?

One JSON object per line, each line handed to the operating system in one write: what was logged
before a kill -9 is on disk, and at most the last line is half-written. These files are the record
of a run; wandb and the console are views of it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class JsonLines:
    """Append-only log of one component.

    Args:
        path: the file; its folder exists.
        resume_step: optimizer step the run goes on from. What an earlier life of the component
            logged beyond it will be logged again, so it is dropped here; 0 begins anew.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        _forget_after(path, resume_step)
        # Unbuffered: a line that is written is out of this process.
        self._file = path.open("ab", buffering=0)
        self.lost = 0
        """Lines that could not be written, as on a full disk."""
        self._torn = False

    def log(self, record: dict[str, Any]) -> None:
        """Write one line. Numbers that are not finite become null: JSON has no name for them.

        A line that cannot be written is counted, and the first one is told: a full disk is no
        reason to stop training.
        """
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        rest = b"\n" + line if self._torn else line  # what is left of the torn one is skipped
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._torn = True
            self.lost += 1
            if self.lost == 1:
                _log.warning(
                    "%s: the line of step %s could not be written: %s. The training goes on.",
                    self._path,
                    record.get("step"),
                    error.strerror,
                )
        else:
            self._torn = False

    def close(self, failed: bool = False) -> None:
        self._file.close()
        if self.lost:
            _log.warning("%s: %d lines could not be written", self._path, self.lost)


class Follower:
    """Reads a log while its component is still writing it.

    Each `read` returns what is new since the last one. A file that does not exist yet is empty; a
    half-written last line is left for the next time; a file that was rewritten (the component was
    restarted) is read again from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = -1

    def read(self) -> list[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode or file.seek(0, 2) < self._offset:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [record for line in whole.splitlines() if (record := parse(line)) is not None]


def _forget_after(path: Path, step: int) -> None:
    """Drop what was logged beyond `step`, and anything that is not a whole line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if line.endswith(b"\n") and _logged_by(line, step)]
    if len(kept) == len(lines):
        return
    # Beside the log, then over it: a crash in between leaves the old file or the new one.
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(b"".join(kept))
    draft.replace(path)


def _logged_by(line: bytes, step: int) -> bool:
    record = parse(line)
    return record is not None and record.get("step", 0) <= step


def parse(line: bytes) -> dict[str, Any] | None:
    """The object a line holds; None where it is half-written or otherwise damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    """The value as JSON knows it; numpy scalars and 0-d tensors are numbers too."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
