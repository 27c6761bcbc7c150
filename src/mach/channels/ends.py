"""How are the ends of an edge built, whatever carries it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mach.channels.base import Edge, Link, Receiver, Sender
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.listen import LOOPBACK
from mach.channels.nccl import NcclReceiver, NcclSender
from mach.channels.ncclpair import NcclQueue


@dataclass
class Ends:
    """The ends that one component holds of a link; None where no gradient travels."""

    sender: Sender | None = None
    receiver: Receiver | None = None
    store: dist.Store | None = None
    """What they were built on, kept for as long as C++ may call a store that is written here."""

    @property
    def alive(self) -> bool:
        """Whether all of them are."""
        return (self.sender is None or self.sender.alive) and (
            self.receiver is None or self.receiver.alive
        )

    def abort(self) -> None:
        """Let go of all of them at once."""
        for end in (self.sender, self.receiver):
            if end is not None:
                end.abort()


class Maker:
    """Builds the ends of one component, which share device, transport and address."""

    def __init__(
        self, device: torch.device, transport: str, timeout_s: float, listen: str = LOOPBACK
    ) -> None:
        """
        Args:
            transport: `gloo` or `nccl`.
            timeout_s: longest wait of a send or a receive.
            listen: address or interface of this machine to listen on.
        """
        self._device, self._timeout_s, self._listen = device, timeout_s, listen
        # One thread issues every NCCL operation of the process, whatever the number of edges.
        self._queue = NcclQueue(device) if transport == "nccl" else None

    def sender(
        self,
        edge: Edge,
        store: dist.Store,
        start_s: float,
        on_change: Callable[[], None] | None = None,
    ) -> Sender:
        """The sending end, connected within `start_s` over a prefix of the store of its own."""
        deadlines = (self._timeout_s, start_s)
        if self._queue is not None:
            return NcclSender(
                edge, store, self._queue, *deadlines, on_change=on_change, listen=self._listen
            )
        return GlooSender(
            edge, store, self._device, *deadlines, on_change=on_change, listen=self._listen
        )

    def receiver(
        self,
        edge: Edge,
        store: dist.Store,
        start_s: float,
        on_change: Callable[[], None] | None = None,
    ) -> Receiver:
        """The receiving end, connected within `start_s` over a prefix of the store of its own."""
        deadlines = (self._timeout_s, start_s)
        if self._queue is not None:
            return NcclReceiver(
                edge, store, self._queue, *deadlines, on_change=on_change, listen=self._listen
            )
        return GlooReceiver(
            edge, store, self._device, *deadlines, on_change=on_change, listen=self._listen
        )

    def ends(
        self,
        link: Link,
        component: int,
        store: dist.Store,
        start_s: float,
        on_change: Callable[[], None],
    ) -> Ends:
        """All ends that one component holds of a link, or none: the edge up first on both sides."""
        ends = Ends(store=store)
        try:
            for edge in (link.up, link.down):
                if edge is None:
                    continue
                of_edge = dist.PrefixStore(edge.name.replace(" ", "/"), store)
                if edge.source == component:
                    ends.sender = self.sender(edge, of_edge, start_s, on_change)
                else:
                    ends.receiver = self.receiver(edge, of_edge, start_s, on_change)
        except BaseException:
            ends.abort()
            raise
        return ends
