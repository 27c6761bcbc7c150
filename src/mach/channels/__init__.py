"""Directed edges between neighbours; nothing outside this folder sends or receives."""

from mach.channels.base import Edge, Header, Kind, Receiver, Sender
from mach.channels.wiring import Channels, Link, connect, connect_in_memory, links

__all__ = [
    "Channels",
    "Edge",
    "Header",
    "Kind",
    "Link",
    "Receiver",
    "Sender",
    "connect",
    "connect_in_memory",
    "links",
]
