"""A channel over TCP, by gloo: the CPU's transport, and CUDA's where components share a GPU.

An edge is a two-rank process group of its own, built directly on the store (never `new_group`, in
which every rank would have to take part). Traps this file avoids, all seen with torch 2.13:

- a message longer than the posted receive aborts the receiving process: frames have one size;
- a send completes only when the peer has posted its receive: W receives are posted ahead, and a
  receive is posted again only when its frame was taken out, so these *are* the credits;
- `wait(timeout)` that times out closes every pair of the group: the deadlines are kept by the
  training thread, on a condition variable, and the edge's thread waits without one;
- a CUDA tensor's device pointer would go straight to the socket: payloads pass through pinned
  host memory, on a stream of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from threading import Condition, Thread
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mach.channels.base import (
    Edge,
    Header,
    Kind,
    Receiver,
    Sender,
    Slot,
    frame_bytes,
    wait_until,
)
from mach.errors import ChannelError, PeerLostError

# The edge's thread waits for as long as the run may take; the training thread has the deadline.
_FOREVER = timedelta(days=365)
_SOURCE, _TARGET, _TAG = 0, 1, 0


class Pair(Protocol):
    """What torch's type stubs do not tell of a process group's backend."""

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> dist.Work: ...


def _pair(edge: Edge, store: dist.Store, rank: int, timeout_s: float) -> Pair:
    """Connect the two ranks of an edge and pass one byte, so that the first frame finds it working.

    The timeout bounds the connecting alone.
    """
    try:
        pg = cast(Pair, dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=timeout_s)))
        byte = torch.zeros(1, dtype=torch.uint8)
        work = pg.send([byte], _TARGET, _TAG) if rank == _SOURCE else pg.recv([byte], _SOURCE, _TAG)
        work.wait(timedelta(seconds=timeout_s))
    except RuntimeError as error:
        other = edge.target if rank == _SOURCE else edge.source
        raise ChannelError(
            f"{edge.name}: could not connect to component {other} within {timeout_s:g} s: "
            f"{_reason(error)}"
        ) from error
    return pg


def _reason(error: BaseException | None) -> str:
    """What gloo says, without its source line and its advice."""
    return str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]


class _Staging:
    """Copies between a component's device and a slot; on CUDA, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.pinned = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.pinned else None

    def fill(self, slot: Slot, payload: Tensor) -> torch.cuda.Event | None:
        """Copy a payload into a slot. The event, if any, tells when the copy is done."""
        if self._stream is None:
            slot.payload.copy_(payload)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            slot.payload.copy_(payload, non_blocking=True)
            payload.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event

    def take(self, slot: Slot) -> Tensor:
        """A slot's payload on the device, in memory of its own; the slot is free on return."""
        if self._stream is None:
            return slot.payload.clone()
        # Only this copy is waited for, not the compute queued on the current stream.
        with torch.cuda.stream(self._stream):
            payload = slot.payload.to(self._device, non_blocking=True)
        self._stream.synchronize()
        payload.record_stream(torch.cuda.current_stream(self._device))
        return payload


class GlooSender(Sender):
    """Sending end: the training thread fills slots, the edge's thread sends them in order."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        device: torch.device,
        timeout_s: float,
        start_s: float,
        on_sent: Callable[[Header], None] = lambda header: None,
        on_error: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """`on_sent` (the target took a frame in) and `on_error` are called on the edge's thread."""
        super().__init__(edge)
        self._timeout_s, self._on_sent, self._on_error = timeout_s, on_sent, on_error
        self._staging = _Staging(device)
        self._pg = _pair(edge, store, _SOURCE, start_s)
        self._changed = Condition()
        self._free = deque(Slot(edge.payload, self._staging.pinned) for _ in range(edge.credits))
        self._full: deque[tuple[Slot, torch.cuda.Event | None]] = deque()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name=f"send {edge.name}", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        return bool(self._free) or self._error is not None

    def send(self, header: Header, payload: Tensor) -> None:
        self.check(header, payload)
        slot = self._free_slot(header)
        slot.header = header
        event = self._staging.fill(slot, payload.detach())
        self._enqueue(slot, event)
        self.bytes_sent += frame_bytes(self.edge.payload)

    def close(self) -> None:
        header = Header(Kind.END, 0)
        slot = self._free_slot(header)
        slot.header = header
        self._enqueue(slot, None)
        self._thread.join(self._timeout_s)
        if self._error is not None:
            raise self._lost(header)

    def _free_slot(self, header: Header) -> Slot:
        with self._changed:
            self.wait_s += wait_until(
                self._changed,
                self.ready,
                self._timeout_s,
                lambda: (
                    f"{self.edge.name} at {header}: component {self.edge.target} took none of "
                    f"the {self.edge.credits} frames before it"
                ),
            )
            if self._error is not None:
                raise self._lost(header)
            return self._free.popleft()

    def _enqueue(self, slot: Slot, event: torch.cuda.Event | None) -> None:
        with self._changed:
            self._full.append((slot, event))
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            kind = Kind.TRAIN
            while kind is not Kind.END:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._full))
                    slot, event = self._full.popleft()
                if event is not None:
                    event.synchronize()
                header = slot.header
                kind = header.kind
                self._pg.send([slot.buffer], _TARGET, _TAG).wait(_FOREVER)
                self._on_sent(header)
                with self._changed:
                    self._free.append(slot)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            self._on_error(error)

    def _lost(self, header: Header) -> ChannelError:
        return PeerLostError(
            f"{self.edge.name} at {header}: component {self.edge.target} is gone "
            f"({_reason(self._error)})"
        )


class GlooReceiver(Receiver):
    """Receiving end: W receives are always posted; the edge's thread waits for the oldest."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        device: torch.device,
        timeout_s: float,
        start_s: float,
        on_arrival: Callable[[Header], None] = lambda header: None,
        on_error: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """`on_arrival` and `on_error` are called on the edge's thread."""
        super().__init__(edge)
        self._timeout_s, self._on_arrival, self._on_error = timeout_s, on_arrival, on_error
        self._staging = _Staging(device)
        self._pg = _pair(edge, store, _TARGET, start_s)
        self._changed = Condition()
        self._posted: deque[tuple[Slot, dist.Work]] = deque()
        self._arrived: deque[Slot] = deque()
        self._error: BaseException | None = None
        for _ in range(edge.credits):
            self._post(Slot(edge.payload, self._staging.pinned))
        self._thread = Thread(target=self._run, name=f"receive {edge.name}", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        return bool(self._arrived) or self._error is not None

    def receive(self, expected: Header) -> Tensor:
        slot = self._next(expected)
        self.check(expected, slot.header)
        payload = self._staging.take(slot)
        with self._changed:
            self._post(slot)
            self._changed.notify_all()
        self.bytes_received += frame_bytes(self.edge.payload)
        return payload

    def close(self) -> None:
        header = self._next(Header(Kind.END, 0)).header
        if header.kind is not Kind.END:
            raise ChannelError(f"{self.edge.name}: expected the end of the stream, got {header}")
        self._thread.join(self._timeout_s)

    def _post(self, slot: Slot) -> None:
        self._posted.append((slot, self._pg.recv([slot.buffer], _SOURCE, _TAG)))

    def _next(self, expected: Header) -> Slot:
        with self._changed:
            self.wait_s += wait_until(
                self._changed,
                self.ready,
                self._timeout_s,
                lambda: (
                    f"{self.edge.name}: expected {expected} from component "
                    f"{self.edge.source}, got nothing"
                ),
            )
            if self._arrived:  # what came before the neighbour went is still good
                return self._arrived.popleft()
        raise PeerLostError(
            f"{self.edge.name} at {expected}: component {self.edge.source} is gone "
            f"({_reason(self._error)})"
        )

    def _run(self) -> None:
        try:
            kind = Kind.TRAIN
            while kind is not Kind.END:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._posted))
                    slot, work = self._posted.popleft()
                work.wait(_FOREVER)
                header = slot.header
                kind = header.kind
                with self._changed:
                    self._arrived.append(slot)
                    self._changed.notify_all()
                self._on_arrival(header)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            self._on_error(error)
