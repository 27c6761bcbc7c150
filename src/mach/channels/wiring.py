"""Which edges does component k have, and how are they built?

    # component k - 1  --- activations --->  component k  --- activations --->  component k + 1
    #                  <--- gradients -----               <--- gradients -----

Edges to the child are built before those to the parent, so the chain comes up from the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import torch
import torch.distributed as dist

from mach.channels.base import Edge, Link, Receiver, Sender
from mach.channels.bell import Bell
from mach.channels.ends import Maker
from mach.channels.handshake import exchange_hello
from mach.channels.listen import listen_on
from mach.channels.live import LiveLink
from mach.channels.memory import memory_channel
from mach.config import TransportConfig
from mach.shapes import TensorSpec

_CONNECT_S = {"gloo": 3.0, "nccl": 60.0}
"""Longest that neighbours who have agreed may take to connect; NCCL sets up a communicator."""


@dataclass
class Channels:
    """The up to four ends that one component holds; None where there is no neighbour."""

    from_child: Receiver | None = None
    to_child: Sender | None = None
    from_parent: Receiver | None = None
    to_parent: Sender | None = None
    links: list[LiveLink] = field(default_factory=list)
    """What keeps the ends connected, to the child first; none where a break ends the run."""

    def close_down(self) -> None:
        """No more gradients: tell the child first, then hear it from the parent."""
        self._close(self.to_child, self.from_parent)

    def close_up(self) -> None:
        """No more activations: tell the parent first, then hear it from the child."""
        self._close(self.to_parent, self.from_child)

    def close_links(self) -> None:
        """End the live links for good; neighbours see them break."""
        for link in self.links:
            link.close()

    @staticmethod
    def _close(sender: Sender | None, receiver: Receiver | None) -> None:
        if sender is not None:
            sender.close()
        if receiver is not None:
            receiver.close()


def links(
    activations: list[TensorSpec],
    credits: int,
    feedback: float,
    wire_dtype: str = "float32",
    beside: int = 0,
) -> list[Link]:
    """The links of a chain from the output of each component (batch dimension included).

    Args:
        beside: numbers that go down with the gradient of each sample; then both are one row.
    """
    out = []
    for k, spec in enumerate(activations[:-1]):
        back = spec
        if beside:
            back = replace(spec, shape=(spec.shape[0], prod(spec.shape[1:]) + beside))
        down = Edge(k + 1, k, back, credits, wire_dtype) if feedback > 0 else None
        out.append(Link(Edge(k, k + 1, spec, credits, wire_dtype), down))
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
    bind: str | None = None,
    store_host: str | None = None,
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
        bind: where edges listen: None for loopback, `auto` for the address that reaches the
            store, or an address or interface of this machine.
        store_host: the store's host, which `auto` asks for.
    """
    maker = Maker(device, transport, config.timeout_s, listen_on(bind, store_host))
    start_s = config.start_timeout_s

    def agree(edge: Edge, *, sending: bool) -> dist.Store:
        prefix = f"edge/{edge.name.replace(' ', '/')}/{incarnation}"
        of_edge = dist.PrefixStore(prefix, store)
        exchange_hello(of_edge, edge, sending=sending, identity=identity, timeout_s=start_s)
        return of_edge

    def sender(edge: Edge) -> Sender:
        return maker.sender(edge, agree(edge, sending=True), start_s)

    def receiver(edge: Edge) -> Receiver:
        return maker.receiver(edge, agree(edge, sending=False), start_s)

    channels = Channels()
    if component > 0:
        link = chain[component - 1]
        channels.from_child = receiver(link.up)
        channels.to_child = sender(link.down) if link.down is not None else None
    if component < len(chain):
        link = chain[component]
        channels.to_parent = sender(link.up)
        channels.from_parent = receiver(link.down) if link.down is not None else None
    return channels


def connect_live(
    chain: list[Link],
    component: int,
    store: dist.Store,
    device: torch.device,
    transport: str,
    config: TransportConfig,
    *,
    identity: dict[str, str],
    life: int,
    bell: Bell,
    bind: str | None = None,
    store_host: str | None = None,
    on_refused: Callable[[str], None] = lambda text: None,
    on_store_lost: Callable[[], None] = lambda: None,
) -> Channels:
    """The channels of one component whose neighbours may die and come back. Returns at once.

    Args as for `connect`, and

        life: how often this component has been started before.
        bell: rung when something happens at any of the ends.
        on_refused: hears, on a link's thread, that a neighbour was built from another config.
        on_store_lost: hears there, once per link, that the store is gone.
    """
    maker = Maker(device, transport, config.timeout_s, listen_on(bind, store_host))

    def live(link: Link) -> LiveLink:
        return LiveLink(
            link,
            component,
            store,
            maker,
            identity=identity,
            life=life,
            bell=bell,
            on_refused=on_refused,
            on_store_lost=on_store_lost,
            connect_s=min(_CONNECT_S[transport], config.start_timeout_s),
        )

    channels = Channels()
    if component > 0:
        link = live(chain[component - 1])
        channels.from_child, channels.to_child = link.receiver, link.sender
        channels.links.append(link)
    if component < len(chain):
        link = live(chain[component])
        channels.from_parent, channels.to_parent = link.receiver, link.sender
        channels.links.append(link)
    return channels
