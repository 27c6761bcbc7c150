"""A channel inside one process: the oracle's, a simulation's, and a test's.

Both ends share a queue. One thread may drive both ends (ask `ready` first) or each end its own.
What happens at one end is told to the other one, on the thread that did it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition

from torch import Tensor

from mach.channels.base import Edge, Header, Receiver, Sender, wait_until
from mach.errors import PeerLostError


class _Queue:
    def __init__(self, sender_hears: Callable[[], None], receiver_hears: Callable[[], None]):
        self.changed = Condition()
        self.frames: deque[tuple[Header, Tensor]] = deque()
        self.newest: Header | None = None
        self.ended = False
        """The sender has said that nothing more will come."""
        self.broken = False
        """One of the ends was aborted."""
        self.sender_hears, self.receiver_hears = sender_hears, receiver_hears

    @property
    def alive(self) -> bool:
        return not (self.ended or self.broken)

    def abort(self) -> None:
        with self.changed:
            self.broken = True
            self.changed.notify_all()
        self.sender_hears()
        self.receiver_hears()


class MemorySender(Sender):
    """Sending end of a memory channel."""

    def __init__(self, edge: Edge, queue: _Queue, timeout_s: float) -> None:
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s

    @property
    def alive(self) -> bool:
        return self._queue.alive

    def ready(self) -> bool:
        return len(self._queue.frames) < self.edge.credits or self._queue.broken

    def send(self, header: Header, payload: Tensor) -> None:
        self.check(header, payload)
        # The same rounding as on a wire, and a copy the sender cannot change any more.
        self._put(header, self.edge.encoding(header.kind).round_trip(payload))
        self.bytes_sent += self.edge.frame_bytes(header.kind)

    def close(self) -> None:
        with self._queue.changed:
            self._queue.ended = True
            self._queue.changed.notify_all()
        self._queue.receiver_hears()

    def abort(self) -> None:
        self._queue.abort()

    def _put(self, header: Header, payload: Tensor) -> None:
        queue, name = self._queue, self.edge.name
        with queue.changed:
            self.wait_s += wait_until(
                queue.changed,
                self.ready,
                self._timeout_s,
                lambda: (
                    f"{name}: component {self.edge.target} took none of "
                    f"{self.edge.credits} frames before {header}"
                ),
            )
            if queue.broken:
                raise PeerLostError(f"{name} at {header}: component {self.edge.target} is gone")
            queue.frames.append((header, payload))
            queue.newest = header
            queue.changed.notify_all()
        queue.receiver_hears()


class MemoryReceiver(Receiver):
    """Receiving end of a memory channel."""

    def __init__(self, edge: Edge, queue: _Queue, timeout_s: float) -> None:
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s

    @property
    def alive(self) -> bool:
        return self._queue.alive

    @property
    def newest(self) -> Header | None:
        return self._queue.newest

    def ready(self) -> bool:
        return bool(self._queue.frames) or not self._queue.alive

    def poll(self) -> tuple[Header, Tensor] | None:
        queue = self._queue
        with queue.changed:
            if not queue.frames:
                return None
            header, payload = queue.frames.popleft()
            queue.changed.notify_all()
        self.bytes_received += self.edge.frame_bytes(header.kind)
        queue.sender_hears()
        return header, payload

    def close(self) -> None:
        """Nothing to wait for: what was sent is here, and memory needs no farewell."""

    def abort(self) -> None:
        self._queue.abort()

    def _await(self, expected: Header) -> None:
        queue, name = self._queue, self.edge.name
        with queue.changed:
            self.wait_s += wait_until(
                queue.changed,
                self.ready,
                self._timeout_s,
                lambda: (
                    f"{name}: expected {expected} from component {self.edge.source}, got nothing"
                ),
            )
            if queue.broken and not queue.frames:
                raise PeerLostError(f"{name} at {expected}: component {self.edge.source} is gone")


def _nobody() -> None:
    """Hears what nobody listens to."""


def memory_channel(
    edge: Edge,
    timeout_s: float,
    sender_hears: Callable[[], None] = _nobody,
    receiver_hears: Callable[[], None] = _nobody,
) -> tuple[MemorySender, MemoryReceiver]:
    """Both ends of a new edge, and the `on_change` of either."""
    queue = _Queue(sender_hears, receiver_hears)
    return MemorySender(edge, queue, timeout_s), MemoryReceiver(edge, queue, timeout_s)
