"""A channel between two GPUs, by NCCL point-to-point sends.

A pending NCCL send or receive is a kernel that spins on the GPU until its peer arrives. So every
edge has a control channel beside it, a gloo channel whose frames are headers alone. Its credits are
the edge's credits, its end of stream and its errors the edge's. A header that has arrived means "my
payload is ready and you have room": only then are send and receive issued, by
mach.channels.ncclpair and at almost the same moment, so no kernel spins for long and no watchdog
sees an old operation.

    # source                                    target
    # encode the payload into a slot, event e
    # header -- control channel (gloo) -------> header has arrived: a slot is free
    # stream waits e; ncclSend(slot) <-receipt- stream waits for the slot's last reader; ncclRecv
    # a credit is back <--------------receipt-- the payload was taken out
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mach.channels.base import Edge, Header, Kind, Receiver, Sender, wait_until
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.listen import LOOPBACK
from mach.channels.ncclpair import NcclPair, NcclQueue
from mach.channels.pair import SOURCE, TARGET
from mach.errors import PeerLostError
from mach.shapes import TensorSpec

_HEADER_ONLY = TensorSpec((0,))
_End = TypeVar("_End", GlooSender, GlooReceiver)


def _control(
    end: Callable[..., _End],
    edge: Edge,
    store: dist.Store,
    pair: NcclPair,
    timeout_s: float,
    start_s: float,
    **hears: Any,
) -> _End:
    """An end of the channel of an edge's headers. Where it does not come up nobody will hold the
    pair, which is aborted.

    Args:
        hears: callbacks and where to listen, as for the end.
    """
    headers = Edge(edge.source, edge.target, _HEADER_ONLY, edge.credits)
    try:
        return end(
            headers,
            dist.PrefixStore("control", store),
            torch.device("cpu"),
            timeout_s,
            start_s,
            **hears,
        )
    except BaseException:
        pair.abort()
        raise


class NcclSender(Sender):
    """Sending end: a ring of slots on the GPU, each sent once its header was taken in."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        queue: NcclQueue,
        timeout_s: float,
        start_s: float,
        on_change: Callable[[], None] | None = None,
        listen: str = LOOPBACK,
    ) -> None:
        """`on_change` and `listen` as for the GlooSender that is the control channel."""
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s
        self._on_change = on_change or (lambda: None)
        self._pair = NcclPair(edge, store, queue, SOURCE, start_s)
        self._free = deque(_room(edge, queue.device) for _ in range(edge.credits))
        self._announced: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self._changed = Condition()
        self._error: BaseException | None = None
        self._control = _control(
            GlooSender,
            edge,
            store,
            self._pair,
            timeout_s,
            start_s,
            on_arrival=self._arrived,
            on_error=self._fail,
            on_change=on_change and self._hear,
            listen=listen,
        )

    @property
    def alive(self) -> bool:
        return self._error is None and self._control.alive

    def ready(self) -> bool:
        return self._error is not None or (bool(self._free) and self._control.ready())

    def send(self, header: Header, payload: Tensor) -> None:
        self.check(header, payload)
        slot = self._free_slot(header)
        self.edge.encoding(header.kind).encode(payload.detach(), slot)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._queue.device))
        with self._changed:
            self._announced.append((slot, event))
        self._control.send(header, torch.empty(0))
        self.bytes_sent += self.edge.frame_bytes(header.kind)

    def close(self) -> None:
        with self._changed:
            wait_until(
                self._changed,
                lambda: len(self._free) == self.edge.credits or self._error is not None,
                self._timeout_s,
                lambda: f"{self.edge.name}: frames on their way to component {self.edge.target}",
            )
        self._control.close()

    def abort(self) -> None:
        self._control.abort()
        self._pair.abort()

    def _hear(self) -> None:
        """On a thread of the edge: a slot is free, a credit came back, or it broke."""
        with self._changed:
            self._changed.notify_all()
        self._on_change()

    def _arrived(self, header: Header) -> None:
        """On the control channel's thread: the target has room, so its receive is about to run."""
        if header.kind is Kind.END:
            return
        with self._changed:
            slot, event = self._announced.popleft()
        used = slot[: self.edge.encoding(header.kind).nbytes]

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
            with self._changed:
                self._free.append(slot)
            self._hear()

        self._pair.send(used, event, done)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
        self._hear()

    def _free_slot(self, header: Header) -> Tensor:
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
                raise PeerLostError(
                    f"{self.edge.name} at {header}: component {self.edge.target} is gone "
                    f"({self._error})"
                )
            return self._free.popleft()


@dataclass
class _Incoming:
    """A slot of the receiving end."""

    wire: Tensor
    free: torch.cuda.Event
    """Recorded after the last reader of these bytes."""


class NcclReceiver(Receiver):
    """Receiving end: a header that comes in starts the receive of its payload."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        queue: NcclQueue,
        timeout_s: float,
        start_s: float,
        on_change: Callable[[], None] | None = None,
        listen: str = LOOPBACK,
    ) -> None:
        """`on_change` and `listen` as for the GlooReceiver that is the control channel."""
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s
        self._on_change = on_change or (lambda: None)
        self._pair = NcclPair(edge, store, queue, TARGET, start_s)
        self._free = deque(self._new_slot() for _ in range(edge.credits))
        self._arrived: deque[tuple[Header, _Incoming]] = deque()
        self._on_its_way = 0
        """Payloads whose header has come."""
        self._newest: Header | None = None
        self._ended = False
        self._changed = Condition()
        self._error: BaseException | None = None
        self._control = _control(
            GlooReceiver,
            edge,
            store,
            self._pair,
            timeout_s,
            start_s,
            on_arrival=self._announced,
            on_error=self._fail,
            on_change=on_change,
            listen=listen,
            tells_arrival=True,
        )

    @property
    def alive(self) -> bool:
        return self._error is None and not (self._ended and self._on_its_way == 0)

    @property
    def newest(self) -> Header | None:
        return self._newest

    def ready(self) -> bool:
        return bool(self._arrived) or not self.alive

    def poll(self) -> tuple[Header, Tensor] | None:
        with self._changed:
            if not self._arrived:
                return None
            header, slot = self._arrived.popleft()
        payload = self.edge.encoding(header.kind).copy_out(slot.wire)
        slot.free.record(torch.cuda.current_stream(self._queue.device))
        with self._changed:
            self._free.append(slot)
        self._control.poll()  # gives the credit back
        self.bytes_received += self.edge.frame_bytes(header.kind)
        return header, payload

    def close(self) -> None:
        self._control.close()

    def abort(self) -> None:
        self._control.abort()
        self._pair.abort()

    def _announced(self, header: Header) -> None:
        """On the control channel's thread: the source is about to send."""
        if header.kind is Kind.END:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            return
        with self._changed:
            slot = self._free.popleft()
            self._on_its_way += 1
        used = slot.wire[: self.edge.encoding(header.kind).nbytes]

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
            with self._changed:
                self._on_its_way -= 1
                if self._error is None:  # an aborted receive ends like one that has succeeded
                    self._arrived.append((header, slot))
                    self._newest = header
                self._changed.notify_all()
            self._on_change()

        self._pair.receive(used, slot.free, done)

    def _await(self, expected: Header) -> None:
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
            if self._error is not None and not self._arrived:
                raise PeerLostError(
                    f"{self.edge.name} at {expected}: component {self.edge.source} is gone "
                    f"({self._error})"
                )

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._on_change()

    def _new_slot(self) -> _Incoming:
        device = self._queue.device
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return _Incoming(_room(self.edge, device), event)


def _room(edge: Edge, device: torch.device) -> Tensor:
    """Bytes for any payload of an edge."""
    size = max(edge.encoding(kind).nbytes for kind in Kind)
    return torch.empty(size, dtype=torch.uint8, device=device)
