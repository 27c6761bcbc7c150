"""What is in a folder that `mach export` has written, and is it whole?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mach.checkpoint.catalog import digest_of
from mach.errors import CheckpointError, RunFolderError
from mach.export.formats import ONNX, PROGRAM, WEIGHTS, OnnxModel
from mach.export.layers import LAYERS
from mach.export.plain import load_folder
from mach.runfolder import appearing
from mach.signature import Signature

DESCRIPTION, CARD, SOURCE = "model.json", "README.md", "model.py"
FORMAT = 2
_DIGEST = "sha256"
FILES = {"safetensors": WEIGHTS, "torch": PROGRAM, "onnx": ONNX}


@dataclass(frozen=True)
class Exported:
    """An exported folder."""

    path: Path
    description: dict[str, Any]
    """The content of its model.json."""
    signature: Signature

    @property
    def title(self) -> str:
        """`window 1..3`, or `chain 0..3`."""
        return str(self.description["title"])

    def load(self) -> nn.Module:
        """The model: from samples as the data has them to logits.

        Raises:
            MachError: a file is missing, damaged or of another network, or it is a .pt2.
        """
        kind = self.description["kind"]
        if kind == "torch":
            raise CheckpointError(
                f"{self.path / PROGRAM}: expected safetensors or onnx; got what torch.export has "
                "written, of which torch unpickles parts, and that is never done here. Export it "
                "with format=safetensors or onnx, or load it yourself: torch.export.load(..)"
            )
        file = self.path / FILES[kind]
        if not file.is_file():
            raise CheckpointError(f"{file}: expected by {DESCRIPTION} beside it; no such file.")
        if kind == "onnx":
            self._verify(file)
            return OnnxModel(file, int8=self.description.get("quantize") == "int8")
        try:
            model = load_folder(self.path, LAYERS)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self._verify(file)
        return model

    def _verify(self, file: Path) -> None:
        expected, found = self.description["files"].get(file.name), digest_of(file)
        if found != expected:
            raise CheckpointError(
                f"{file}: damaged or changed: expected SHA-256 {str(expected)[:12]}.. as "
                f"{DESCRIPTION} has it, got {found[:12]}... Export it again."
            )


def signed(description: dict[str, Any]) -> dict[str, Any]:
    """A description with a digest of all else that is in it."""
    rest = {key: value for key, value in description.items() if key != _DIGEST}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, _DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def open_exported(folder: Path) -> Exported:
    """Read the description in a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']}: of another version of mach")
        if description["kind"] not in FILES:
            raise ValueError(f"kind {description['kind']!r}")
        if description[_DIGEST] != signed(description)[_DIGEST]:
            raise ValueError("one that was changed: its own digest is another")
        for key in ("title", "first", "last", "files"):
            description[key]
        signature = Signature.from_json(description["signature"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: expected the description of an exported model; got {said}. Export it again."
        ) from error
    return Exported(folder, description, signature)


@contextmanager
def writing(out: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to write in, which becomes `out` at the end, or is gone if that is not reached.

    Args:
        replace: what is at `out` already makes room at the end.

    Raises:
        RunFolderError: it cannot be written, or something is there.
    """
    if out.exists() and not replace:
        raise RunFolderError(
            f"out={out}: expected a folder that is not there yet; got one that is. Choose another, "
            "or set overwrite=true."
        )
    if out.exists() and not (out / DESCRIPTION).is_file():
        raise RunFolderError(
            f"out={out}: expected an exported model to be replaced, which has {DESCRIPTION}; got "
            "something else. Choose another."
        )
    with appearing(out) as folder:
        yield folder
