"""What may the index of a checkpoint hold?

torch.distributed.checkpoint keeps the index of its tensors, `.metadata`, as a pickle, and a pickle
may call anything. Whoever passes on a run folder writes its digests, too. So only what an index of
tensors is made of is built from it. (The tensors beside it are read with `weights_only`.)

Imported when a checkpoint is read: torch.distributed.checkpoint takes a second.
"""

from __future__ import annotations

import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata

from mach.errors import CheckpointError

_HARMLESS: dict[tuple[str, str], Any] = {
    # Not BytesStorageMetadata: torch unpickles what that names.
    ("torch.distributed.checkpoint.metadata", name): getattr(metadata, name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # Where it was written, perhaps on another system and by another Python; nobody looks at it.
    **{
        (module, name): PurePath
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
}


class IndexReader(FileSystemReader):
    """Reads a component's folder, and builds nothing but what an index is made of."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """
        Raises:
            CheckpointError: it is no index, or holds something else.
        """
        try:
            with (self._folder / ".metadata").open("rb") as file:
                index = _Unpickler(file).load()
            if not isinstance(index, Metadata):
                raise pickle.UnpicklingError(f"got {type(index).__name__}")
        except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{self._folder / '.metadata'}: expected an index of tensors; {error}"
            ) from error
        index.storage_meta = index.storage_meta or metadata.StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _HARMLESS.get((module, name))
        if found is None and module == "torch":
            found = getattr(torch, name, None)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise pickle.UnpicklingError(
                f"{module}.{name} is in it, which would be run. Do not open what it came with"
            )
        return found
