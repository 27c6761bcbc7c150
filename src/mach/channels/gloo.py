"""A channel over TCP, by gloo: the CPU's transport, and CUDA's where components share a GPU.

Traps this file avoids, all seen with torch 2.13:

- a message longer than the posted receive aborts the receiving process: no frame is longer than a
  slot. A shorter one fills the beginning of it;
- a send completes only when the peer has posted its receive: W receives are posted ahead, and a
  receive is posted again only when its frame was taken out;
- `wait(timeout)` that times out closes every pair of the group: the deadlines are kept by the
  training thread, on a condition variable, and the edge's thread waits without one;
- when a connection breaks, gloo does not wake who waits for the message that it was reading or
  writing just then, nor who waits for one that it begins to send before it has heard of the break.
  On an edge that outlives its connections (made with `on_change`) nobody waits for a long message,
  nor for what he sends: a frame is two, payload then header, and the receiver waits for the header;
  the sender waits for a receipt of one byte. That is 0.2 ms a frame, which other edges save;
- there a receipt gives the credit back, when its frame was taken out. On other edges the arrival
  does, so twice as many frames may wait; what comes when, an ordered schedule decides;
- a receiver whose frames nobody takes waits for nothing on the wire: where somebody wants to hear
  of a break at once, a second thread listens for it;
- a CUDA tensor's device pointer would go straight to the socket: payloads pass through pinned
  host memory, on a stream of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

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
    wait_until,
)
from mach.channels.encoding import Encoding
from mach.channels.listen import LOOPBACK
from mach.channels.pair import (
    FOREVER,
    FRAMES,
    RECEIPTS,
    SOURCE,
    TARGET,
    Wire,
    connect_pair,
    reason,
)
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError


class _Staging:
    """Copies between a component's device and a slot; on CUDA, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.pinned = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.pinned else None

    def fill(self, slot: Slot, payload: Tensor, encoding: Encoding) -> torch.cuda.Event | None:
        """Write a payload into a slot. The event, if any, tells when that is done.

        What is to be rounded is so on the device: less goes over the bus. What is not is copied
        there first, in the order of the compute: the payload may be overwritten at once.
        """
        if self._stream is None:
            encoding.encode(payload, slot.payload)
            return None
        wire = encoding.to_wire(payload)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            slot.payload[: encoding.nbytes].copy_(wire, non_blocking=True)
            wire.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event

    def take(self, slot: Slot, encoding: Encoding) -> Tensor:
        """A slot's payload on the device, in memory of its own; the slot is free on return."""
        if self._stream is None:
            return encoding.copy_out(slot.payload)
        # Only this copy is waited for, not the compute queued on the current stream.
        with torch.cuda.stream(self._stream):
            wire = slot.payload[: encoding.nbytes].to(self._device, non_blocking=True)
        self._stream.synchronize()
        wire.record_stream(torch.cuda.current_stream(self._device))
        return encoding.decode(wire)


_TAKEN, _ARRIVED = (torch.full((1,), said, dtype=torch.uint8) for said in (0, 1))
"""What a receipt says of the frame that came first, of those of which it was not said."""


def _most_receipts(edge: Edge, of_arrivals: bool) -> int:
    """How many may be under way."""
    return edge.credits * (2 if of_arrivals else 1)


class GlooSender(Sender):
    """Sending end: the training thread fills slots, the edge's thread sends them in order."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        device: torch.device,
        timeout_s: float,
        start_s: float,
        on_arrival: Callable[[Header], None] | None = None,
        on_error: Callable[[BaseException], None] = lambda error: None,
        on_change: Callable[[], None] | None = None,
        listen: str = LOOPBACK,
    ) -> None:
        """The callbacks are called on a thread of the edge.

        Args:
            timeout_s: longest wait of `send` for a credit.
            start_s: longest wait for the other end to connect.
            on_arrival: a frame has come at the other end, which was made to tell of it.
            on_error: the edge broke.
            on_change: a credit came back or the edge broke. Both ends have one, or neither.
            listen: address or interface of this machine to listen on.
        """
        super().__init__(edge)
        self._timeout_s, self._on_arrival = timeout_s, on_arrival
        self._staging = _Staging(device)
        pair = connect_pair(edge, store, SOURCE, start_s, listen)
        self._wire = Wire(pair, SOURCE, on_error, on_change)
        self._changed = self._wire.changed
        self._free = deque(Slot(edge, self._staging.pinned) for _ in range(edge.credits))
        self._full: deque[tuple[Slot, torch.cuda.Event | None]] = deque()
        self._sent: deque[tuple[Slot, list[dist.Work]]] = deque()
        self._coming: deque[Header] = deque()
        """Of those sent, what has not arrived; where somebody wants to hear of that."""
        self._ended = False
        self._live = on_change is not None
        self._until_end = self._wire.start(f"send {edge.name}", self._run)
        if self._live:
            self._until_end = self._wire.start(f"receipts {edge.name}", self._take_receipts)

    @property
    def alive(self) -> bool:
        return self._wire.error is None and not self._ended

    def ready(self) -> bool:
        return bool(self._free) or self._wire.error is not None

    def send(self, header: Header, payload: Tensor) -> None:
        self.check(header, payload)
        slot = self._free_slot(header)
        slot.header = header
        event = self._staging.fill(slot, payload.detach(), self.edge.encoding(header.kind))
        self._enqueue(slot, event)
        self.bytes_sent += self.edge.frame_bytes(header.kind)

    def close(self) -> None:
        header = Header(Kind.END, 0)
        slot = self._free_slot(header)
        slot.header = header
        self._ended = True
        self._enqueue(slot, None)
        self._await_end(header)
        if self._wire.error is not None:
            raise self._lost(header)

    def _await_end(self, header: Header) -> None:
        """Until all is taken in, each frame within the deadline of the one before it."""
        while self._until_end.is_alive():
            free = len(self._free)
            self._until_end.join(self._timeout_s)
            if self._until_end.is_alive() and len(self._free) == free:
                raise ChannelTimeoutError(
                    f"{self.edge.name} at {header}: component {self.edge.target} did not take in "
                    f"the last frames; waited {self._timeout_s:g} s"
                )

    def abort(self) -> None:
        self._wire.abort()

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
            if self._wire.error is not None:
                raise self._lost(header)
            return self._free.popleft()

    def _enqueue(self, slot: Slot, event: torch.cuda.Event | None) -> None:
        with self._changed:
            self._full.append((slot, event))
            self._changed.notify_all()

    def _run(self) -> None:
        pair = self._wire.pair
        kind = Kind.TRAIN
        while kind is not Kind.END:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._full) or self._wire.error is not None)
                if self._wire.error is not None:
                    return
                slot, event = self._full.popleft()
            if event is not None:
                event.synchronize()
            header = slot.header
            kind = header.kind
            works: list[dist.Work] = []
            self._sent.append((slot, works))  # first: the receipt may come before send() returns
            if self._on_arrival is not None:
                self._coming.append(header)
            for message in slot.used(kind, in_parts=self._live):
                works.append(pair.send([message], TARGET, FRAMES))
            if not self._live:
                works[-1].wait(FOREVER)
                self._hear_taken()  # first: whom an arrival wakes looks for a free slot, too
                self._hear_arrival()

    def _take_receipts(self) -> None:
        """As many are waited for as may come for the frames under way."""
        pair = self._wire.pair
        posted: deque[tuple[Tensor, dist.Work]] = deque()
        for _ in range(_most_receipts(self.edge, self._on_arrival is not None)):
            receipt = torch.zeros(1, dtype=torch.uint8)
            posted.append((receipt, pair.recv([receipt], TARGET, RECEIPTS)))
        kind = Kind.TRAIN
        while kind is not Kind.END:
            receipt, work = posted.popleft()
            work.wait(FOREVER)
            if torch.equal(receipt, _ARRIVED):
                self._hear_arrival()
            else:
                kind = self._hear_taken()
            posted.append((receipt, pair.recv([receipt], TARGET, RECEIPTS)))

    def _hear_arrival(self) -> None:
        if self._on_arrival is not None:
            self._on_arrival(self._coming.popleft())

    def _hear_taken(self) -> Kind:
        """The frame that was sent first was taken out: its slot is free again."""
        slot, _ = self._sent.popleft()
        kind = slot.header.kind
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()
        self._wire.hear()
        return kind

    def _lost(self, header: Header) -> ChannelError:
        return PeerLostError(
            f"{self.edge.name} at {header}: component {self.edge.target} is gone "
            f"({reason(self._wire.error)})"
        )


class GlooReceiver(Receiver):
    """Receiving end: the edge's thread takes frames in, as many as there are slots."""

    def __init__(
        self,
        edge: Edge,
        store: dist.Store,
        device: torch.device,
        timeout_s: float,
        start_s: float,
        on_arrival: Callable[[Header], None] = lambda header: None,
        on_error: Callable[[BaseException], None] = lambda error: None,
        on_change: Callable[[], None] | None = None,
        listen: str = LOOPBACK,
        tells_arrival: bool = False,
    ) -> None:
        """The callbacks are called on a thread of the edge.

        Args:
            timeout_s: longest wait of `receive` for a frame.
            start_s: longest wait for the other end to connect.
            on_arrival: a frame has come.
            on_error: the edge broke.
            on_change: a frame has come or the edge broke. Both ends have one, or neither.
            listen: address or interface of this machine to listen on.
            tells_arrival: the source hears of a frame when it has come, too.
        """
        super().__init__(edge)
        self._timeout_s, self._on_arrival = timeout_s, on_arrival
        self._staging = _Staging(device)
        pair = connect_pair(edge, store, TARGET, start_s, listen)
        self._wire = Wire(pair, TARGET, on_error, on_change)
        self._changed = self._wire.changed
        self._posted: deque[tuple[Slot, list[dist.Work]]] = deque()
        self._arrived: deque[tuple[Header, Slot]] = deque()
        self._newest: Header | None = None
        self._ended = False
        self._live = on_change is not None
        self._tells_arrival = tells_arrival
        self._receipts: deque[dist.Work] = deque(maxlen=_most_receipts(edge, tells_arrival))
        """Kept until they have arrived, as the frames do that needed them."""
        for _ in range(edge.credits):
            self._post(Slot(edge, self._staging.pinned))
        self._arrivals = self._wire.start(f"receive {edge.name}", self._run)
        if self._live:
            self._wire.start(f"watch {edge.name}", self._wire.listen)

    @property
    def alive(self) -> bool:
        return self._wire.error is None and not self._ended

    @property
    def newest(self) -> Header | None:
        return self._newest

    def ready(self) -> bool:
        return bool(self._arrived) or not self.alive

    def poll(self) -> tuple[Header, Tensor] | None:
        if not self._arrived:  # only this thread takes frames out
            return None
        with self._changed:
            header, slot = self._arrived.popleft()
            is_last = self._ended and not self._arrived
        payload = self._staging.take(slot, self.edge.encoding(header.kind))
        self._post(slot)
        for _ in range(2 if is_last else 1):  # the end came, behind this one
            self._acknowledge(_TAKEN)
        self.bytes_received += self.edge.frame_bytes(header.kind)
        return header, payload

    def close(self) -> None:
        end = Header(Kind.END, 0)
        self._await(end)
        if self._arrived:
            header, _ = self._arrived.popleft()
            raise ChannelError(f"{self.edge.name}: expected the end of the stream, got {header}")
        self._arrivals.join(self._timeout_s)
        # The last are on their way before this end lets go of them, or the source has died.
        with suppress(RuntimeError):
            for sent in self._receipts:
                sent.wait(timedelta(seconds=self._timeout_s))

    def abort(self) -> None:
        self._wire.abort()
        with self._changed:
            self._posted.clear()

    def _post(self, slot: Slot) -> None:
        try:
            with self._changed:
                if self._wire.error is not None:
                    return
                pair = self._wire.pair
                messages = slot.parts if self._live else (slot.buffer,)
                works = [pair.recv([message], SOURCE, FRAMES) for message in messages]
                self._posted.append((slot, works))
                self._changed.notify_all()
        except RuntimeError as error:  # the neighbour has just gone
            self._wire.broke(error)

    def _acknowledge(self, said: Tensor) -> None:
        """Send a receipt, where the source waits for one."""
        if not self._live:
            return
        with self._changed, suppress(RuntimeError):  # the source is gone
            if self._wire.error is None:
                self._receipts.append(self._wire.pair.send([said], SOURCE, RECEIPTS))

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
            if self._arrived or self._ended:  # what came before the neighbour went is still good
                return
        raise PeerLostError(
            f"{self.edge.name} at {expected}: component {self.edge.source} is gone "
            f"({reason(self._wire.error)})"
        )

    def _run(self) -> None:
        while not self._ended:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._posted) or self._wire.error is not None)
                if not self._posted:
                    return
                slot, works = self._posted.popleft()  # may be full, although the edge has broken
            for work in reversed(works):
                work.wait(FOREVER)
            header = slot.header
            with self._changed:
                if header.kind is Kind.END:
                    self._ended = True
                    is_taken = not self._arrived
                else:
                    self._arrived.append((header, slot))
                    self._newest = header
                    is_taken = False
                self._changed.notify_all()
            self._on_arrival(header)
            self._wire.hear()
            if self._tells_arrival:
                self._acknowledge(_ARRIVED)
            if is_taken:
                self._acknowledge(_TAKEN)
