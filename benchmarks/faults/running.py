"""How is a run started, followed line by line, and ended so that nothing of it is left?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from settings import COMPONENTS
from timeline import Line

from mach.report.jsonl import Follower

MACH = [sys.executable, "-c", "import mach.cli; mach.cli.main()", "train"]
RANK = [sys.executable, "-m", "mach.train"]
DEADLINE_S = 240.0
"""Longest that any one run may take to get where it is waited for."""
_LOOK_S = 0.1
_END_S = 40.0
"""Longest that a run may take to end once it was told to: its components save."""


@dataclass(frozen=True)
class Process:
    """What to start."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Run:
    """A run that was started."""

    def __init__(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.folder, self.processes = folder, processes
        files = (folder / f"component-{k}.jsonl" for k in range(COMPONENTS))
        self._followers = [Follower(file) for file in files]
        self.logs: list[list[Line]] = [[] for _ in range(COMPONENTS)]
        """All that was logged: also what a restart drops from the files."""

    def read(self) -> None:
        """Take up what is new in the logs."""
        for follower, lines in zip(self._followers, self.logs, strict=True):
            last_s = lines[-1].time_s if lines else 0.0
            records = [record for record in follower.read() if "time" in record]
            lines += [Line.of(record) for record in records if record["time"] > last_s]

    def until(self, seen: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        """Follow the logs until something is seen in them.

        Raises:
            RuntimeError: the run ended before, or it took too long.
        """
        end_s = time.monotonic() + deadline_s
        while True:
            ended = any(process.poll() is not None for process in self.processes)
            self.read()
            if seen():
                return
            if ended:
                raise RuntimeError(f"the run ended too early:\n{self.said()}")
            if time.monotonic() > end_s:
                raise RuntimeError(f"not there after {deadline_s:g} s:\n{self.said()}")
            time.sleep(_LOOK_S)

    def watch(self, until_s: float) -> None:
        """Follow the logs until this time of the wall clock."""
        self.until(lambda: time.time() >= until_s)

    def wait(self, deadline_s: float) -> None:
        """Until the run has ended by itself, and well."""
        end_s = time.monotonic() + deadline_s
        for process in self.processes:
            try:
                code = process.wait(max(0.0, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"not done after {deadline_s:g} s:\n{self.said()}") from None
            if code:
                raise RuntimeError(f"the run ended with {code}:\n{self.said()}")

    def cpu_s(self) -> float:
        """CPU time that its living processes have used so far."""
        total = 0.0
        for parent in (psutil.Process(process.pid) for process in self.processes):
            for one in (parent, *parent.children(recursive=True)):
                with suppress(psutil.Error):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total

    def said(self) -> str:
        """The end of what its processes printed."""
        printed = sorted(self.folder.parent.glob("output-*"))
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in printed)


@contextmanager
def started(processes: Callable[[Path], Sequence[Process]]) -> Iterator[Run]:
    """Start a run in a folder of its own; leaving the `with` ends it.

    Args:
        processes: told the run folder, what to start.
    """
    with tempfile.TemporaryDirectory(prefix="mach-faults-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "run"
        living: list[subprocess.Popen[bytes]] = []
        try:
            for number, process in enumerate(processes(folder)):
                with (Path(scratch) / f"output-{number}").open("wb") as output:
                    living.append(
                        subprocess.Popen(
                            list(process.command),
                            cwd=scratch,
                            env={**_unlaunched(), **process.environment},
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            yield Run(folder, living)
        finally:
            _end(living)


def supervised(values: list[str]) -> Callable[[Path], Sequence[Process]]:
    """`mach train` with these overrides."""
    return lambda folder: [Process([*MACH, *values, f"out={folder}"])]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    end_s = time.monotonic() + _END_S
    for process in processes:
        try:
            process.wait(max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:  # whatever it has started is told of it by the kernel
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _unlaunched() -> dict[str, str]:
    """Our environment, without what a launcher above us may have set."""
    launched = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC")
    return {key: v for key, v in os.environ.items() if not key.startswith((*launched, "MACH_"))}
