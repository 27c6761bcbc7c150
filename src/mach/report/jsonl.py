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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
        line = _encoded(record).encode() + b"\n"
        whole = b"\n" + line if self._torn else line  # what is left of the torn one is skipped
        rest = whole
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._torn |= len(rest) < len(whole)
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

    Args:
        path: the log.
        offset: bytes of it that are known already.
        again: whether to read a rewritten file; otherwise it has ended there.
    """

    def __init__(self, path: Path, offset: int = 0, again: bool = True) -> None:
        self._path = path
        self._offset = offset
        self._again = again
        self._inode = path.stat().st_ino if offset else -1
        self.skipped = 0
        """Lines that could not be read."""
        self.rewritten = 0
        """How often the file has begun anew."""

    def read(self) -> list[dict[str, Any]]:
        """All that is new."""
        return list(self.stream())

    def stream(self) -> Iterator[dict[str, Any]]:
        """All that is new, one by one: however long the log is, little of it is in memory."""
        try:
            with self._path.open("rb") as file:
                self._find_place(file)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    record = parse(line)
                    if record is not None:
                        yield record
                    else:
                        self.skipped += bool(line.strip())
        except FileNotFoundError:
            return

    def _find_place(self, file: BinaryIO) -> None:
        inode = os.fstat(file.fileno()).st_ino
        if inode != self._inode or file.seek(0, os.SEEK_END) < self._offset:
            if self._inode >= 0 and not self._again:
                file.seek(0, os.SEEK_END)
                return
            self.rewritten += self._inode >= 0
            self._inode, self._offset = inode, 0
        file.seek(self._offset)


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
    try:
        draft.write_bytes(b"".join(kept))
        draft.replace(path)
    except OSError:  # no room for two of them: it becomes shorter where it is
        draft.unlink(missing_ok=True)
        with path.open("r+b", buffering=0) as file:
            file.write(b"".join(kept))
            file.truncate()


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


def _encoded(record: dict[str, Any]) -> str:
    try:
        return _ENCODER.encode(record)
    except ValueError:  # a number that is not finite: rare, and dear to look for in every line
        return _ENCODER.encode(_plain(record))


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


_ENCODER = json.JSONEncoder(allow_nan=False, default=_plain)
