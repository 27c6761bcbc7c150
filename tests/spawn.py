"""Starts commands that start processes, with a deadline, and shows that none of them is left.

Every process of a run has MACH_RUN_DIR in its environment; that is how it is found, whoever its
parent is by then.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MACH = [str(Path(sys.executable).with_name("mach"))]
TRAIN = [*MACH, "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

DEADLINE_S = 120.0
"""Longest any one command here may take: ten times what it takes on an idle laptop."""
END_S = 10.0
"""Longest a process may live on after the one that started it has ended."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    command: list[str]
    code: int
    stdout: str
    stderr: str
    duration_s: float

    def __str__(self) -> str:
        return (
            f"{' '.join(self.command)}\nended with {self.code} after {self.duration_s:.1f} s\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )


class Command:
    """A command in a session of its own; leaving the `with` ends all that it started."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        """
        Args:
            folder: where it runs; what it prints is kept there too.
            environment: on top of this process's own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.command = command
        self._folder = folder
        self._printed = [folder / f".{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self._started = time.monotonic()
        with self._printed[0].open("wb") as out, self._printed[1].open("wb") as err:
            self.process = psutil.Popen(
                command,
                cwd=folder,
                env={**_clean_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait(self, deadline_s: float = DEADLINE_S) -> Done:
        """Wait until it has ended; after `deadline_s` seconds end it and fail with its output."""
        try:
            code = self.process.wait(deadline_s)
        except psutil.TimeoutExpired:
            self._end()
            raise AssertionError(f"not done within {deadline_s:g} s: {self.so_far(-1)}") from None
        return self.so_far(code)

    def until(self, predicate: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        """Wait for something that the running command does; fail when it ends before."""

        def seen() -> bool:
            done = predicate()
            assert done or self.process.poll() is None, f"too early: {self.wait()}"
            return done

        until(seen, deadline_s, lambda: str(self.so_far(-1)))

    def so_far(self, code: int) -> Done:
        """What it has printed."""
        out, err = (path.read_text(errors="replace") for path in self._printed)
        return Done(self.command, code, out, err, time.monotonic() - self._started)

    def _end(self) -> None:
        mine = [self.process] if self.process.poll() is None else []
        with suppress(psutil.NoSuchProcess):
            mine += self.process.children(recursive=True)
        mine += processes_of(self._folder)  # also those that have lost their parent
        for process in mine:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(mine, timeout=END_S)


def run(
    command: list[str], folder: Path, deadline_s: float = DEADLINE_S, **environment: str
) -> Done:
    """Run a command to its end."""
    with Command(command, folder, **environment) as started:
        return started.wait(deadline_s)


def until(
    predicate: Callable[[], bool],
    deadline_s: float,
    describe: Callable[[], str] = lambda: "it did not happen",
    every_s: float = 0.01,
) -> None:
    """Look every `every_s` seconds until `predicate` holds; fail after `deadline_s`."""
    never = threading.Event()
    end = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < end, f"after {deadline_s:g} s: {describe()}"
        never.wait(every_s)


# --- ranks ---------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living ranks of every run in or below `folder`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            run_dir = process.environ().get("MACH_RUN_DIR")
            if run_dir and (process.cwd() / Path(run_dir)).is_relative_to(folder):
                found.append(process)
    return found


def component_of(process: psutil.Process) -> int | None:
    """Which one it is: by its name under `mach train`, by its environment under torchrun."""
    forked = re.fullmatch(r"mach-(\d+)", process.name())
    started = process.environ().get("MACH_COMPONENT")
    return int(forked[1]) if forked else int(started) if started else None


def rank_of(run_dir: Path, component: int) -> psutil.Process | None:
    """The process of one component, once it has introduced itself."""
    for process in processes_of(run_dir):
        with suppress(psutil.Error):
            if component_of(process) == component:
                return process
    return None


def assert_none_left(folder: Path, within_s: float = END_S) -> None:
    """No rank of a run in `folder` is alive, or will be in a moment."""
    _, alive = psutil.wait_procs(processes_of(folder), timeout=within_s)
    assert not alive, f"left behind: {[p.cmdline() for p in alive]}"


def kill(process: psutil.Process | psutil.Popen) -> None:
    """As `kill -9` does."""
    process.send_signal(signal.SIGKILL)


def _clean_environment() -> dict[str, str]:
    """Ours, without what a launcher above us may have set."""
    launched = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "GROUP_",
        "ROLE_",
        "MASTER_",
        "TORCHELASTIC",
        "MACH_",
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launched)}
    return {**kept, "COLUMNS": "100"}
