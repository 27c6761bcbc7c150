"""How does a file of data become a mapped array, and what is the user told where it cannot?

Everything that numpy, zipfile, gzip or the system may say about a bad file is turned into a
`DataError` here, so that no other module of this folder has to know their exceptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mach.errors import DataError, MachError

Array = NDArray[Any]

CHUNK_BYTES = 1 << 22
"""Read at a time wherever a whole file or array is gone through: bounds memory, not time."""

_OF_DATA = (
    "Check data.path; make or download the file again, or delete it if mach put it in its cache."
)


@contextmanager
def reading(who: object, expected: str, then: str = _OF_DATA) -> Iterator[None]:
    """Turn what a library says about a bad file into one sentence that names it.

    Args:
        who: the file, or the array in it.
        expected: what it was taken for, as in "an .npz file".
        then: what the user can do.
    """
    try:
        yield
    except MachError:
        raise
    except Exception as error:  # numpy's parser of headers alone has six kinds for hostile bytes
        said = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{who}: expected {expected}; it cannot be read: {said}. {then}") from error


def existing_file(path: Path, expected: str) -> Path:
    """`path`, if a regular file is there."""
    with reading(path, expected):
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing"
    raise DataError(f"{path}: expected {expected}; found {found}. Set data.path to such a file.")


def refuse_other_than_numbers(who: str, dtype: np.dtype[Any]) -> None:
    """Objects are never unpickled, and texts, dates and complex numbers are no features."""
    if dtype.hasobject:
        raise DataError(
            f"{who}: expected numbers; got Python objects, which would have to be unpickled and "
            "that is never done. Save it as an array of a number type."
        )
    if dtype.kind not in "biuf":
        raise DataError(f"{who}: expected numbers; got {dtype}. Save it as int or float.")


def refuse_too_few(who: str, dtype: np.dtype[Any], shape: tuple[int, ...], present: int) -> None:
    """Reading past the end of a mapped file would kill the process, so its length is compared."""
    expected = math.prod(shape) * dtype.itemsize
    if present < expected:
        raise DataError(
            f"{who}: expected {expected} bytes for {dtype}{list(shape)}; got {max(0, present)}: it "
            "was cut short. Make or download it again, or delete it if mach put it in its cache."
        )


def map_array(
    path: Path,
    who: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    *,
    end: int | None = None,
    fortran: bool = False,
) -> Array:
    """Map the numbers at `offset` of a file, read-only, once they are known to be all there.

    Args:
        path: the file.
        who: its name in messages.
        dtype: of the numbers.
        shape: of the array.
        offset: of its first number, in bytes.
        end: where something else begins in the file; None: nowhere.
        fortran: the first axis varies fastest.
    """
    refuse_other_than_numbers(who, dtype)
    if not shape or min(shape) < 1:
        raise DataError(
            f"{who}: expected an array of at least one sample with at least one value; "
            f"got shape {list(shape)}. Save it with samples along the first axis."
        )
    with reading(who, "an array"):
        size = path.stat().st_size
        present = min(size, size if end is None else end) - offset
        refuse_too_few(who, dtype, shape, present)
        order: Literal["C", "F"] = "F" if fortran else "C"
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)
