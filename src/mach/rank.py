"""Who is this process: which component, on which device, with which deadlines?

The one place that reads the environment a launcher made. torchrun and `mach train` set the same
variables, so a rank cannot tell them apart.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mach.config import Config
from mach.errors import ChannelTimeoutError, ConfigError, PeerLostError
from mach.randomness import seed_of
from mach.storeaddress import StoreAddress
from mach.topology import VISIBLE_GPUS, gpu_of, share_cores, transport_of

_SWITCH_S = 0.0005
"""Longest that one thread keeps Python's lock from another that wants it. Every torch operation
gives the lock away; with CPython's own 5 ms a training thread beside one that writes a checkpoint
waits so long at each of the hundreds of a step: a save of 0.1 s stopped it for up to a second."""
_LOOK_S = 0.02
"""Time between two looks for those who have not come up yet."""
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torch's rendezvous reads of its environment."""


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


def join_supervised(address: StoreAddress, component: int, size: int, timeout_s: float) -> Rank:
    """Join the run whose supervisor started this process.

    Raises:
        ConfigError: the store at this address is of another run.
    """
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address.host, address.port, is_master=False, timeout=timeout)
    hosted = store.get("run").decode()
    if hosted != address.run:
        raise ConfigError(
            f"component {component} has run {address.run}; the store at "
            f"{address.host}:{address.port} has run {hosted}. It was sent to the wrong store."
        )
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
        ChannelTimeoutError: the rest of the group did not come up.
    """
    missing = [name for name in _OF_TORCHRUN if name not in os.environ]
    if missing:
        raise ConfigError(
            "mach.train is one rank of a group: expected torchrun's environment, got no "
            f"{', '.join(missing)}. "
            "Start it with: mach train .. or torchrun --nproc-per-node=K -m mach.train .."
        )
    store, index, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    store = dist.PrefixStore("mach", store)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Rank(
        index=index,
        size=size,
        local_index=int(os.environ.get("LOCAL_RANK", index)),
        local_size=local_size,
        restarts=restarts if local_size == size else muster(store, index, size, timeout_s),
        run_id=os.environ.get("TORCHELASTIC_RUN_ID", "run"),
        store=store,
        store_host=store_host() or "",
    )


def muster(store: dist.Store, index: int, size: int, timeout_s: float) -> int:
    """Agree on how often the group was started before. Returns it when all have come.

    On several machines torchrun's own count is of no use: a machine whose ranks did not fall starts
    them again without counting it. So rank 0 counts, and tells the others. The store still holds
    what an earlier start has left; rank 0 cannot tell that from what is new, but a rank knows its
    own word. (No rank of an earlier start is alive by now: torchrun sees to that.)

        rank r  call/<r> = word               ..      heard/<n>/<r>
        rank 0                  answer/<word> = n                   until all have heard n

    Raises:
        ChannelTimeoutError: they did not all come.
    """
    if index > 0:
        word = uuid.uuid4().hex
        store.set(f"call/{index}", word)
        _until(lambda: store.check([f"answer/{word}"]), timeout_s, lambda: "component 0")
        start = int(store.get(f"answer/{word}"))
        store.set(f"heard/{start}/{index}", "1")
        return start
    start = store.add("starts", 1) - 1
    missing = set(range(1, size))

    def all_heard() -> bool:
        for other in sorted(missing):
            if store.check([f"call/{other}"]):
                store.set(f"answer/{store.get(f'call/{other}').decode()}", str(start))
            if store.check([f"heard/{start}/{other}"]):
                missing.remove(other)
        return not missing

    _until(all_heard, timeout_s, lambda: f"components {sorted(missing)}")
    return start


def _until(seen: Callable[[], bool], timeout_s: float, who: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        if time.monotonic() > deadline:
            raise ChannelTimeoutError(f"{who()} did not come up; waited {timeout_s:g} s")
        time.sleep(_LOOK_S)


@contextmanager
def store_watched(address: str | None) -> Iterator[None]:
    """A store that is gone, or was never there, ends it with one sentence.

    Args:
        address: HOST:PORT of the store; None for that of torchrun's group.

    Raises:
        PeerLostError: it is, or was not.
    """
    try:
        yield
    except dist.DistNetworkError as error:
        where = address or f"{store_host()}:{os.environ.get('MASTER_PORT')}"
        raise PeerLostError(
            f"the run's store at {where}: expected an answer, got none. What hosts it has ended or "
            "cannot be reached. Start all components again, with resume=auto if there are "
            f"checkpoints ({str(error).partition('. ')[0]})"
        ) from error


def store_host() -> str | None:
    """The host of the store of torchrun's group; None in a process that is in none."""
    return os.environ.get("MASTER_ADDR")


def occupy(rank: Rank, config: Config) -> torch.device:
    """Take this rank's device, cores and threads, and its own stream of random numbers."""
    sys.setswitchinterval(_SWITCH_S)
    torch.manual_seed(seed_of(config.seed, rank.size, rank.index))
    if device_kind(config) == "cuda":
        device = torch.device("cuda", gpu_of(rank.local_index, torch.cuda.device_count()))
        torch.cuda.set_device(device)
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


def keep_heap() -> None:
    """Tell Python's collector that all there is by now lives to the end.

    A full collection looks at every object, 270,000 of them once torch is loaded, and stops the
    training thread for 0.16 s or, beside others on the same cores, twice that.
    """
    gc.freeze()


def transport(rank: Rank, config: Config) -> str:
    """The transport this rank's group uses: `auto` means nccl where it does on all machines."""
    own = transport_of(
        config.transport.name, rank.local_size, torch.cuda.device_count(), device_kind(config)
    )
    if rank.local_size == rank.size:
        return own
    keys = [f"transport/{rank.restarts}/{k}" for k in range(rank.size)]
    rank.store.set(keys[rank.index], own)
    _until(lambda: rank.store.check(keys), config.start_timeout_s, lambda: "other components")
    return own if {rank.store.get(key).decode() for key in keys} == {own} else "gloo"


def device_kind(config: Config) -> str:
    """`cuda` or `cpu`, as this machine and the config have it."""
    if config.launch.device != "auto":
        return config.launch.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_named(name: str) -> torch.device:
    """The device that `device=` asks for outside a run: cpu, cuda, or auto.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ConfigError("device=cuda: expected a GPU, found none. Use device=cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and present) else "cpu")


def age_s() -> float:
    """Seconds since this process was started, its imports included (Linux; elsewhere since now)."""
    try:
        # Field 22 of proc(5)'s stat: start in clock ticks after boot. The name may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """Memory this process has in use by now (Linux; elsewhere 0)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def gpu_names() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    names = os.environ.get(VISIBLE_GPUS)
    if names is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in names.split(",")][: torch.cuda.device_count()]


@contextmanager
def confined(cores: tuple[int, ...] | None, gpus: Sequence[str]) -> Iterator[None]:
    """Have this process, and those it starts, use only a part of the machine for a while.

    Args:
        cores: None leaves them all. (Linux; elsewhere they are all left.)
        gpus: names as of `gpu_names`; none leaves them all. Processes started in the `with` see no
            others; this one, which may have seen them before, computes on the first.
    """
    bind = cores is not None and hasattr(os, "sched_setaffinity")
    before, seen = set(available_cores()), os.environ.get(VISIBLE_GPUS)
    computes: AbstractContextManager[object] = nullcontext()
    if gpus and torch.cuda.is_available():
        computes = torch.cuda.device(gpu_names().index(gpus[0]))
    try:
        if bind:
            os.sched_setaffinity(0, cores or ())
        if gpus:
            os.environ[VISIBLE_GPUS] = ",".join(gpus)
        with computes:
            yield
    finally:
        if bind:
            os.sched_setaffinity(0, before)
        if seen is not None:
            os.environ[VISIBLE_GPUS] = seen
        elif gpus:
            del os.environ[VISIBLE_GPUS]


def available_cores() -> list[int]:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
