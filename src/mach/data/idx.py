"""Which arrays are in a folder of the MNIST layout, mapped rather than read?

idx: two zero bytes, a type code, the number of axes, the length of each (uint32), then the numbers,
all big-endian (http://yann.lecun.com/exdb/mnist). A plain file is mapped where it lies, a .gz is
unpacked once into the cache.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mach.data import cache
from mach.data.files import CHUNK_BYTES, Array, map_array, reading, refuse_too_few
from mach.data.npz import map_npy, npy_header
from mach.errors import DataError

FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def open_idx(folder: Path, cache_folder: Path) -> dict[str, Array]:
    """The four arrays of a folder in the MNIST layout, plain or .gz."""
    with reading(folder, "a folder"):
        is_folder, found = folder.is_dir(), "a file" if folder.exists() else "nothing"
    if not is_folder:
        raise DataError(
            f"{folder}: expected a folder with {', '.join(FILES.values())}; found {found}. "
            "Set data.path to that folder."
        )
    return {key: _open_file(_find(folder, name), cache_folder) for key, name in FILES.items()}


def _find(folder: Path, name: str) -> Path:
    """`name`, or its spelling with a dot before idx; the plain file before the .gz."""
    spellings = (name, name.replace("-idx", ".idx"))
    names = [spelling + suffix for suffix in ("", ".gz") for spelling in spellings]
    with reading(folder, "a readable folder"):
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    raise DataError(
        f"{folder}: expected the file {name} (or {', '.join(names[1:])}); found none of them. "
        "Put it there, or set data.path to the folder that has it."
    )


def _open_file(path: Path, cache_folder: Path) -> Array:
    if path.suffix != ".gz":
        with reading(path, "an idx file"), path.open("rb") as file:
            dtype, shape = _read_header(file)
            offset = file.tell()
            present = path.stat().st_size - offset
        _refuse_other_size(path, dtype, shape, present)
        return map_array(path, str(path), dtype, shape, offset)

    def chunks() -> Iterator[bytes]:
        unpacked = 0
        with reading(path, "a gzipped idx file"), gzip.open(path) as file:
            dtype, shape = _read_header(file)
            yield npy_header(dtype, shape)
            while chunk := file.read(CHUNK_BYTES):
                unpacked += len(chunk)
                yield chunk
            _refuse_other_size(path, dtype, shape, unpacked)

    target = cache.cached(cache_folder, cache.name_of(path) + ".npy", chunks)
    return map_npy(target, f"{path} (unpacked as {target})")


def _read_header(file: IO[bytes] | gzip.GzipFile) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise ValueError(
            f"it begins with {magic.hex(' ') or 'nothing'}, not with 00 00, a type and a dimension"
        )
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise EOFError("it ends within its header")
    return np.dtype(_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", lengths)


def _refuse_other_size(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> None:
    refuse_too_few(str(path), dtype, shape, size)
    expected = math.prod(shape) * dtype.itemsize
    if size > expected:
        raise DataError(
            f"{path}: expected {expected} bytes after a header that says {dtype}{list(shape)}; got "
            f"{size}. Download it again."
        )
