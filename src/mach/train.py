"""One rank of a run: config, rank, component, channels, trainer, checkpoint, report.

mach train [overrides]                                   forks a group of these
torchrun --nproc-per-node=K -m mach.train [overrides]    starts a group, too
"""

import sys

from mach.introduce import introduce, parse

if __name__ == "__main__":
    introduce(sys.argv[1:])  # may start this program again, before the slow imports below

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, get_error_handler

from mach import runfolder
from mach.config import Config
from mach.configfile import from_yaml, load, to_yaml
from mach.errors import ChannelTimeoutError, ConfigError, MachError, PeerLostError
from mach.launcher.compose import compose
from mach.launcher.folder import earlier_result, with_folder
from mach.launcher.preflight import preflight
from mach.launcher.rearing import rear
from mach.outofmemory import OF_A_RUN, told
from mach.rank import Rank, join, join_supervised, store_watched
from mach.say import let_go, say
from mach.session import enlist, take_seat, train_free, train_ordered, warm_up
from mach.storeaddress import StoreAddress

_START_TIMEOUT_S = 300.0
_AGREE_S = 3600.0
"""Longest wait for component 0, which fetches the data. torchrun ends who waits where it falls."""
_GRACE_S = 5.0
_AGREED = "agreed"
"""Key of the store: the config that all starts of a group have."""


def train(rank: Rank, config: Config, run_dir: Path) -> None:
    """Train component `rank.index` from the first step to the last and report."""
    free = config.schedule == "free"
    if free:
        enlist(rank, config)
    seat = take_seat(rank, config, run_dir)
    if free:
        train_free(seat)
    else:
        train_ordered(seat)


# --- coming and going ------------------------------------------------------------------------


def _agree(rank: Rank, run_dir: Path, overrides: list[str], held: ExitStack) -> Config | None:
    """Under somebody else's torchrun rank 0 composes and checks the config; the others take it.

    Args:
        run_dir: the folder of a run that names none.
        held: keeps the folder, on rank 0.

    Returns:
        None where the run that is to go on has ended.

    Raises:
        MachError: on rank 0 what is wrong; on the others that they have not heard from it in time.
    """
    key = f"config/{rank.restarts}"
    if rank.index == 0:
        try:
            config = _decide(rank, run_dir, overrides, held)
        except MachError as error:
            rank.store.set(key, json.dumps({"refused": str(error), "code": error.exit_code}))
            raise
        rank.store.set(key, json.dumps({"config": config and to_yaml(config)}))
        return config
    message = json.loads(_heard(rank.store, key))
    if "refused" in message:  # rank 0 says why
        _leave(message["code"])
    return message["config"] and from_yaml(message["config"])


def _heard(store: dist.Store, key: str) -> bytes:
    try:
        store.wait([key], timedelta(seconds=_AGREE_S))
    except dist.DistStoreError as error:
        raise ChannelTimeoutError(
            f"expected a config that has been checked from component 0 within {_AGREE_S:g} s; got "
            "none. Does it still fetch the data? Fetch that before, to data.cache"
        ) from error
    return store.get(key)


def _decide(rank: Rank, run_dir: Path, overrides: list[str], held: ExitStack) -> Config | None:
    if rank.store.check([_AGREED]):  # by an earlier start of this group, of which one fell
        config = from_yaml(rank.store.get(_AGREED).decode())
        held.enter_context(runfolder.hold(_folder_of(config)))
        return config
    config = with_folder(compose(overrides), run_dir)
    if config.components != rank.size:
        raise ConfigError(
            f"components: expected {rank.size}, the number of torchrun's processes; got "
            f"{config.components}. Use --nproc-per-node={config.components} or "
            f"components={rank.size}."
        )
    run_dir = _folder_of(config)
    if earlier_result(config, run_dir) is not None:
        print(f"Result: {run_dir / runfolder.RESULT}", flush=True)
        return None
    config = preflight(config, run_dir, rank.local_size)
    held.enter_context(runfolder.hold(run_dir))
    rank.store.set(_AGREED, to_yaml(config))
    return config


def _folder_of(config: Config) -> Path:
    assert config.out is not None  # whoever starts a run gives it one
    return Path(config.out)


def _run(options: Any, overrides: list[str]) -> None:
    if options.store is not None:
        address = StoreAddress.parse(options.store)
        config = load(options.run / runfolder.CONFIG)
        with store_watched(f"{address.host}:{address.port}"):
            rank = join_supervised(address, options.component, config.components, _START_TIMEOUT_S)
            train(rank, config, options.run)
        return
    with store_watched(None), ExitStack() as held:
        rank = join(_START_TIMEOUT_S)
        if options.composed:
            train(rank, load(options.run / runfolder.CONFIG), options.run)
            return
        agreed = _agree(rank, options.run, overrides, held)
        if agreed is not None:
            train(rank, agreed, _folder_of(agreed))


def _leave(code: int) -> None:
    """End at once: a thread that waits in gloo would abort the interpreter's own shutdown."""
    let_go()
    os._exit(code)


def _tell(handler: ErrorHandler, error: BaseException) -> None:
    """Leave word of an error that is being handled, whole.

    torchrun's agent ends the others when one has fallen; one that was writing then would leave an
    empty file, which the agent cannot read: it would fall, too. Of one of ours the text is enough:
    torchrun prints a traceback where there is one.
    """
    if isinstance(error, MachError):
        error.__traceback__ = error.__cause__ = None
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        handler.record_exception(error)
    except OSError:  # a full disk: no word rather than half of one
        with suppress(OSError):
            Path(handler._get_error_file_path() or "").unlink()
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str]) -> None:
    """Be one rank. What goes wrong ends the process, with 1 or 2 (see mach.errors)."""
    options, overrides = parse(argv)
    handler = get_error_handler()  # torchrun's way to hear of an error
    handler.initialize()
    try:
        with told(OF_A_RUN):
            _run(options, overrides)
    except MachError as error:
        who = "" if options.component is None else f"component {options.component}: "
        say(f"{who}{error}")
        _tell(handler, error)
        if isinstance(error, PeerLostError):
            time.sleep(_GRACE_S)  # let the one that fell be found before those it took with it
        _leave(error.exit_code)
    except Exception as error:
        _tell(handler, error)
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1)


if __name__ == "__main__":
    options, _ = parse(sys.argv[1:])
    if options.control is None:
        main(sys.argv[1:])
        _leave(0)
    warm_up()
    rear(options, main)
