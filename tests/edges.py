"""Both ends of an edge, and who else may come to its ports."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from gpus import GPU_TRANSPORTS, GPUS
from mach.channels import Edge, Header, Kind
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.memory import memory_channel
from mach.shapes import TensorSpec

CPU = torch.device("cpu")
SHAPE = (4, 5)
ON_GPUS = {"gloo": "gloo-cuda", "nccl": "nccl"}
DEADLINE_S = 20.0
"""Longest that anything here may take to be noticed: a hundred times what it takes."""
TRANSPORTS = ["memory", "gloo", *(ON_GPUS[transport] for transport in GPU_TRANSPORTS)]


def train(microbatch, version=0):
    return Header(Kind.TRAIN, microbatch, version)


def a_store():
    return dist.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )


def both_ends(transport, edge, timeout_s, bells=(None, None), clients=None, **more):
    """Sender and receiver of a new edge, and the devices they are on.

    Args:
        bells: rung by the sender and by the receiver.
        clients: two of one store; by default of a new one.
    """
    hears = [{} if bell is None else {"on_change": bell.ring} for bell in bells]
    if transport == "memory":
        names = ("sender_hears", "receiver_hears")
        rings = {name: bell.ring for name, bell in zip(names, bells, strict=True) if bell}
        return *memory_channel(edge, timeout_s, **rings), CPU, CPU
    if clients is None:
        store = a_store()
        clients = (store, store.clone())
    source = torch.device("cuda", 0) if transport != "gloo" else CPU
    target = torch.device("cuda", GPUS - 1) if transport != "gloo" else CPU
    kinds, places = (GlooSender, GlooReceiver), (source, target)
    if transport == "nccl":
        from mach.channels.nccl import NcclReceiver, NcclSender
        from mach.channels.ncclpair import NcclQueue

        kinds, places = (NcclSender, NcclReceiver), (NcclQueue(source), NcclQueue(target))
    with ThreadPoolExecutor() as pool:  # building an end waits for the other one
        ends = [
            pool.submit(kind, edge, client, place, timeout_s, 20, **hear, **more)
            for kind, client, place, hear in zip(kinds, clients, places, hears, strict=True)
        ]
        return *(end.result(30) for end in ends), source, target


def payload(number, device=CPU, shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator).to(device, dtype)


def an_edge(shape=SHAPE, dtype=torch.float32, credits=2):
    return Edge(1, 2, TensorSpec(shape, dtype), credits)


def abort(*ends):
    for end in ends:
        end.abort()
        assert not end.alive


def listening(process=None):
    """Addresses and ports at which a process can be reached."""
    connections = (process or psutil.Process()).net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


GARBAGE = [
    b"",
    b"\0" * 8,
    b"\0" * 4096,
    b"\xff" * 64,
    os.urandom(1 << 16),
    b"GET / HTTP/1.1\r\n\r\n",
]


def strange(ports):
    """Connect to every port, send garbage to each; the sockets, left open."""
    strangers = []
    for port in ports:
        for garbage in GARBAGE:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
            strangers.append(stranger)
            stranger.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                stranger.send(garbage)
    return strangers
