"""Who is this process: which component, on which device, with which deadlines?

The one place that reads the environment a launcher made. torchrun and `mach train` set the same
variables, so a rank cannot tell them apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mach.config import Config
from mach.errors import ConfigError
from mach.topology import gpu_of, share_cores, transport_of

# Read when a communicator is made. Our own queue watches every operation and knows a dead neighbour
# by its control channel, so NCCL's watchdog may not end the process; NVLS takes multicast slots
# that point-to-point sends never use (NVIDIA/nccl issue 2077).
_NCCL = {"TORCH_NCCL_BLOCKING_WAIT": "1", "NCCL_NVLS_ENABLE": "0"}


@dataclass(frozen=True)
class Rank:
    """A process of a group: rank r is component r."""

    index: int
    size: int
    local_index: int
    local_size: int
    restarts: int
    """How often the group was started before."""
    run_id: str
    store: dist.Store
    """The run's store, hosted by the launcher or by torchrun's agent."""
    store_host: str
    """Where that is."""
    supervised: bool = False
    """Whether a supervisor watches this component by itself."""


@dataclass(frozen=True)
class StoreAddress:
    """Where a supervisor's store listens, and which run in it is ours."""

    host: str
    port: int
    run: str

    @staticmethod
    def parse(text: str) -> StoreAddress:
        """Read HOST:PORT/RUN."""
        place, _, run = text.partition("/")
        host, _, port = place.rpartition(":")
        if not (host and port.isdecimal() and run):
            raise ConfigError(f"--store: expected HOST:PORT/RUN; got {text!r}")
        return StoreAddress(host, int(port), run)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.run}"


def join_supervised(address: StoreAddress, component: int, size: int, timeout_s: float) -> Rank:
    """Join the run whose supervisor started this process."""
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address.host, address.port, is_master=False, timeout=timeout)
    return Rank(
        index=component,
        size=size,
        local_index=component,
        local_size=size,
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        run_id=address.run,
        store=dist.PrefixStore(address.run, store),
        store_host=address.host,
        supervised=True,
    )


def join(timeout_s: float) -> Rank:
    """Join the group that torchrun started.

    Raises:
        ConfigError: this process was not started by torchrun.
    """
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "mach.train is one rank of a group: expected torchrun's environment, got no RANK. "
            "Start it with: mach train .. or torchrun --nproc-per-node=K -m mach.train .."
        )
    store, index, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    return Rank(
        index=index,
        size=size,
        local_index=int(os.environ.get("LOCAL_RANK", index)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        run_id=os.environ.get("TORCHELASTIC_RUN_ID", "run"),
        store=dist.PrefixStore("mach", store),
        store_host=os.environ["MASTER_ADDR"],
    )


def occupy(rank: Rank, config: Config) -> torch.device:
    """Take this rank's device, cores and threads, and its own stream of random numbers."""
    torch.manual_seed(config.seed * rank.size + rank.index)  # torch begins anew in every process
    if device_kind(config) == "cuda":
        device = torch.device("cuda", gpu_of(rank.local_index, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        for name, value in _NCCL.items():
            os.environ.setdefault(name, value)
        return device
    cores = share_cores(
        available_cores(),
        rank.local_index,
        rank.local_size,
        config.launch.threads,
        config.launch.pin,
    )
    if cores.bound is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.bound)
    torch.set_num_threads(cores.threads)
    return torch.device("cpu")


def transport(rank: Rank, config: Config) -> str:
    """The transport this rank's group uses."""
    return transport_of(
        config.transport.name, rank.local_size, torch.cuda.device_count(), device_kind(config)
    )


def device_kind(config: Config) -> str:
    """`cuda` or `cpu`, as this machine and the config have it."""
    if config.launch.device != "auto":
        return config.launch.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def available_cores() -> list[int]:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
