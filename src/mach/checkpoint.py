"""How is a run saved so that every component can go on alone, and trusted when it is read?

    checkpoints/step-<n>/
      component-<k>/       torch.distributed.checkpoint, written by component k alone (no_dist)
      manifest.json        written last, atomically: without it the folder is not a checkpoint
      component-<k>.json   under `free`, where each component saves by itself: its own manifest

Nobody waits for anybody: each component saves when it gets to the flush point, and the last one in
writes the manifest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mach.component import Component
from mach.config import Config
from mach.configfile import fingerprint
from mach.errors import CheckpointError, SaveError
from mach.optim import Optimizer
from mach.runfolder import CHECKPOINTS, write_atomically

MANIFEST = "manifest.json"
_FORMAT = 1
_OPTIMIZER, _RANDOM = "optimizer/", "random_state"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: one with a manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps it has behind it."""
        return int(self.manifest["step"])


# --- writing -------------------------------------------------------------------------------


def save(
    run_dir: Path,
    step: int,
    k: int,
    component: Component,
    optimizers: Mapping[str, Optimizer],
) -> dict[str, str]:
    """Write component k's part. Returns the SHA-256 of each of its files."""
    folder = _step_dir(run_dir, step) / f"component-{k}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that died here
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it works without a process group: meant so
            _dcp().save(_state(component, optimizers), checkpoint_id=folder, no_dist=True)
        return {f"{folder.name}/{f.name}": _digest(f) for f in sorted(folder.iterdir())}
    except BaseException as error:  # dcp's own exceptions are no Exception
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise SaveError(
            f"{folder}: the checkpoint of step {step} could not be written: "
            f"{_root_of(error)}. Training goes on, the last good checkpoint stays. Make room."
        ) from error


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
    run_dir: Path, step: int, k: int, files: dict[str, str], config: Config, store: dist.Store
) -> None:
    """Tell that component k has saved; the last one in writes the manifest and prunes."""
    store.set(f"saved/{step}/{k}", json.dumps(files))
    if store.add(f"saved/{step}/count", 1) < config.components:
        return
    every: dict[str, str] = {}
    for other in range(config.components):
        every |= json.loads(store.get(f"saved/{step}/{other}"))
    write_manifest(run_dir, step, every, config)


def write_manifest(run_dir: Path, step: int, files: dict[str, str], config: Config) -> None:
    """Make a checkpoint of what all components have written, and drop those over `keep`."""
    manifest = _manifest(step, files, config)
    write_atomically(_step_dir(run_dir, step) / MANIFEST, json.dumps(manifest, indent=1))
    _prune(run_dir, config.checkpoint.keep)


def seal(
    run_dir: Path, step: int, k: int, files: dict[str, str], config: Config, life: int
) -> None:
    """Make a checkpoint of what component k has written alone, and drop its own over `keep`.

    At the last step the component that finds all others' there makes them one.
    """
    manifest = {**_manifest(step, files, config), "life": life}
    write_atomically(_step_dir(run_dir, step) / _own(k), json.dumps(manifest, indent=1))
    for old in _alone(run_dir, k)[: -config.checkpoint.keep]:
        (old.path / _own(k)).unlink(missing_ok=True)  # first: without it the rest means nothing
        shutil.rmtree(old.path / f"component-{k}", ignore_errors=True)
        with suppress(OSError):  # somebody else's are still in it
            old.path.rmdir()
    last = [_step_dir(run_dir, step) / _own(other) for other in range(config.components)]
    if step == config.steps and all(path.exists() for path in last):
        every = {n: d for path in last for n, d in _read_manifest(path)["files"].items()}
        write_manifest(run_dir, step, every, config)


def _manifest(step: int, files: dict[str, str], config: Config) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "step": step,
        "components": config.components,
        "config": fingerprint(config),
        "torch": torch.__version__,
        "files": files,
    }


def _state(component: Component, optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    state = dict(_module_tensors(component))
    for optimizer in optimizers.values():
        state |= {_OPTIMIZER + name: value for name, value in optimizer.state().items()}
    return {**state, _RANDOM: torch.get_rng_state()}


def _module_tensors(component: Component) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in component.modules().items()
        for name, tensor in module.state_dict().items()
    }


def _prune(run_dir: Path, keep: int) -> None:
    """Drop all but the last `keep` complete checkpoints, and incomplete ones older than those."""
    complete_ones = _complete(run_dir)
    oldest_kept = complete_ones[-keep:][0].step
    for folder in (run_dir / CHECKPOINTS).glob("step-*"):
        if _step_of(folder) < oldest_kept:
            shutil.rmtree(folder, ignore_errors=True)


def _dcp() -> ModuleType:
    """torch.distributed.checkpoint, imported at the first save: it takes a second, at no start."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


# --- reading -------------------------------------------------------------------------------


def latest(run_dir: Path) -> Checkpoint | None:
    """The last complete checkpoint of a run, or None."""
    found = _complete(run_dir)
    return found[-1] if found else None


def latest_of(run_dir: Path, k: int) -> Checkpoint | None:
    """The last checkpoint of component k, whether it was saved alone or with all others.

    One that is damaged is passed over for the one before it, with a warning: under `free` a
    component that goes on from a little earlier is better than one that does not go on.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    found = sorted([*_alone(run_dir, k), *_complete(run_dir)], key=lambda c: c.step)
    damage: CheckpointError | None = None
    for candidate in reversed(found):
        try:
            verify(candidate, k)
        except CheckpointError as error:
            damage = error
            warnings.warn(f"component {k}: {error}", stacklevel=2)
        else:
            return candidate
    if damage is not None:
        raise damage
    return None


def exists(run_dir: Path) -> bool:
    """Whether a run can go on from something it has saved."""
    folder = run_dir / CHECKPOINTS
    return any(folder.glob(f"step-*/{MANIFEST}")) or any(folder.glob("step-*/component-*.json"))


def find(path: Path) -> Checkpoint:
    """The checkpoint that a path means: itself, or the last one of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).exists():
        return Checkpoint(path, _read_manifest(path / MANIFEST))
    found = latest(path)
    if found is None:
        raise CheckpointError(
            f"resume={path}: expected a run folder or a checkpoint (a folder with {MANIFEST}); "
            f"got {'a folder without one' if path.exists() else 'nothing there'}"
        )
    return found


def verify(checkpoint: Checkpoint, component: int | None = None) -> None:
    """Compare the files with the manifest's checksums.

    Args:
        component: check the files of this one alone; None checks all.

    Raises:
        CheckpointError: names the first file that is missing or damaged.
    """
    for name, digest in checkpoint.manifest["files"].items():
        if component is not None and not name.startswith(f"component-{component}/"):
            continue
        file = checkpoint.path / name
        if not file.exists():
            raise CheckpointError(f"{file}: expected by {MANIFEST}, got no such file. {_ADVICE}")
        if (found := _digest(file)) != digest:
            raise CheckpointError(
                f"{file}: damaged: expected SHA-256 {digest[:12]}.., got {found[:12]}... {_ADVICE}"
            )


_ADVICE = "Nothing was overwritten; an earlier checkpoint can be taken: resume=PATH out=.."


def load_weights(checkpoint: Checkpoint, k: int, component: Component) -> None:
    """Take over body, head and student alone: what inference needs.

    Raises:
        CheckpointError: damaged, or of another network: names what differs.
    """
    verify(checkpoint, k)
    check_fit(checkpoint, k, component)
    _read(checkpoint, k, _module_tensors(component))


def load(
    checkpoint: Checkpoint, k: int, component: Component, optimizers: Mapping[str, Optimizer]
) -> None:
    """Put component k back to where it was saved.

    Raises:
        CheckpointError: damaged, or of another network: names what differs.
    """
    verify(checkpoint, k)
    stored = check_fit(checkpoint, k, component)
    modules = _module_tensors(component)
    optimizer_state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(_OPTIMIZER)
    }
    random_state = torch.get_rng_state()
    _read(checkpoint, k, {**modules, **optimizer_state, _RANDOM: random_state})
    for optimizer in optimizers.values():
        optimizer.load_state(
            {
                name: value
                for key, value in optimizer_state.items()
                if optimizer.owns(name := key.removeprefix(_OPTIMIZER))
            }
        )
    torch.set_rng_state(random_state)
    component.resume(checkpoint.step)


def _read(checkpoint: Checkpoint, k: int, tensors: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _dcp().load(tensors, checkpoint_id=checkpoint.path / f"component-{k}", no_dist=True)


def check_fit(checkpoint: Checkpoint, k: int, component: Component) -> Mapping[str, Any]:
    """Compare names and shapes with those of component k. Returns what is stored, by name.

    Raises:
        CheckpointError: the checkpoint is of another network; names the first tensor that differs.
    """
    folder = checkpoint.path / f"component-{k}"
    metadata = _dcp().FileSystemReader(folder).read_metadata()
    stored: Mapping[str, Any] = metadata.state_dict_metadata
    _same_tensors(folder, _module_tensors(component), stored)
    return stored


def _same_tensors(folder: Path, here: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    there = {n for n in stored if not n.startswith(_OPTIMIZER) and n != _RANDOM}
    for name in sorted(here.keys() | there):
        expected = list(here[name].shape) if name in here else "no such tensor"
        got = list(stored[name].size) if name in there else "no such tensor"
        if expected != got:
            raise CheckpointError(
                f"{folder}: {name}: expected {expected}, got {got}. The checkpoint is of another "
                "network; repeat the config it was trained with."
            )


def _own(k: int) -> str:
    return f"component-{k}.json"


def _alone(run_dir: Path, k: int) -> list[Checkpoint]:
    """What component k has saved by itself, oldest first; a damaged manifest is passed over."""
    found = []
    for path in (run_dir / CHECKPOINTS).glob(f"step-*/{_own(k)}"):
        try:
            found.append(Checkpoint(path.parent, _read_manifest(path)))
        except CheckpointError as error:
            warnings.warn(f"component {k}: {error}", stacklevel=2)
    return sorted(found, key=lambda c: c.step)


def _complete(run_dir: Path) -> list[Checkpoint]:
    manifests = (run_dir / CHECKPOINTS).glob(f"step-*/{MANIFEST}")
    found = [Checkpoint(path.parent, _read_manifest(path)) for path in manifests]
    return sorted(found, key=lambda c: c.step)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"{path}: expected format {_FORMAT}, got {manifest['format']}: written by another "
                "version of mach"
            )
        for key in ("step", "components", "config", "files"):
            manifest[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: damaged: expected a manifest, got {said}. {_ADVICE}"
        ) from error
    assert isinstance(manifest, dict)
    return manifest


def _step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"step-{step}"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
