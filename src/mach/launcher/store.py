"""Who hosts the run's store, and who may come in?

The launcher does, on the socket that mach.launcher.listener has opened.
"""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist

from mach.config import Config
from mach.configfile import fingerprint
from mach.roster import Roster
from mach.storeaddress import StoreAddress

_ANSWER_S = 30.0


def host(listener: socket.socket, address: StoreAddress) -> dist.Store:
    """Host the store on the socket."""
    return dist.TCPStore(
        address.host,
        address.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_S),
        master_listen_fd=listener.detach(),  # the store closes it
    )


def found(store: dist.Store, address: StoreAddress, config: Config) -> Roster:
    """Say in it what every newcomer must match."""
    roster = Roster(dist.PrefixStore(address.run, store), config.components)
    roster.found({"run": address.run, "config": fingerprint(config)})
    store.set("run", address.run)  # for those who do not know where to look
    return roster
