"""A channel inside one process: the oracle's, and a test's.

Both ends share a queue. One thread may drive both ends (ask `ready` first) or each end its own.
"""

from __future__ import annotations

from collections import deque
from threading import Condition

from torch import Tensor

from mach.channels.base import Edge, Header, Kind, Receiver, Sender, frame_bytes, wait_until
from mach.errors import PeerLostError


class _Queue:
    def __init__(self) -> None:
        self.changed = Condition()
        self.frames: deque[tuple[Header, Tensor]] = deque()
        self.broken = False


class MemorySender(Sender):
    """Sending end of a memory channel."""

    def __init__(self, edge: Edge, queue: _Queue, timeout_s: float) -> None:
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s

    def ready(self) -> bool:
        return len(self._queue.frames) < self.edge.credits

    def send(self, header: Header, payload: Tensor) -> None:
        self.check(header, payload)
        # The same rounding as on a wire, and a copy the sender cannot change any more.
        self._put(header, payload.detach().to(self.edge.payload.dtype, copy=True))
        self.bytes_sent += frame_bytes(self.edge.payload)

    def close(self) -> None:
        with self._queue.changed:
            self._queue.frames.append((Header(Kind.END, 0), Tensor()))
            self._queue.changed.notify_all()

    def _put(self, header: Header, payload: Tensor) -> None:
        queue, name = self._queue, self.edge.name
        with queue.changed:
            self.wait_s += wait_until(
                queue.changed,
                lambda: self.ready() or queue.broken,
                self._timeout_s,
                lambda: (
                    f"{name}: component {self.edge.target} took none of "
                    f"{self.edge.credits} frames before {header}"
                ),
            )
            if queue.broken:
                raise PeerLostError(f"{name} at {header}: component {self.edge.target} is gone")
            queue.frames.append((header, payload))
            queue.changed.notify_all()


class MemoryReceiver(Receiver):
    """Receiving end of a memory channel."""

    def __init__(self, edge: Edge, queue: _Queue, timeout_s: float) -> None:
        super().__init__(edge)
        self._queue, self._timeout_s = queue, timeout_s

    def ready(self) -> bool:
        return bool(self._queue.frames)

    def receive(self, expected: Header) -> Tensor:
        header, payload = self._take(expected)
        self.check(expected, header)
        self.bytes_received += frame_bytes(self.edge.payload)
        return payload

    def close(self) -> None:
        """Nothing to wait for: what was sent is here, and memory needs no farewell."""

    def abandon(self) -> None:
        """Leave as a component that died leaves: the sender finds out at its next frame."""
        with self._queue.changed:
            self._queue.broken = True
            self._queue.changed.notify_all()

    def _take(self, expected: Header) -> tuple[Header, Tensor]:
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
            frame = queue.frames.popleft()
            queue.changed.notify_all()
            return frame


def memory_channel(edge: Edge, timeout_s: float) -> tuple[MemorySender, MemoryReceiver]:
    """Both ends of a new edge."""
    queue = _Queue()
    return MemorySender(edge, queue, timeout_s), MemoryReceiver(edge, queue, timeout_s)
