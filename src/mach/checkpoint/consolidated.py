"""What is kept of a window that was consolidated, and is it whole?

<run>/consolidated/<j..i>/
  window.safetensors   student, bodies and head
  consolidate.yaml     what `mach consolidate` was asked for
  consolidated.json    how it was made, how good it is, checksums; written last
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mach.checkpoint.catalog import Checkpoint, digest_of, step_dir
from mach.config.window import CONSOLIDATED, Name
from mach.errors import CheckpointError
from mach.runfolder import appearing

WEIGHTS, ASKED, MANIFEST = "window.safetensors", "consolidate.yaml", "consolidated.json"
_FORMAT = 1
_AGAIN = "Make it again: mach consolidate"


@dataclass(frozen=True)
class Consolidated:
    """A window that was consolidated: an entry of its run."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> Name:
        return Name(self.manifest["first"], self.manifest["last"], consolidated=True)

    def made_of(self) -> dict[int, Checkpoint]:
        """The checkpoints of the run that it was made of, by component; they may be gone since."""
        run_dir = self.path.parents[1]
        steps = {int(k): step for k, step in self.manifest["checkpoints"].items()}
        return {k: Checkpoint(step_dir(run_dir, s), {"step": s}) for k, s in steps.items()}

    def load(self, window: nn.Module) -> None:
        """Take its weights over.

        Raises:
            CheckpointError: they are missing, damaged, or of another network: names the first
                tensor that differs.
        """
        file = self.path / WEIGHTS
        stored = _read(file, self.manifest["files"].get(WEIGHTS))
        here = window.state_dict()
        for name in sorted(here.keys() | stored.keys()):
            expected, got = _told(here.get(name)), _told(stored.get(name))
            if expected != got:
                raise CheckpointError(
                    f"{file}: {name}: expected {expected}, got {got}. The weights are of another "
                    f"network than the run's config has. {_AGAIN}."
                )
        window.load_state_dict(stored)


def place(run_dir: Path, name: Name) -> Path:
    """Where it is, or would be."""
    return run_dir / CONSOLIDATED / f"{name.first}..{name.last}"


def entries(run_dir: Path) -> list[Consolidated]:
    """All of a run, in the order of their windows.

    Raises:
        CheckpointError: one is damaged.
    """
    found = [_open(path.parent) for path in (run_dir / CONSOLIDATED).glob(f"[!.]*/{MANIFEST}")]
    return sorted(found, key=lambda entry: (entry.name.first, entry.name.last))


def find(run_dir: Path, name: Name) -> Consolidated:
    """What was made of a window.

    Raises:
        CheckpointError: nothing was, says of which something was; or it is damaged.
    """
    folder = place(run_dir, name)
    if not (folder / MANIFEST).is_file():
        others = ", ".join(str(entry.name) for entry in entries(run_dir))
        raise CheckpointError(
            f"window={name}: expected a window that was consolidated; {run_dir} has "
            f"{others or 'none'}. Make it: mach consolidate {run_dir} "
            f"window={name.first}..{name.last}"
        )
    return _open(folder)


def run_of(path: Path) -> tuple[Path, str] | None:
    """The run folder and the window's name that a path means: of an entry's folder, or of a file in
    it; None: it is no entry."""
    # Links stay links, as the run may be where they are.
    folder = Path(os.path.normpath((path.parent if path.is_file() else path).absolute()))
    if not (folder / MANIFEST).is_file():
        return None
    return folder.parents[1], f"{CONSOLIDATED}/{folder.name}"


def write(
    run_dir: Path, name: Name, window: nn.Module, manifest: dict[str, Any], asked: str
) -> Consolidated:
    """Keep a window, in place of what was kept of it before.

    Args:
        manifest: how it was made; what is needed to read it is added.
        asked: YAML.

    Raises:
        RunFolderError: the run folder cannot be written.
    """
    from safetensors.torch import save

    out = place(run_dir, name)
    with appearing(out) as folder:
        # Copied: what two layers share is stored twice, which safetensors refuses otherwise.
        copied = {n: t.detach().to("cpu", copy=True) for n, t in window.state_dict().items()}
        tensors = {n: t.contiguous() for n, t in copied.items()}
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (folder / ASKED).write_text(asked)
        files = {file: digest_of(folder / file) for file in (WEIGHTS, ASKED)}
        whole = {"format": _FORMAT, "first": name.first, "last": name.last, **manifest}
        whole |= {"files": files}
        (folder / MANIFEST).write_text(json.dumps(whole, indent=1))
    return Consolidated(out, whole)


def _open(folder: Path) -> Consolidated:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}: of another version of mach")
        for key in ("metrics", "split", "params", "flops", "checkpoints", "files"):
            manifest[key]
        if f"{manifest['first']}..{manifest['last']}" != folder.name:
            raise ValueError(f"the window {manifest['first']}..{manifest['last']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: expected what `mach consolidate` has written of {folder.name}; got {said}. "
            f"{_AGAIN}, with overwrite=true."
        ) from error
    return Consolidated(folder, manifest)


def _read(file: Path, digest: str | None) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"{file}: expected by {MANIFEST} beside it; no such file. {_AGAIN}.")
    if (found := digest_of(file)) != digest:
        raise CheckpointError(
            f"{file}: damaged or changed: expected SHA-256 {str(digest)[:12]}.. as {MANIFEST} has "
            f"it, got {found[:12]}... {_AGAIN}, with overwrite=true."
        )
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: expected a file of safetensors; got {error}") from error


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "no such tensor"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
