"""Which file does each data config name, and what data set is in it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mach.config import DataConfig, DigitsConfig, IdxConfig, NpzConfig, TextConfig
from mach.data import cache
from mach.data.dataset import Dataset, labelled, text
from mach.data.digits import digits_file
from mach.data.files import existing_file, map_array, reading
from mach.data.idx import open_idx
from mach.data.npz import open_npz
from mach.errors import DataError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data as memory-mapped arrays, unpacked into the cache once if they have to be.

    Raises:
        DataError: the file is missing, damaged, or of another form than its kind has.
    """
    if isinstance(config, DigitsConfig):
        file = digits_file(cache.folder(config))
        return labelled("digits", open_npz(file, _KEYS, cache.folder(config)), 10)
    if isinstance(config, IdxConfig):  # before NpzConfig, which it is a kind of
        path = _path(config.path)
        return labelled(str(path), open_idx(path, cache.folder(config)), config.classes)
    if isinstance(config, NpzConfig):
        path = _path(config.path)
        return labelled(str(path), open_npz(path, _KEYS, cache.folder(config)), config.classes)
    if isinstance(config, TextConfig):
        return _open_text(config)
    raise DataError(
        f"data.name: expected digits, npz, idx or text; got {config.name!r}. Set data.name."
    )


def _path(given: str) -> Path:
    with reading(given, "a path"):  # ~ of a user that does not exist
        return Path(given).expanduser()


def _open_text(config: TextConfig) -> Dataset:
    path = existing_file(_path(config.path), "a file of text")
    with reading(path, "a file of text"):
        size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: expected a file of text; it is empty. Set data.path to another.")
    content = map_array(path, str(path), np.dtype(np.uint8), (size,), 0)
    return text(str(path), content, config.context, config.test_fraction, config.test_samples)
