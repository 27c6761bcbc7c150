"""What does the training thread hold of a link that comes and goes?

Ends that never change. Behind each is an end of the present connection, which a link's thread puts
in and takes out; a frame is offered to, or taken from, whatever is there at that moment.
"""

from __future__ import annotations

from torch import Tensor

from mach.channels.base import Edge, Header, Receiver, Sender
from mach.errors import PeerLostError


class LiveSender(Sender):
    """Sending end of a link that comes and goes."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self._end: Sender | None = None

    def attach(self, end: Sender | None) -> None:
        """From now on frames go in here; nowhere, while the link is down."""
        self._end = end

    @property
    def alive(self) -> bool:
        end = self._end
        return end is not None and end.alive

    def ready(self) -> bool:
        end = self._end
        return end is not None and end.alive and end.ready()

    def send(self, header: Header, payload: Tensor) -> None:
        end = self._end
        if end is None:
            raise PeerLostError(
                f"{self.edge.name} at {header}: component {self.edge.target} is gone"
            )
        waited = end.wait_s
        try:
            end.send(header, payload)
        finally:
            self.wait_s += end.wait_s - waited
        self.bytes_sent += self.edge.frame_bytes(header.kind)

    def close(self) -> None:
        """As `abort`: who comes back needs no farewell. `LiveLink.close` ends the link."""
        self.abort()

    def abort(self) -> None:
        """Break the link; it is made again."""
        end, self._end = self._end, None
        if end is not None:
            end.abort()


class LiveReceiver(Receiver):
    """Receiving end of a link that comes and goes."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge)
        self._end: Receiver | None = None
        self._newest: Header | None = None

    def attach(self, end: Receiver) -> None:
        """From now on frames come out here. What is left in the end before is lost."""
        self._newest = self.newest
        self._end = end

    @property
    def alive(self) -> bool:
        end = self._end
        return end is not None and end.alive

    @property
    def newest(self) -> Header | None:
        end = self._end
        return (end.newest if end is not None else None) or self._newest

    def ready(self) -> bool:
        end = self._end
        return end is not None and end.ready()

    def poll(self) -> tuple[Header, Tensor] | None:
        end = self._end
        frame = end.poll() if end is not None else None
        if frame is not None:
            self.bytes_received += self.edge.frame_bytes(frame[0].kind)
        return frame

    def close(self) -> None:
        """As `abort`: who comes back needs no farewell. `LiveLink.close` ends the link."""
        self.abort()

    def abort(self) -> None:
        """Break the link; it is made again. What had arrived can still be taken."""
        if self._end is not None:
            self._end.abort()

    def _await(self, expected: Header) -> None:
        end = self._end
        if end is None:
            raise PeerLostError(
                f"{self.edge.name} at {expected}: component {self.edge.source} is gone"
            )
        waited = end.wait_s
        try:
            end._await(expected)
        finally:
            self.wait_s += end.wait_s - waited
