"""How do the two ends of a gloo edge connect, learn of a break, and let go?

An edge is a two-rank process group of its own, built directly on the store (never `new_group`, in
which every rank would have to take part).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Condition, Thread, current_thread
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mach.channels.base import Edge
from mach.channels.listen import LOOPBACK, gloo_device
from mach.errors import ChannelError

SOURCE, TARGET = 0, 1
FRAMES, RECEIPTS, _WATCH, _NEVER = range(4)
"""Tags: what the source sends, what the target sends, and two that nobody sends on."""
FOREVER = timedelta(days=365)
"""What the edge's threads wait for; the deadlines are the training thread's."""
_ABORT_S = 5.0
"""Longest that an aborted end waits for its threads, which wake within milliseconds."""


class Pair(Protocol):
    """What torch's type stubs do not tell of a process group's backend."""

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...

    def abort(self) -> None: ...


class Wire:
    """One end's connection: the pair, the threads that wait on it, and the error that ended it."""

    def __init__(
        self,
        pair: Pair,
        rank: int,
        on_error: Callable[[BaseException], None],
        on_change: Callable[[], None] | None,
    ) -> None:
        self._pair: Pair | None = pair
        self._rank, self._on_error, self._on_change = rank, on_error, on_change
        self._threads: list[Thread] = []
        self.changed = Condition()
        """Held to look at or change what the edge's threads and the training thread share."""
        self.error: BaseException | None = None

    @property
    def pair(self) -> Pair:
        assert self._pair is not None, "an aborted edge is not used"
        return self._pair

    def start(self, name: str, run: Callable[[], None]) -> Thread:
        """Call `run` on a thread of the edge's own; what it raises breaks the edge."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.broke(error)

        thread = Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def listen(self) -> None:
        """Wait, for ever, on a tag that nobody sends on: until the connection breaks."""
        byte = torch.zeros(1, dtype=torch.uint8)
        self.pair.recv([byte], 1 - self._rank, _WATCH).wait(FOREVER)

    def hear(self) -> None:
        """Tell whoever listens that something has changed."""
        if self._on_change is not None:
            self._on_change()

    def broke(self, error: BaseException) -> None:
        """Keep the first error and tell everybody."""
        with self.changed:
            if self.error is not None:
                return
            self.error = error
            self.changed.notify_all()
        self._on_error(error)
        self.hear()

    def abort(self) -> None:
        """End the connection and the threads, and give the sockets back."""
        self.broke(ChannelError("this end has let go of the edge"))
        pair = self._pair
        if pair is None:  # somebody else was first
            return
        sever(pair, self._rank)
        for thread in self._threads:
            if thread is not current_thread():
                thread.join(_ABORT_S)
        if self.error is not None:
            self.error.__traceback__ = None  # its frames would hold the pair
        # The last one closes the sockets: here, as it takes 10 ms, not on the training thread.
        self._pair = pair = None


def connect_pair(
    edge: Edge, store: dist.Store, rank: int, timeout_s: float, listen: str = LOOPBACK
) -> Pair:
    """Connect the two ranks of an edge and pass one byte, so that the first frame finds it working.

    The timeout bounds the connecting alone.
    """
    timeout = timedelta(seconds=timeout_s)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [gloo_device(listen)]
    options._threads = 1  # they serve collectives, of which there are none
    options._timeout = timeout
    try:
        pair = cast(Pair, dist.ProcessGroupGloo(store, rank, 2, options))
        byte = torch.zeros(1, dtype=torch.uint8)
        send = rank == SOURCE
        work = pair.send([byte], TARGET, FRAMES) if send else pair.recv([byte], SOURCE, FRAMES)
        work.wait(timeout)
    except RuntimeError as error:
        other = edge.target if rank == SOURCE else edge.source
        raise ChannelError(
            f"{edge.name}: could not connect to component {other} within {timeout_s:g} s: "
            f"{reason(error)}"
        ) from error
    return pair


def sever(pair: Pair, rank: int) -> None:
    """Close the connection under whoever waits on it, here and at the other end.

    Neither abort() nor shutdown() does that. A wait that times out does, by accident of gloo: it
    closes every connection of its context (torch 2.13: waiters here wake after 2 ms, the other
    end's after 10 ms).
    """
    with suppress(RuntimeError):  # the timeout; or it was broken before
        byte = torch.zeros(1, dtype=torch.uint8)
        pair.recv([byte], 1 - rank, _NEVER).wait(timedelta(milliseconds=1))


def reason(error: BaseException | None) -> str:
    """What gloo says, without its source line and its advice."""
    return str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0]
