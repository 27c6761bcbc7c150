"""Can this run work at all? Asked once, before any rank has trained a step."""

from __future__ import annotations

import ipaddress
from functools import partial
from pathlib import Path

import torch

from mach import checkpoint, runfolder
from mach.channels.listen import LOOPBACK, listen_on
from mach.channels.ncclpair import may_share_gpus
from mach.checkpoint.state import OPTIMIZER
from mach.config import Config
from mach.configfile import fingerprint, load
from mach.data import Dataset, check, open_dataset
from mach.data.preprocessing import Preprocessing
from mach.data.tokenizers import refuse_other
from mach.errors import ChannelError, CheckpointError, ConfigError
from mach.extras import missing
from mach.rank import device_kind, store_host
from mach.topology import transport_of
from mach.trainer import Assembly, settle
from mach.trainer.measure import threads_of_a_rank
from mach.trainer.settle import inherit


def preflight(config: Config, run_dir: Path, places: int) -> Config:
    """Check devices, data, network and checkpoint, then claim the run folder.

    Args:
        places: components on this machine.

    Returns:
        The config as the components will have it.

    Raises:
        MachError: with exit code 2, for the first thing that cannot work; nothing was written.
    """
    _check_network(config, places, store_host())
    new = not runfolder.holds_run(run_dir)
    config = check_folder(config, run_dir)
    config, dataset = prepare(config, places)
    assembly = Assembly(config, dataset.task)
    assembly.check()
    for k in range(config.components):
        found = resume_point(config, run_dir, k)
        if found is not None:
            checkpoint.verify(found, k)
            check_data(found, run_dir, dataset.preprocessing)
            assembly.dry(partial(_check_fit, found, assembly, k))
    runfolder.claim(run_dir, config, new)
    return config


def check_folder(config: Config, run_dir: Path) -> Config:
    """Whether this run may have the folder. Returns its config, with what the run that it goes on
    from has found.

    Raises:
        MachError: with exit code 2: it holds a run, and not this one with `resume=auto`.
    """
    before = None if config.model.settled else _goes_on_from(config, run_dir)
    if before is not None:
        config = inherit(config, before)
    return runfolder.check(run_dir, config)


def prepare(config: Config, places: int) -> tuple[Config, Dataset]:
    """Check devices and data, and find where the network is cut. Writes nothing.

    Returns:
        The config with its cut, and the data.

    Raises:
        MachError: with exit code 2, for the first thing that cannot work.
    """
    _check_devices(config, places)
    _check_compiler(config)
    _check_report(config)
    dataset = open_dataset(config.data)
    check(dataset)
    with threads_of_a_rank(config, places):
        return settle(config, dataset, torch.device(device_kind(config))), dataset


def resume_point(config: Config, run_dir: Path, k: int) -> checkpoint.Checkpoint | None:
    """The checkpoint component k goes on from, or None for a start from nothing.

    The last one in its own folder, after a death or with `resume=auto`; else the one that
    `resume=PATH` names. Under `free` that is the last one of this component; otherwise the last one
    that all have.

    Raises:
        CheckpointError: there is none where one was named, or it is of another run or network.
    """
    free = config.schedule == "free"
    own = found = checkpoint.latest_of(run_dir, k) if free else checkpoint.latest(run_dir)
    if own is None and config.resume not in (None, "auto"):
        named = Path(config.resume)
        found = checkpoint.latest_of(named, k) if free else None
        found = found or checkpoint.find(named)
    if found is None:
        return None
    if found.manifest["components"] != config.components:
        raise CheckpointError(
            f"{found.path}: expected components={config.components}, got a checkpoint of "
            f"{found.manifest['components']}. A checkpoint cannot be cut anew."
        )
    if own is not None and found.manifest["config"] != fingerprint(config):
        source = load(run_dir / runfolder.CONFIG)
        raise CheckpointError(
            f"{found.path}: was made with another config: "
            f"{'; '.join(runfolder.differences(source, config)) or 'see its manifest'}"
        )
    if found.step > config.steps or (own is None and found.step == config.steps):
        raise CheckpointError(
            f"{found.path}: expected a step below steps={config.steps}, got step {found.step}. "
            "Raise steps."
        )
    return found


def check_data(found: checkpoint.Checkpoint, run_dir: Path, data: Preprocessing) -> None:
    """Refuse to go on from a checkpoint with data that the network was not trained on.

    A run that begins from another's may have other data, but no other meaning of its tokens.

    Raises:
        MachError: the data is another; names both.
    """
    if found.is_of(run_dir):
        begin_anew = f"begin a new run from it: resume={run_dir} out=.."
        data.refuse_other(found.path, found.manifest, begin_anew)
    else:
        refuse_other(found.path, data.tokenizer, found.manifest.get("tokenizer"))


def _goes_on_from(config: Config, run_dir: Path) -> Config | None:
    """Config of the run in this folder or of the one that `resume=PATH` names, if there is one."""
    if config.resume is None:
        return None
    named = run_dir if config.resume == "auto" else Path(config.resume)
    folders = [named, *named.absolute().parents[:2]]  # a checkpoint is two below its run
    for folder in folders[:1] if config.resume == "auto" else folders:
        if (folder / runfolder.CONFIG).is_file():
            return load(folder / runfolder.CONFIG)
    return None


def _check_fit(
    found: checkpoint.Checkpoint, assembly: Assembly, k: int, device: torch.device
) -> None:
    """Refuse a checkpoint of another network or optimizer, before the run folder is taken."""
    component, optimizers = assembly.component(k, device)
    stored = checkpoint.check_fit(found, k, component)
    remembered = [name.removeprefix(OPTIMIZER) for name in stored if name.startswith(OPTIMIZER)]
    for optimizer in optimizers.values():
        optimizer.check_state(filter(optimizer.owns, remembered))


def _check_devices(config: Config, places: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.launch.device == "cuda" and gpus == 0:
        raise ConfigError("launch.device=cuda: expected a GPU, found none. Use launch.device=cpu.")
    if transport_of(config.transport.name, places, gpus, device_kind(config)) != "nccl":
        return
    if device_kind(config) == "cuda" and (gpus >= places or may_share_gpus()):
        return
    raise ConfigError(
        f"transport=nccl: expected a GPU for each of the {places} components of this machine, "
        f"found {gpus if device_kind(config) == 'cuda' else 0}. Use transport=gloo: on CPU, or "
        "with components that share a GPU. (From NCCL 2.30 on they may share one with nccl, too, "
        "where NCCL_MULTI_RANK_GPU_ENABLE=1 is set.)"
    )


def _check_compiler(config: Config) -> None:
    """torch.compile writes C++, and for GPUs Triton as well."""
    if not config.model.compile:
        return
    # The first import of torch's compiler takes seconds.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "model.compile=true: expected a C++ compiler, which torch.compile needs; found none. "
            "Install g++ (or set CXX to another), or set model.compile=false."
        ) from error
    if device_kind(config) == "cuda" and missing("triton"):
        raise ConfigError(
            "model.compile=true: expected Triton, with which torch.compile writes for GPUs; found "
            "none. Install triton, or set model.compile=false or launch.device=cpu."
        )


def _check_report(config: Config) -> None:
    if config.report.tensorboard and missing("tensorboard"):
        raise ConfigError(
            "report.tensorboard=true: expected the package tensorboard, found none. "
            "pip install 'mach[tensorboard]'"
        )


def _check_network(config: Config, places: int, host: str | None) -> None:
    """Can edges listen on this machine, and the other machines, if there are any, reach them?"""
    # Nobody comes to a loopback from another machine: several torchruns on this one.
    alone = config.components == places or host is None or _is_loopback(host)
    bind = config.launch.bind
    if not alone and (bind is None or _is_address(bind)):
        raise ConfigError(
            f"launch.bind: expected auto, or the name of an interface that every machine has, as "
            f"{places} of the {config.components} components are on this machine; got "
            f"{'none, which is loopback' if bind is None else f'{bind}, an address of one'}. Set "
            "launch.bind=auto (launch=slurm does)."
        )
    if bind is None:
        return
    try:
        listen = listen_on(bind, host or LOOPBACK)
    except ChannelError as error:
        raise ConfigError(str(error)) from error
    if not alone and _is_loopback(listen):
        raise ConfigError(
            f"launch.bind={bind}: expected an address that the other machines reach; got {listen}, "
            f"which is what this machine takes the store's host {host} for. Start every torchrun "
            "with --local-addr=ADDRESS, its machine's own, or set launch.bind to an interface."
        )


def _is_loopback(place: str) -> bool:
    return _is_address(place) and ipaddress.ip_address(place).is_loopback


def _is_address(place: str) -> bool:
    try:
        ipaddress.ip_address(place)
    except ValueError:
        return False
    return True
