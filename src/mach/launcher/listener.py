"""Where does the run's store listen?

On loopback, unless the user says that components live on other machines. The socket is opened
before any other process is started, so that all know its port. The store's keys lie below a random
run id: whoever comes to the port by accident shares none of them.
"""

from __future__ import annotations

import secrets
import socket
import struct
import sys

from mach.errors import ChannelError, ConfigError
from mach.storeaddress import StoreAddress

_BACKLOG = 1024
_LOOPBACK = "127.0.0.1"
_FAR_AWAY = "192.0.2.1"  # set apart for documentation (RFC 5737): the default route leads there


def listen(bind: str | None) -> socket.socket:
    """A socket on the address that `launch.bind` means, and a free port.

    Raises:
        ConfigError: this machine cannot listen there.
    """
    address = _LOOPBACK if bind is None else _address_of(_place(bind))
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        listener.bind((address, 0))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"launch.bind={bind}: expected an address of this machine; got {address}: "
            f"{error.strerror}"
        ) from error
    return listener


def address_of(listener: socket.socket) -> StoreAddress:
    """How a component reaches the store on this socket, with a new run id."""
    host, port = listener.getsockname()[:2]
    return StoreAddress(host, port, secrets.token_hex(8))


def _place(bind: str) -> str:
    from mach.channels.listen import listen_on  # torch, for those who need it

    try:
        return listen_on(bind, _FAR_AWAY)
    except ChannelError as error:
        raise ConfigError(str(error)) from error


def _address_of(place: str) -> str:
    """The IPv4 address of an interface; an address is its own."""
    if place not in [name for _, name in socket.if_nameindex()]:
        return place
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"launch.bind={place}: expected an address, not an interface, here")
    import fcntl

    get_interface_address = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            asked = struct.pack("256s", place.encode()[:15])
            answer = fcntl.ioctl(probe.fileno(), get_interface_address, asked)
        except OSError as error:
            raise ConfigError(
                f"launch.bind={place}: expected an interface with an IPv4 address; {error.strerror}"
            ) from error
    return socket.inet_ntoa(answer[20:24])
