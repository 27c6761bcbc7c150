"""Where does a sweep keep its jobs, and which of them has run before?

runs/<sweep>/
  sweep.csv              one row for each job that has ended: see mach.sweeptable
  <number>/              a job's run folder (mach.runfolder), and beside what a run leaves:
    overrides.yaml       what it was asked for; written before anything else
  .asked                 numbers of the jobs that the last command has asked for
  .sweep.lock            held while a job finds its folder or writes its row
  .leases/<host>/        who uses which part of a machine now: see mach.launcher.leases
  multirun.yaml, ..      what Hydra and its sweepers leave

A job is known by its overrides, whatever their order: a sweep that is run again with one more value
finds what it has done in the folders it has, and gives new jobs the numbers that are free. What
only says how a sweep is run or told does not count: see NOT_COUNTED. Nor, where a sweep goes on,
does `resume`: all its jobs, new ones too, begin from the run that those before began from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from mach.errors import RunFolderError
from mach.runfolder import holds_run

OVERRIDES = "overrides.yaml"
_ASKED = ".asked"
NOT_COUNTED = ("out", "report", "launch.parallel", "launch.queue_s")
"""Keys, with all below them, that do not make a job another job; nor does resume=auto."""

_LOCK_S = 60.0
"""Longest wait for another job that looks for its folder or writes its row: milliseconds each."""


def counted(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides that make a job what it is, as key and value, in the order they were given."""
    pairs = (word.partition("=")[::2] for word in overrides)
    return {key: _as_typed(value) for key, value in pairs if _counts(_key(key), value)}


def _counts(key: str, value: str) -> bool:
    if key == "resume":
        return value not in ("auto", "null")
    return not any(key == no or key.startswith(f"{no}.") for no in NOT_COUNTED)


def _as_typed(value: str) -> str:
    """Without the backslashes that Hydra puts before special signs where there are no quotes."""
    quoted = "'" in value or '"' in value
    return value if quoted else re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", value)


def job_folders(sweep_dir: Path) -> list[Path]:
    """Folders of the jobs, in the order of their numbers."""
    found = (path.parent for path in sweep_dir.glob(f"*/{OVERRIDES}"))
    return sorted((path for path in found if path.name.isdecimal()), key=lambda p: int(p.name))


def check(sweep_dir: Path, resume: bool) -> None:
    """Whether a sweep may have the folder: a new one, or its own with `resume=auto`.

    Raises:
        RunFolderError: it holds a run, or a sweep that `resume=auto` was not asked for, or one
            whose jobs began from several runs.
    """
    if holds_run(sweep_dir):
        raise RunFolderError(
            f"out={sweep_dir}: expected a folder for a sweep, got one that holds a run. Choose "
            "another `out`"
        )
    jobs = len(job_folders(sweep_dir))
    if jobs and not resume:
        raise RunFolderError(
            f"out={sweep_dir}: expected a folder without a sweep, got one that holds {jobs} jobs. "
            "Choose another `out`, or run what is missing there: resume=auto"
        )
    _origin(sweep_dir)


def check_none(run_dir: Path) -> None:
    """Whether a run may have the folder: it must not be a sweep's.

    Raises:
        RunFolderError: it is.
    """
    jobs = len(job_folders(run_dir))
    if jobs:
        raise RunFolderError(
            f"out={run_dir}: expected a folder for a run, got one that holds a sweep of {jobs} "
            f"jobs. Choose another `out`, or go on with a job of it: out={run_dir / '<number>'}"
        )


def begin(sweep_dir: Path) -> None:
    """A command begins, which has asked for no job yet.

    Raises:
        RunFolderError: see `locked`.
    """
    with locked(sweep_dir):
        (sweep_dir / _ASKED).write_text("")


def asked(sweep_dir: Path) -> set[str]:
    """Numbers of the jobs that the last command has asked for."""
    try:
        return set((sweep_dir / _ASKED).read_text().split())
    except OSError:
        return set()


def enter(sweep_dir: Path, number: int, overrides: Sequence[str], resume: bool) -> Path:
    """The folder of a job, which is made if it has none yet.

    Args:
        number: the job's number in this sweep; its folder's name, where that is free.
        resume: look whether an earlier sweep in this folder had the same job.

    Raises:
        RunFolderError: it cannot be written.
    """
    with locked(sweep_dir):
        folder = _entered(sweep_dir, number, overrides, resume)
        try:
            with (sweep_dir / _ASKED).open("a") as file:
                file.write(f"{folder.name}\n")
        except OSError as error:
            raise _unwritten(folder, error) from error
    return folder


def _entered(sweep_dir: Path, number: int, overrides: Sequence[str], resume: bool) -> Path:
    words, own = list(overrides), sweep_dir / str(number)
    if resume:
        mine = _but_resume(counted(words))
        for folder in (own, *job_folders(sweep_dir)):
            theirs = overrides_of(folder)
            if theirs is not None and _but_resume(theirs) == mine:
                return folder
        words += _origin(sweep_dir)
    if own.exists():
        taken = [int(p.name) for p in sweep_dir.iterdir() if p.name.isdecimal()]
        own = sweep_dir / str(max(taken) + 1)
    try:
        own.mkdir()
        text = yaml.safe_dump(words, allow_unicode=True, width=1000)
        (own / OVERRIDES).write_text(text)
    except OSError as error:
        raise _unwritten(own, error) from error
    return own


def _unwritten(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{folder}: cannot be written: {error.strerror or error}")


@contextmanager
def locked(sweep_dir: Path) -> Iterator[None]:
    """Keep other jobs of this sweep, on any machine that shares the folder, out for a moment.

    Raises:
        RunFolderError: the folder cannot be written, or another job keeps it for too long.
    """
    lock = FileLock(sweep_dir / ".sweep.lock", timeout=_LOCK_S)
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(
            f"{lock.lock_file}: expected the lock within {_LOCK_S:g} s; another process holds it. "
            "Stop it"
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"out={sweep_dir}: expected a folder that can be written; {error.strerror or error}. "
            "Choose another `out`"
        ) from error
    try:
        yield
    finally:
        lock.release()


def overrides_of(folder: Path) -> dict[str, str] | None:
    """What makes the job in this folder what it is; None where that cannot be read."""
    words = _words_of(folder)
    return None if words is None else counted(words)


def origin_of(folder: Path) -> str | None:
    """`resume=RUN`, as the job in this folder was given it; None where it began from nothing."""
    words = [word for word in _words_of(folder) or () if _key(word) == "resume"]
    return words[-1] if words and counted(words[-1:]) else None


def _words_of(folder: Path) -> list[str] | None:
    try:
        words = yaml.safe_load((folder / OVERRIDES).read_text())
        counted(words)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return list(words)


def _origin(sweep_dir: Path) -> list[str]:
    """`resume=RUN` of all jobs of a sweep; empty where they began from nothing.

    Raises:
        RunFolderError: they began from several runs.
    """
    jobs: dict[str | None, list[str]] = {}
    for folder in job_folders(sweep_dir):
        if overrides_of(folder) is not None:
            jobs.setdefault(origin_of(folder), []).append(folder.name)
    if len(jobs) > 1:
        got = "; ".join(f"job {', '.join(n)}: {word or 'nothing'}" for word, n in jobs.items())
        raise RunFolderError(
            f"resume=auto: expected a sweep whose jobs all began from one run; got several in "
            f"{sweep_dir} ({got}). Go on with each by itself: mach train with its overrides, "
            f"out={sweep_dir / '<number>'} resume=auto"
        )
    return [word for word in jobs if word is not None]


def _but_resume(overrides: Mapping[str, str]) -> dict[str, str]:
    return {word: value for word, value in overrides.items() if _key(word) != "resume"}


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
