"""Which arrays are in an .npz file, mapped rather than read?

A member stored uncompressed is mapped where it lies. A compressed one is unpacked once into the
cache: a member is an .npy file, so unpacking is copying, and both are mapped by the same code.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from mach.data import cache
from mach.data.files import (
    CHUNK_BYTES,
    Array,
    existing_file,
    map_array,
    reading,
    refuse_other_than_numbers,
    refuse_too_few,
)
from mach.errors import DataError

# A zip member: local header (30 bytes, name, extra field), then the data. The lengths of name and
# extra field may differ from those in the directory at the end of the file (APPNOTE.TXT 4.3.7).
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def open_npz(path: Path, keys: Sequence[str], cache_folder: Path) -> dict[str, Array]:
    """Arrays of an .npz file by key; every key must be there."""
    existing_file(path, "an .npz file")
    with (
        reading(path, "a complete .npz file, a zip of .npy arrays"),
        zipfile.ZipFile(path) as archive,
    ):
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for key in keys:
            if key not in members:
                raise DataError(
                    f"{path}: expected the keys {', '.join(keys)}; {key} is missing among "
                    f"{', '.join(sorted(members)) or 'none'}. Save the file with "
                    f"numpy.savez(file, {key}=.., ..)."
                )
        return {key: _open_member(path, archive, members[key], cache_folder) for key in keys}


def map_npy(path: Path, who: str, offset: int = 0, end: int | None = None) -> Array:
    """Map the .npy array that lies from `offset` to `end` in a file."""
    with reading(who, "an .npy array"), path.open("rb") as file:
        file.seek(offset)
        dtype, shape, fortran = read_header(file)
        start = file.tell()
    return map_array(path, who, dtype, shape, start, end=end, fortran=fortran)


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes that make an .npy file of the C-ordered numbers that follow them."""
    header = io.BytesIO()
    fields = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, fields)
    return header.getvalue()


def read_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """What an .npy file says of its array, and whether that is Fortran-ordered."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:  # 3.0 is for records whose fields have unicode names
        raise ValueError(f"version {version} of the .npy format")
    return dtype, shape, fortran


def _open_member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, cache_folder: Path
) -> Array:
    key = info.filename.removesuffix(".npy")
    who = f"{path}: {key}"
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 0x1:  # 1: encrypted
        start = _data_offset(path, info, who)
        return map_npy(path, who, start, start + info.file_size)

    def chunks() -> Iterator[bytes]:
        with reading(who, "a compressed .npy array"), archive.open(info) as member:
            while chunk := member.read(CHUNK_BYTES):
                yield chunk

    with reading(who, "a compressed .npy array"), archive.open(info) as member:
        dtype, shape, _ = read_header(member)
        present = info.file_size - member.tell()
    # Before anything is unpacked.
    refuse_other_than_numbers(who, dtype)
    refuse_too_few(who, dtype, shape, present)
    file = cache.cached(cache_folder, cache.name_of(path, key) + ".npy", chunks)
    return map_npy(file, f"{who} (unpacked as {file})")


def _data_offset(path: Path, info: zipfile.ZipInfo, who: str) -> int:
    with reading(who, "a member of a zip file"), path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise ValueError("its header is damaged")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)
