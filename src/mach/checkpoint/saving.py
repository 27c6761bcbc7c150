"""How does a component save itself?"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mach.checkpoint.catalog import (
    FORMAT,
    MANIFEST,
    digest_of,
    intact_ones,
    own_manifest,
    part,
    read_manifest,
    saved_alone,
    step_dir,
    step_of,
)
from mach.checkpoint.state import dcp
from mach.config import Config
from mach.configfile import fingerprint
from mach.data.preprocessing import Preprocessing
from mach.errors import SaveError
from mach.runfolder import CHECKPOINTS, write_atomically
from mach.say import say


def warm_up() -> None:
    """Load now all that a first save would load (a second of it): save next to nothing.

    What can keep that from being written, as a full disk, keeps nobody from training.
    """
    try:
        with TemporaryDirectory() as scratch:
            _write({"nothing": torch.zeros(1)}, Path(scratch))
    except BaseException as error:  # dcp's own exceptions are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise


def save(
    run_dir: Path,
    step: int,
    k: int,
    tensors: Mapping[str, Tensor],
) -> dict[str, str]:
    """Write component k's part: what `tensors_of` tells, or a copy of it.

    Returns:
        The SHA-256 of each of its files.
    """
    folder = part(run_dir, step, k)
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that died here
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write(tensors, folder)
        return {f"{folder.name}/{f.name}": digest_of(f) for f in sorted(folder.iterdir())}
    except BaseException as error:  # dcp's own exceptions are no Exception
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _failed(folder, step, error) from error


def _failed(path: Path, step: int, error: BaseException) -> SaveError:
    return SaveError(
        f"{path}: the checkpoint of step {step} could not be written: "
        f"{_root_of(error)}. Training goes on, the last good checkpoint stays. Make room."
    )


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it works without a process group: meant so
        dcp().save(dict(tensors), checkpoint_id=folder, no_dist=True)


def _root_of(error: BaseException) -> str:
    """The operating system's own words, where they are what dcp wraps."""
    seen: list[BaseException] = [error]
    for one in seen:  # grows while it is gone through
        failures = getattr(one, "failures", None)  # of dcp's CheckpointException, by rank
        wrapped = [pair[0] for pair in failures.values()] if isinstance(failures, dict) else []
        wrapped += [one.__cause__, one.__context__]
        seen += [other for other in wrapped if other is not None and other not in seen]
    said = next((one.strerror for one in seen if isinstance(one, OSError) and one.strerror), None)
    return said or str(error)


def complete(
    run_dir: Path,
    step: int,
    k: int,
    files: dict[str, str],
    config: Config,
    store: dist.Store,
    preprocessing: Preprocessing | None = None,
    start: int = 0,
) -> None:
    """Tell that component k has saved; the last one in writes the manifest and prunes.

    Args:
        start: how often the group was started before. What a start that ended had told says nothing
            of the files of this one.
    """
    here = f"saved/{start}/{step}"
    store.set(f"{here}/{k}", json.dumps(files))
    if store.add(f"{here}/count", 1) < config.components:
        return
    every: dict[str, str] = {}
    for other in range(config.components):
        every |= json.loads(store.get(f"{here}/{other}"))
    write_manifest(run_dir, step, every, config, preprocessing)


def save_together(
    run_dir: Path,
    step: int,
    k: int,
    tensors: Mapping[str, Tensor],
    config: Config,
    store: dist.Store,
    preprocessing: Preprocessing | None = None,
    start: int = 0,
) -> bool:
    """Write component k's part of a checkpoint of all. What cannot be written is told: training
    goes on. Returns whether it is written."""
    try:
        files = save(run_dir, step, k, tensors)
        complete(run_dir, step, k, files, config, store, preprocessing, start)
    except SaveError as error:
        say(f"component {k}: {error}")
        return False
    return True


def write_manifest(
    run_dir: Path,
    step: int,
    files: dict[str, str],
    config: Config,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Make a checkpoint of what all components have written, and drop those over `keep`.

    Raises:
        SaveError: there is no room for the manifest.
    """
    manifest = _manifest(step, files, config, preprocessing)
    path = step_dir(run_dir, step) / MANIFEST
    try:
        write_atomically(path, json.dumps(manifest, indent=1))
    except OSError as error:
        raise _failed(path, step, error) from error
    _prune(run_dir, _kept(config, step))


def seal(
    run_dir: Path,
    step: int,
    k: int,
    files: dict[str, str],
    config: Config,
    life: int,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Make a checkpoint of what component k has written alone, and drop its own over `keep`.

    At the last step the component that finds all others' there makes them one.
    """
    manifest = {**_manifest(step, files, config, preprocessing), "life": life}
    write_atomically(step_dir(run_dir, step) / own_manifest(k), json.dumps(manifest, indent=1))
    for old in saved_alone(run_dir, k)[: -_kept(config, step)]:
        (old.path / own_manifest(k)).unlink(
            missing_ok=True
        )  # first: without it the rest means nothing
        shutil.rmtree(old.path / f"component-{k}", ignore_errors=True)
        with suppress(OSError):  # somebody else's are still in it
            old.path.rmdir()
    last = [step_dir(run_dir, step) / own_manifest(other) for other in range(config.components)]
    if step == config.steps and all(path.exists() for path in last):
        every = {n: d for path in last for n, d in read_manifest(path)["files"].items()}
        write_manifest(run_dir, step, every, config, preprocessing)


def unsaved(step: int) -> SaveError:
    """What a run ends with whose last checkpoint could not be written."""
    return SaveError(
        f"the checkpoint of the last step, {step}, could not be written (said above), so this run "
        "has no result; its log is whole. Make room, and go on from its last good checkpoint: "
        "resume=auto"
    )


def _manifest(
    step: int, files: dict[str, str], config: Config, preprocessing: Preprocessing | None
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": step,
        "components": config.components,
        "config": fingerprint(config),
        "torch": torch.__version__,
        **({} if preprocessing is None else preprocessing.describe()),
        "files": files,
    }


def _kept(config: Config, step: int) -> int:
    """How many checkpoints stay. While it trains the one before the last is among them in any case:
    steps after it have shown that it is good."""
    keep = config.checkpoint.keep
    return keep if step == config.steps else max(2, keep)


def _prune(run_dir: Path, keep: int) -> None:
    """Drop all but the last `keep` complete checkpoints, and incomplete ones older than those; not
    what a component has saved alone, which it drops by itself (`seal`)."""
    oldest_kept = intact_ones(run_dir)[-keep:][0].step
    for folder in (run_dir / CHECKPOINTS).glob("step-*"):
        if step_of(folder) < oldest_kept and not any(folder.glob("component-*.json")):
            shutil.rmtree(folder, ignore_errors=True)
