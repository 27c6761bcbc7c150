"""Directed edges between neighbours; nothing outside this folder sends or receives."""

from mach.channels.base import Edge, Header, Kind, Link, Receiver, Sender
from mach.channels.bell import Bell
from mach.channels.live import LiveLink
from mach.channels.liveends import LiveReceiver, LiveSender
from mach.channels.wiring import Channels, connect, connect_in_memory, connect_live, links

__all__ = [
    "Bell",
    "Channels",
    "Edge",
    "Header",
    "Kind",
    "Link",
    "LiveLink",
    "LiveReceiver",
    "LiveSender",
    "Receiver",
    "Sender",
    "connect",
    "connect_in_memory",
    "connect_live",
    "links",
]
