"""Which checkpoints does a run have, and are they whole?"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mach.data.tokenizers import Tokenizer, restore
from mach.errors import CheckpointError
from mach.runfolder import CHECKPOINTS

MANIFEST = "manifest.json"
FORMAT = 1
_KINDS = {"step": int, "components": int, "config": str, "files": dict}
"""What every manifest has."""
_ADVICE = "Nothing was overwritten; an earlier checkpoint can be taken: resume=PATH out=.."


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: one with a manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps it has behind it."""
        return int(self.manifest["step"])

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What made the tokens it was trained on; None: images, or tokens of unknown meaning."""
        description = self.manifest.get("tokenizer")
        return None if description is None else restore(description)

    def is_of(self, run_dir: Path) -> bool:
        """Whether the run in this folder has saved it, and not one that lies somewhere below."""
        return self.path.parent == run_dir / CHECKPOINTS


def latest(run_dir: Path) -> Checkpoint | None:
    """The last complete checkpoint of a run, or None."""
    found = complete_ones(run_dir)
    return found[-1] if found else None


def latest_of(run_dir: Path, k: int) -> Checkpoint | None:
    """The last checkpoint of component k, whether it was saved alone or with all others.

    One that is damaged is passed over for the one before it, with a warning: under `free` a
    component that goes on from a little earlier is better than one that does not go on.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    # Of the same step its own comes last, and is taken first: that one knows its life.
    found = sorted([*intact_ones(run_dir), *saved_alone(run_dir, k)], key=lambda c: c.step)
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


def find(path: Path) -> Checkpoint:
    """The checkpoint that a path means: itself, or the last one of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).exists():
        return Checkpoint(path, read_manifest(path / MANIFEST))
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
        if (found := digest_of(file)) != digest:
            raise CheckpointError(
                f"{file}: damaged: expected SHA-256 {digest[:12]}.., got {found[:12]}... {_ADVICE}"
            )


def complete_ones(run_dir: Path) -> list[Checkpoint]:
    """What all components have saved together, oldest first.

    Raises:
        CheckpointError: a manifest is damaged.
    """
    manifests = (run_dir / CHECKPOINTS).glob(f"step-*/{MANIFEST}")
    found = [Checkpoint(path.parent, read_manifest(path)) for path in manifests]
    return sorted(found, key=lambda c: c.step)


def intact_ones(run_dir: Path) -> list[Checkpoint]:
    """The same, where a damaged manifest is passed over, with a warning."""
    return _intact(run_dir, MANIFEST)


def saved_alone(run_dir: Path, k: int) -> list[Checkpoint]:
    """What component k has saved by itself, oldest first; a damaged manifest is passed over."""
    return _intact(run_dir, own_manifest(k))


def _intact(run_dir: Path, manifest: str) -> list[Checkpoint]:
    found = []
    for path in (run_dir / CHECKPOINTS).glob(f"step-*/{manifest}"):
        try:
            found.append(Checkpoint(path.parent, read_manifest(path)))
        except CheckpointError as error:
            warnings.warn(str(error), stacklevel=3)
    return sorted(found, key=lambda c: c.step)


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: expected format {FORMAT}, got {manifest['format']}: written by another "
                "version of mach"
            )
        for key, kind in _KINDS.items():
            if not isinstance(manifest[key], kind):
                raise TypeError(f"{key}: {manifest[key]!r}")
        if not all(isinstance(digest, str) for digest in manifest["files"].values()):
            raise TypeError("files without checksums")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: damaged: expected a manifest, got {said}. {_ADVICE}"
        ) from error
    assert isinstance(manifest, dict)
    return manifest


def own_manifest(k: int) -> str:
    return f"component-{k}.json"


def step_dir(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"step-{step}"


def part(run_dir: Path, step: int, k: int) -> Path:
    """Where component k's part of a checkpoint is."""
    return step_dir(run_dir, step) / f"component-{k}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
