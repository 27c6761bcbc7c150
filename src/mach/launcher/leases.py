"""Which part of a machine is a job's own while other jobs of its sweep run beside it?

    <sweep>/.leases/<host>/
      share-<s>.lock     whoever holds it has the s-th part of the cores; launch.parallel of them
      gpu-<name>.lock    whoever holds it has this GPU
      gpus.lock          whoever holds it is the next to get GPUs; the others wait behind it

The locks are the kernel's: a job that dies, however it dies, has returned all. One job at a time
collects GPUs, until it has as many as it needs, so that a large job does not starve behind small
ones; the GPUs it waits for are given back by jobs that need nothing more, so no two jobs can wait
for each other.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mach.errors import LeaseError, RunFolderError
from mach.topology import share_cores

LEASES = ".leases"
_LOOK_S = 0.2
"""Time between two looks for what is free."""

_last_share = 0
"""What this process had last: its threads are bound there."""


@dataclass(frozen=True)
class Lease:
    """A job's part of the machine."""

    cores: tuple[int, ...] | None
    """None: all of them, as there are fewer cores than jobs."""
    gpus: tuple[str, ...]
    """Names as in CUDA_VISIBLE_DEVICES."""


@contextmanager
def lease(
    sweep_dir: Path,
    parallel: int,
    cores: list[int],
    gpus: Sequence[str],
    needed_gpus: int,
    timeout_s: float,
) -> Iterator[Lease]:
    """Wait for a part of this machine, and hold it.

    Args:
        parallel: jobs at once.
        cores: those this sweep may use.
        gpus: the same.
        needed_gpus: how many of them the job takes.
        timeout_s: longest wait for either.

    Raises:
        LeaseError: others held them for all this time.
    """
    folder = sweep_dir / LEASES / socket.gethostname()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    with ExitStack() as held:
        share = _take_share(folder, parallel, timeout_s, held)
        mine = share_cores(cores, share, parallel, None, pin=True).bound
        taken = _take_gpus(folder, gpus, needed_gpus, timeout_s, held) if needed_gpus else ()
        yield Lease(mine if parallel > 1 else None, tuple(taken))


def _take_share(folder: Path, parallel: int, timeout_s: float, held: ExitStack) -> int:
    global _last_share
    order = sorted(range(parallel), key=lambda share: share != _last_share)
    locks = {str(share): folder / f"share-{share}.lock" for share in order}
    what = f"a place among {parallel} jobs at once (launch.parallel)"
    _last_share = int(_take(locks, 1, what, timeout_s, held)[0])
    return _last_share


def _take_gpus(
    folder: Path, gpus: Sequence[str], number: int, timeout_s: float, held: ExitStack
) -> list[str]:
    locks = {gpu: folder / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', gpu)}.lock" for gpu in gpus}
    what = f"{number} of {len(gpus)} GPUs"
    with ExitStack() as turn:
        _take({"": folder / "gpus.lock"}, 1, f"its turn for {what}", timeout_s, turn)
        return _take(locks, number, what, timeout_s, held)


def _take(
    locks: dict[str, Path], number: int, what: str, timeout_s: float, held: ExitStack
) -> list[str]:
    """Take so many of the locks, as they become free. Returns their names."""
    taken: list[str] = []
    deadline_s = time.monotonic() + timeout_s
    told = False
    while True:
        for name, path in locks.items():
            if len(taken) < number and name not in taken and _try(path, held):
                taken.append(name)
        if len(taken) == number:
            return taken
        if time.monotonic() > deadline_s:
            folder = next(iter(locks.values())).parent
            raise LeaseError(
                f"{folder}: expected {what} within launch.queue_s={timeout_s:g}; other jobs of "
                "this sweep hold what is missing. Wait for them, stop them, or raise launch.queue_s"
            )
        if not told:
            told = True
            print(f"Waits for {what}", flush=True)
        time.sleep(_LOOK_S)


def _try(path: Path, held: ExitStack) -> bool:
    try:
        held.enter_context(FileLock(path, timeout=0))
    except Timeout:
        return False
    return True
