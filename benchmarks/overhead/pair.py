"""How do two processes measure side by side, a core each, and never outlive the benchmark?"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from mach.rank import available_cores

SIZE = 2
START_S = 60.0
"""Longest wait for a process to come up, and for the other one at a barrier."""


@dataclass
class Peer:
    """One of the two processes: rank k is component k."""

    rank: int
    store: dist.Store
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _barriers: int = 0

    def barrier(self) -> None:
        """Go on together with the other process."""
        key = f"barrier/{self._barriers}"
        self._barriers += 1
        if self.store.add(f"{key}/count", 1) == SIZE:
            self.store.set(f"{key}/go", "1")
        self.store.wait([f"{key}/go"], timedelta(seconds=START_S))


Report = Callable[[Any], None]


def run_pair(
    target: Callable[..., None],
    arguments: tuple[Any, ...] = (),
    *,
    silence_s: float = 120.0,
    told: Callable[[int, Any], None] = lambda rank, item: None,
) -> list[list[Any]]:
    """Run `target(peer, report, *arguments)` in two processes.

    Args:
        target: a function of a module; what it reports is collected.
        arguments: given to both.
        silence_s: longest time between two reports of either process.
        told: called with every report as it comes.

    Returns:
        What each process reported, in order.

    Raises:
        RuntimeError: a process failed, ended early or was silent for too long.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the new processes import torch
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    items: list[list[Any]] = [[] for _ in range(SIZE)]
    with ExitStack() as stack:
        pipes: dict[Connection, int] = {}
        for rank in range(SIZE):
            ours, theirs = context.Pipe(duplex=False)
            stack.enter_context(closing(ours))
            process = context.Process(
                target=_enter, args=(rank, store.port, target, arguments, theirs), daemon=True
            )
            process.start()
            stack.callback(_end, process)
            theirs.close()
            pipes[ours] = rank
        deadline = time.monotonic() + START_S + silence_s
        while pipes:
            ready = wait(list(pipes), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"processes {sorted(pipes.values())}: silent for {silence_s} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = pipes[pipe]
                try:
                    kind, item = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"process {rank} ended before its work") from None
                if kind == "failed":
                    raise RuntimeError(f"process {rank} failed:\n{item}")
                if kind == "done":
                    del pipes[pipe]
                    continue
                items[rank].append(item)
                told(rank, item)
                deadline = time.monotonic() + silence_s
    return items


def _end(process: Any) -> None:
    process.join(2.0)
    if process.is_alive():
        process.kill()
        process.join(10.0)


def _enter(
    rank: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...], pipe: Connection
) -> None:
    """A process's whole life."""
    settle(rank)
    try:
        store = dist.TCPStore(
            "localhost", port, is_master=False, timeout=timedelta(seconds=START_S)
        )
        target(Peer(rank, store), lambda item: pipe.send(("item", item)), *arguments)
        pipe.send(("done", None))
    except BaseException:
        # Where the benchmark was killed this fails, too: an orphan ends at its next report.
        with suppress(OSError):
            pipe.send(("failed", traceback.format_exc()))
    finally:
        os._exit(0)  # a thread that waits in gloo would abort the interpreter's own shutdown


def settle(rank: int) -> None:
    """One core and one compute thread; before any other thread exists, so that all share them."""
    cores = available_cores()
    if len(cores) >= SIZE and hasattr(os, "sched_setaffinity"):
        # Far apart: neighbouring numbers may be two threads of one core.
        os.sched_setaffinity(0, {cores[rank * (len(cores) // SIZE)]})
    torch.set_num_threads(1)
