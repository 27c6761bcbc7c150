"""Where does the run's store listen, and who may come in?

On loopback, unless the user says that components live on other machines. The socket is opened
before the components' agents are started, which are told its port; the store is begun on it after
that. Its keys lie below a random run id: whoever comes to the port by
accident shares none of them.
"""

from __future__ import annotations

import secrets
import socket
import struct
import sys
from datetime import timedelta

import torch.distributed as dist

from mach.channels.listen import listen_on
from mach.config import Config
from mach.configfile import fingerprint
from mach.errors import ChannelError, ConfigError
from mach.rank import StoreAddress
from mach.roster import Roster

_BACKLOG = 1024
_ANSWER_S = 30.0
_FAR_AWAY = "192.0.2.1"  # set apart for documentation (RFC 5737): the default route leads there


def listen(bind: str | None) -> socket.socket:
    """A socket on the address that `launch.bind` means, and a free port.

    Raises:
        ConfigError: this machine cannot listen there.
    """
    try:
        place = listen_on(bind, _FAR_AWAY)
    except ChannelError as error:
        raise ConfigError(str(error)) from error
    address = _address_of(place)
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


def found(listener: socket.socket, address: StoreAddress, config: Config) -> Roster:
    """Host the store on the socket, and say what every newcomer must match."""
    store = dist.TCPStore(
        address.host,
        address.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_S),
        master_listen_fd=listener.detach(),  # the store closes it
    )
    roster = Roster(dist.PrefixStore(address.run, store), config.components)
    roster.found({"run": address.run, "config": fingerprint(config)})
    store.set("run", address.run)  # for those who do not know where to look
    return roster


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
