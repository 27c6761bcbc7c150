"""On which address of this machine do edges listen?

Nothing that arrives on an edge is checked for where it comes from, so it is loopback unless the
user has said that neighbours live on other machines.
"""

from __future__ import annotations

import ipaddress
import socket

import torch.distributed as dist

from mach.errors import ChannelError

LOOPBACK = "127.0.0.1"
_HELP = (
    "Set launch.bind to null (this machine alone), auto (the address that reaches the run's "
    "store), or an address or interface of this machine"
)


def listen_on(bind: str | None, store_host: str | None) -> str:
    """The address or interface that `bind` means here, tried out.

    Args:
        bind: None for loopback, `auto` for the address this machine reaches the store by, else an
            IP address or the name of an interface.
        store_host: where the run's store is; only `auto` asks.

    Raises:
        ChannelError: this machine cannot listen there.
    """
    if bind is None:
        listen = LOOPBACK
    elif bind == "auto":
        listen = _address_towards(store_host)
    else:
        listen = bind
    gloo_device(listen)
    return listen


def gloo_device(listen: str) -> dist.ProcessGroupGloo.Device:
    """A new device of gloo, with a listening socket and a thread of its own.

    Raises:
        ChannelError: this machine cannot listen there.
    """
    try:
        if _is_address(listen):
            return dist.ProcessGroupGloo.create_device(hostname=listen)
        return dist.ProcessGroupGloo.create_device(interface=listen)
    except RuntimeError as error:
        interfaces = ", ".join(name for _, name in socket.if_nameindex())
        raise ChannelError(
            f"{socket.gethostname()}: expected an address or interface of this machine to listen "
            f"on, got {listen!r}. {_HELP} ({interfaces})."
        ) from error


def _address_towards(host: str | None) -> str:
    """Our address on the way to a host. Nothing is sent: a datagram socket only looks it up."""
    if host is None:
        raise ChannelError(
            f"launch.bind=auto: expected the host of the run's store, got none. {_HELP}."
        )
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ChannelError(
            f"launch.bind=auto: expected a way to the store's host {host!r}, got: {error}. {_HELP}."
        ) from error


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
