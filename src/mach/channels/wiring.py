"""Which edges does component k have, and how are they built?

    # component k - 1  --- activations --->  component k  --- activations --->  component k + 1
    #                  <--- gradients -----               <--- gradients -----

Edges to the child are built before those to the parent, so the chain comes up from the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from mach.channels.base import Edge, Receiver, Sender
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.handshake import exchange_hello
from mach.channels.memory import memory_channel
from mach.channels.nccl import NcclQueue, NcclReceiver, NcclSender
from mach.config import TransportConfig
from mach.shapes import TensorSpec


@dataclass
class Channels:
    """The up to four ends that one component holds; None where there is no neighbour."""

    from_child: Receiver | None = None
    to_child: Sender | None = None
    from_parent: Receiver | None = None
    to_parent: Sender | None = None

    def close_down(self) -> None:
        """No more gradients: tell the child first, then hear it from the parent."""
        self._close(self.to_child, self.from_parent)

    def close_up(self) -> None:
        """No more activations: tell the parent first, then hear it from the child."""
        self._close(self.to_parent, self.from_child)

    @staticmethod
    def _close(sender: Sender | None, receiver: Receiver | None) -> None:
        if sender is not None:
            sender.close()
        if receiver is not None:
            receiver.close()


@dataclass(frozen=True)
class Link:
    """The two edges between component k (the child) and component k + 1 (the parent)."""

    up: Edge
    down: Edge | None
    """None where feedback is 0: no gradient travels."""


def links(activations: list[TensorSpec], credits: int, feedback: float) -> list[Link]:
    """The links of a chain from the output of each component (batch dimension included)."""
    out = []
    for k, spec in enumerate(activations[:-1]):
        down = Edge(k + 1, k, spec, credits) if feedback > 0 else None
        out.append(Link(Edge(k, k + 1, spec, credits), down))
    return out


def connect_in_memory(chain: list[Link], timeout_s: float) -> list[Channels]:
    """The channels of every component of a chain, inside this process."""
    ends = [Channels() for _ in range(len(chain) + 1)]
    for k, link in enumerate(chain):
        ends[k].to_parent, ends[k + 1].from_child = memory_channel(link.up, timeout_s)
        if link.down is not None:
            ends[k + 1].to_child, ends[k].from_parent = memory_channel(link.down, timeout_s)
    return ends


def connect(
    chain: list[Link],
    component: int,
    store: dist.Store,
    device: torch.device,
    transport: str,
    config: TransportConfig,
    *,
    identity: dict[str, str],
    incarnation: int,
) -> Channels:
    """The channels of one component of a chain of processes.

    Args:
        chain: the same list on every component.
        component: k.
        store: a client of the run's store.
        device: where this component's tensors live.
        transport: `gloo` or `nccl`.
        config: deadlines.
        identity: what both ends of an edge must agree on (run id, config hash).
        incarnation: how often this component has been started before.
    """
    maker = _Maker(store, device, transport, config, identity, incarnation)
    channels = Channels()
    if component > 0:
        link = chain[component - 1]
        channels.from_child = maker.receiver(link.up)
        channels.to_child = maker.sender(link.down) if link.down is not None else None
    if component < len(chain):
        link = chain[component]
        channels.to_parent = maker.sender(link.up)
        channels.from_parent = maker.receiver(link.down) if link.down is not None else None
    return channels


class _Maker:
    """Builds ends of edges that share store, device and deadlines."""

    def __init__(
        self,
        store: dist.Store,
        device: torch.device,
        transport: str,
        config: TransportConfig,
        identity: dict[str, str],
        incarnation: int,
    ) -> None:
        self._store, self._device, self._config = store, device, config
        self._identity, self._incarnation = identity, incarnation
        # One thread issues every NCCL operation of the process, whatever the number of edges.
        self._queue = NcclQueue(device) if transport == "nccl" else None

    def sender(self, edge: Edge) -> Sender:
        store = self._agree(edge, sending=True)
        deadlines = (self._config.timeout_s, self._config.start_timeout_s)
        if self._queue is not None:
            return NcclSender(edge, store, self._queue, *deadlines)
        return GlooSender(edge, store, self._device, *deadlines)

    def receiver(self, edge: Edge) -> Receiver:
        store = self._agree(edge, sending=False)
        deadlines = (self._config.timeout_s, self._config.start_timeout_s)
        if self._queue is not None:
            return NcclReceiver(edge, store, self._queue, *deadlines)
        return GlooReceiver(edge, store, self._device, *deadlines)

    def _agree(self, edge: Edge, *, sending: bool) -> dist.Store:
        name = f"edge/{edge.name.replace(' ', '/')}/{self._incarnation}"
        store = dist.PrefixStore(name, self._store)
        exchange_hello(
            store,
            edge,
            sending=sending,
            identity=self._identity,
            timeout_s=self._config.start_timeout_s,
        )
        return store
