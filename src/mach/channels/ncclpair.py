"""How do two GPUs exchange one tensor, and who may ask for it?

NCCL operations of one device must not be issued from several threads, so one thread per process,
the `NcclQueue`, issues them all and polls for their end. Each edge has an `NcclPair`, a two-rank
communicator with a stream of its own, warmed up when it is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from mach.channels.base import Edge
from mach.channels.pair import SOURCE, Pair
from mach.errors import ChannelError

_POLL_S = 100e-6
# Read when a communicator is made. The queue watches every operation and a dead neighbour is known
# by the control channel, so NCCL's watchdog may not end the process; NVLS takes multicast slots
# that point-to-point sends never use (NVIDIA/nccl issue 2077).
_ENVIRONMENT = {"TORCH_NCCL_BLOCKING_WAIT": "1", "NCCL_NVLS_ENABLE": "0"}


def may_share_gpus() -> bool:
    """Whether components may talk by NCCL from one GPU. NCCL refuses that unless it is asked for
    it, which works from 2.30 on (experimental; see its list of environment variables)."""
    return os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1"


Done = Callable[[BaseException | None], None]
"""Is told, on the NCCL thread, when an operation has ended: None, or what it failed with."""


@dataclass
class Operation:
    """One send or receive, from the request to its end."""

    pair: object
    """Whose it is. Of a pair they end in the order they were asked for."""
    issue: Callable[[], dist.Work]
    done: Done
    work: dist.Work | None = None

    def has_ended(self) -> bool:
        """Whether it has; then `done` has been told."""
        assert self.work is not None
        failed: BaseException | None = None
        try:
            if not self.work.is_completed():
                return False
        except RuntimeError as error:
            failed = error
        self.done(failed)
        return True


def still_running(operations: list[Operation]) -> list[Operation]:
    """Those that have not ended, the oldest first.

    Behind one of a pair that has not ended the next is not looked at: both may end between the two
    looks, and the younger one's payload would be taken for the older one's.
    """
    left: list[Operation] = []
    waiting: set[int] = set()
    for operation in operations:
        if id(operation.pair) in waiting or not operation.has_ended():
            left.append(operation)
            waiting.add(id(operation.pair))
    return left


class NcclQueue:
    """The one thread that issues NCCL operations in this process and sees them end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._requests: SimpleQueue[Operation] = SimpleQueue()
        self._thread = Thread(target=self._run, name="nccl", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation) -> None:
        """Issue it on the NCCL thread."""
        self._requests.put(operation)

    def _run(self) -> None:
        torch.cuda.set_device(self.device)
        running: list[Operation] = []
        while True:
            try:
                request = self._requests.get(timeout=_POLL_S) if running else self._requests.get()
                self._issue(request, running)
            except Empty:
                pass
            running = still_running(running)

    @staticmethod
    def _issue(operation: Operation, running: list[Operation]) -> None:
        try:
            operation.work = operation.issue()
            running.append(operation)
        except RuntimeError as error:
            operation.done(error)


class NcclPair:
    """The two-rank communicator of an edge and the stream its operations run on."""

    def __init__(
        self, edge: Edge, store: dist.Store, queue: NcclQueue, rank: int, timeout_s: float
    ) -> None:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout_s)
        options.is_high_priority_stream = True
        options.config.max_ctas = 2  # a payload of megabytes needs no more; compute keeps its SMs
        self._queue, self._peer = queue, 1 - rank
        self._stream = torch.cuda.Stream(queue.device)
        try:
            with torch.cuda.device(queue.device):
                group = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, 2, options)
                group.eager_connect_single_device(queue.device)
        except RuntimeError as error:
            raise ChannelError(f"{edge.name}: NCCL made no communicator: {error}") from error
        self._pg = cast(Pair, group)
        try:
            self._warm_up(edge, rank, timeout_s)
        except BaseException:  # nobody holds this pair yet
            self.abort()
            raise

    def send(self, payload: Tensor, ready: torch.cuda.Event, done: Done) -> None:
        """Have it sent, once the event has come, and hear of the end. Returns at once."""
        self._submit(self._pg.send, payload, ready, done)

    def receive(self, payload: Tensor, free: torch.cuda.Event, done: Done) -> None:
        """Have it received into `payload`, likewise. The ends come in order."""
        self._submit(self._pg.recv, payload, free, done)

    def abort(self) -> None:
        """End the kernels that wait for the other end, which may never come."""
        self._pg.abort()

    def _submit(
        self,
        operation: Callable[[list[Tensor], int, int], dist.Work],
        payload: Tensor,
        after: torch.cuda.Event,
        done: Done,
    ) -> None:
        def issue() -> dist.Work:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(after)
                return operation([payload], self._peer, 0)

        self._queue.submit(Operation(self, issue, done))

    def _warm_up(self, edge: Edge, rank: int, timeout_s: float) -> None:
        """The first message connects the transport, which can take a second; do it now."""
        device = self._queue.device
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        answers: SimpleQueue[BaseException | None] = SimpleQueue()
        exchange = self.send if rank == SOURCE else self.receive
        exchange(byte, event, answers.put)
        try:
            error = answers.get(timeout=timeout_s)
        except Empty:
            error = TimeoutError(f"no answer within {timeout_s:g} s")
        if error is not None:
            raise ChannelError(f"{edge.name}: the first NCCL message failed: {error}") from error
