"""Do both ends of an edge mean the same thing?

Before an edge is built, each end puts a hello into the run's store and reads the other's. Anything
that differs is refused here, with an error that names both sides: a frame of another size would
end the receiving process without one.
"""

from __future__ import annotations

import json
from datetime import timedelta

import torch.distributed as dist

from mach.channels.base import Edge
from mach.errors import ChannelError, ChannelTimeoutError


def exchange_hello(
    store: dist.Store, edge: Edge, *, sending: bool, identity: dict[str, str], timeout_s: float
) -> None:
    """Agree on an edge with the other end.

    Args:
        store: a client of the run's store, already on the prefix of this edge.
        edge: what this end believes the edge to be.
        sending: whether this end is the source.
        identity: what must be the same on both sides beyond the edge (run id, config hash).
        timeout_s: longest wait for the other end.

    Raises:
        ChannelTimeoutError: the other end did not come.
        ChannelError: both came and differ.
    """
    mine = hello_of(edge, identity)
    me, other = (edge.source, edge.target) if sending else (edge.target, edge.source)
    store.set(f"hello/{me}", json.dumps(mine))
    try:
        store.wait([f"hello/{other}"], timedelta(seconds=timeout_s))
    except dist.DistStoreError as error:
        raise ChannelTimeoutError(
            f"{edge.name}: component {other} did not come up; waited {timeout_s:g} s"
        ) from error
    theirs = json.loads(store.get(f"hello/{other}"))
    compare_hellos(edge.name, me, other, mine, theirs)


def hello_of(edge: Edge, identity: dict[str, str]) -> dict[str, str]:
    """What one end says of an edge."""
    return {
        "payload": str(edge.payload),
        "credits": str(edge.credits),
        "transport.wire_dtype": edge.wire_dtype,
        **identity,
    }


def compare_hellos(
    name: str, me: int, other: int, mine: dict[str, str], theirs: dict[str, str]
) -> None:
    """Refuse two ends that differ.

    Raises:
        ChannelError: naming the edge, both components and what each of them has.
    """
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            raise ChannelError(
                f"{name}: component {me} has {key} {mine.get(key)}, component {other} has "
                f"{theirs.get(key)}. Start both from the same config."
            )
