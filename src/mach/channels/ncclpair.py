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


@dataclass
class _Operation:
    """One send or receive, from the request to its end."""

    issue: Callable[[], dist.Work]
    done: Callable[[BaseException | None], None]
    work: dist.Work | None = None


class NcclQueue:
    """The one thread that issues NCCL operations in this process and sees them end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._requests: SimpleQueue[_Operation] = SimpleQueue()
        self._thread = Thread(target=self._run, name="nccl", daemon=True)
        self._thread.start()

    def submit(
        self, issue: Callable[[], dist.Work], done: Callable[[BaseException | None], None]
    ) -> None:
        """Call `issue` on the NCCL thread, and `done` when what it started has ended or failed."""
        self._requests.put(_Operation(issue, done))

    def _run(self) -> None:
        torch.cuda.set_device(self.device)
        running: list[_Operation] = []
        while True:
            try:
                request = self._requests.get(timeout=_POLL_S) if running else self._requests.get()
                self._issue(request, running)
            except Empty:
                pass
            running = [operation for operation in running if not self._ended(operation)]

    @staticmethod
    def _issue(operation: _Operation, running: list[_Operation]) -> None:
        try:
            operation.work = operation.issue()
            running.append(operation)
        except RuntimeError as error:
            operation.done(error)

    @staticmethod
    def _ended(operation: _Operation) -> bool:
        assert operation.work is not None
        try:
            if not operation.work.is_completed():
                return False
            operation.done(None)
        except RuntimeError as error:
            operation.done(error)
        return True


class NcclPair:
    """The two-rank communicator of an edge and the stream its operations run on."""

    def __init__(
        self, edge: Edge, store: dist.Store, queue: NcclQueue, rank: int, timeout_s: float
    ) -> None:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout_s)
        options.is_high_priority_stream = True
        options.config.max_ctas = 2  # a payload of megabytes needs no more; compute keeps its SMs
        self._peer = 1 - rank
        self._stream = torch.cuda.Stream(queue.device)
        try:
            with torch.cuda.device(queue.device):
                group = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, 2, options)
                group.eager_connect_single_device(queue.device)
        except RuntimeError as error:
            raise ChannelError(f"{edge.name}: NCCL made no communicator: {error}") from error
        self._pg = cast(Pair, group)
        try:
            self._warm_up(edge, queue, rank, timeout_s)
        except BaseException:  # nobody holds this pair yet
            self.abort()
            raise

    def send(self, payload: Tensor, ready: torch.cuda.Event) -> dist.Work:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            return self._pg.send([payload], self._peer, 0)

    def receive(self, payload: Tensor, free: torch.cuda.Event) -> dist.Work:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            return self._pg.recv([payload], self._peer, 0)

    def abort(self) -> None:
        """End the kernels that wait for the other end, which may never come."""
        self._pg.abort()

    def _warm_up(self, edge: Edge, queue: NcclQueue, rank: int, timeout_s: float) -> None:
        """The first message connects the transport, which can take a second; do it now."""
        byte = torch.zeros(1, dtype=torch.uint8, device=queue.device)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(queue.device))
        answers: SimpleQueue[BaseException | None] = SimpleQueue()
        operation = self.send if rank == SOURCE else self.receive
        queue.submit(lambda: operation(byte, event), answers.put)
        try:
            error = answers.get(timeout=timeout_s)
        except Empty:
            error = TimeoutError(f"no answer within {timeout_s:g} s")
        if error is not None:
            raise ChannelError(f"{edge.name}: the first NCCL message failed: {error}") from error
