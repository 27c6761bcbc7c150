"""Where does a run keep its files, and whose folder is it?

runs/<name>/
  config.yaml              resolved, reloadable
  component-<k>.jsonl      one line per logged step
  checkpoints/step-<n>/    see mach.checkpoint
  logs/                    what the ranks printed
  trace-<k>.json           what component k did at every moment (report.trace)
  events.jsonl             what happened to the components of a supervised run
  launcher.lock            held by the `mach train` (or torchrun's rank 0) that runs here
  result.json              written once, at the end, atomically
  exports/                 see mach.export
  consolidated/            see mach.checkpoint.consolidated
  wandb/
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from mach.config import Config
from mach.configfile import fingerprint, load, to_yaml
from mach.errors import ConfigError, FolderInUseError, RunFolderError

CONFIG, RESULT, CHECKPOINTS, LOGS = "config.yaml", "result.json", "checkpoints", "logs"
EVENTS, LOCK = "events.jsonl", "launcher.lock"

_ENDED = "ended"
"""In the lock of a launcher that left."""
_ENDING_S = 30.0
"""Longest the components of a launcher that was killed take to save and end."""


def check(run_dir: Path, config: Config) -> Config:
    """Whether this run may have the folder: a new one, or its own with `resume=auto`.

    Returns:
        The config; in its own folder, with the `resume` that the run began from.

    Raises:
        RunFolderError: it holds a run, and `resume=auto` was not asked for.
        ConfigError: `resume=auto`, and the run in the folder had another config.
    """
    if not holds_run(run_dir):
        return config
    if config.resume != "auto":
        raise _taken(run_dir)
    before = load(run_dir / CONFIG)
    _same_run(run_dir, before, config)
    return replace(config, resume=before.resume or config.resume)


def claim(run_dir: Path, config: Config, new: bool = False) -> None:
    """Make the folder this run's own: write the config that its components will read.

    Args:
        new: there was no run in it when it was checked, a while ago.

    Raises:
        RunFolderError: it cannot be written, or another run has taken it since.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / LOCK).open("a+") as file:
            _take(file, run_dir)  # given back: from here on the config keeps others out
            if new and holds_run(run_dir):
                raise _taken(run_dir)
            write_atomically(run_dir / CONFIG, to_yaml(config))
    except OSError as error:
        raise RunFolderError(
            f"out={run_dir}: expected a folder that can be written; {error.strerror or error}. "
            "Choose another `out`."
        ) from error


def check_free(run_dir: Path) -> None:
    """Whether nobody runs in this folder now. Touches nothing in it.

    A launcher that was killed still has the folder until its components have saved and ended; that
    is waited for.

    Raises:
        FolderInUseError: somebody does; names the process.
    """
    try:
        with (run_dir / LOCK).open("r") as file:
            _take(file, run_dir)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # nobody has run here, or `claim` says so


@contextmanager
def hold(run_dir: Path) -> Iterator[int]:
    """Keep other launchers out of the folder.

    The lock belongs to this process and to those that are given the open file that this yields:
    until the last has ended.

    Raises:
        FolderInUseError: another one is in there; names the process.
    """
    with (run_dir / LOCK).open("a+") as file:
        _take(file, run_dir)
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        try:
            yield file.fileno()
        finally:  # a sweep's process goes on to its next job
            with suppress(OSError):
                file.truncate(0)
                file.write(_ENDED)


def _take(file: IO[str], run_dir: Path) -> None:
    deadline = time.monotonic() + _ENDING_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
        file.seek(0)
        pid, _, host = file.read().strip().removeprefix(_ENDED).partition(" ")
        if not _has_died(pid, host) or time.monotonic() > deadline:
            raise FolderInUseError(
                f"out={run_dir}: expected a folder that nobody runs in, got one that process "
                f"{pid or '?'} on {host or 'this machine'} runs in. Wait for it, or stop it."
            )
        time.sleep(0.1)


def _taken(run_dir: Path) -> RunFolderError:
    return RunFolderError(
        f"out={run_dir}: expected a folder without a run, got one that holds a run. "
        "Choose another `out`, or go on with the run there: resume=auto"
    )


def launcher_ended(run_dir: Path) -> bool:
    """Whether the `mach train` that ran here, or rank 0 under somebody else's torchrun, is known to
    have ended, well or not.

    Not known, and so False: where nobody held the folder, or from another machine.
    """
    try:
        text = (run_dir / LOCK).read_text().strip()
    except OSError:
        return False
    pid, _, host = text.partition(" ")
    return text == _ENDED or _has_died(pid, host)


def begun_s(run_dir: Path) -> float:
    """When the launcher that runs here began, in seconds since 1970; 0 where that is not known, or
    none does."""
    try:
        with (run_dir / LOCK).open() as file:
            return 0.0 if file.read() in ("", _ENDED) else os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return 0.0


def _has_died(pid: str, host: str) -> bool:
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:  # one that nobody has waited for, as below a container's process 1
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False


def holds_run(run_dir: Path) -> bool:
    """Whether a run lives in this folder."""
    try:
        return (run_dir / CONFIG).exists() or (run_dir / CHECKPOINTS).exists()
    except OSError:  # below a folder we may not read: `claim` says so
        return False


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run can go on from something it has saved: a manifest says so (mach.checkpoint)."""
    return any((run_dir / CHECKPOINTS).glob("step-*/*.json"))


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The result of the run in this folder, or None while it has none.

    Raises:
        RunFolderError: it has one that cannot be read.
    """
    path = run_dir / RESULT
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read as a result: {error}") from error


def write_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Write the run's result."""
    write_atomically(run_dir / RESULT, json.dumps(result, indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers, and a crash, see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # on a full disk it would take what room there is
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `out` at the end, in place of what is there; or is gone
    if that is not reached.

    Raises:
        RunFolderError: it cannot be written.
    """
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except OSError as error:
        raise RunFolderError(
            f"out={out}: expected a folder that can be written; {error.strerror or error}. Choose "
            "another `out`."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _same_run(run_dir: Path, before: Config, config: Config) -> None:
    if fingerprint(before) != fingerprint(config):
        raise ConfigError(
            f"resume=auto: the run in {run_dir} has another config: "
            f"{'; '.join(differences(before, config))}. Repeat its overrides, or begin a new run "
            f"from it: resume={run_dir} out=.."
        )


def differences(before: Config, now: Config) -> list[str]:
    """`key was a, is b` for every value that differs, `out` and `resume` aside."""
    old, new = flat(asdict(before)), flat(asdict(now))
    return [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in ("out", "resume")
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys: `model.width` of `{"model": {"width": ..}}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
