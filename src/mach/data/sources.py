"""Which file does each data config name, and what data set is in it?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from mach.config import (
    DataConfig,
    DigitsConfig,
    HubConfig,
    IdxConfig,
    LabelledConfig,
    NpzConfig,
    TextConfig,
    TokensConfig,
)
from mach.data import cache
from mach.data.augment import augmentation_of
from mach.data.dataset import Dataset, held_out, labelled, sequence
from mach.data.digits import digits_file
from mach.data.encoding import encode_file, open_tokens
from mach.data.files import Array, existing_file, reading
from mach.data.hub import ORIGINALS, hub_file
from mach.data.idx import open_idx
from mach.data.npz import open_npz
from mach.data.tokenizers import ByteTokenizer
from mach.errors import DataError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def open_dataset(config: DataConfig) -> Dataset:
    """Open the data as memory-mapped arrays, unpacked into the cache once if they have to be.

    Raises:
        DataError: the file is missing, damaged, or of another form than its kind has.
        ConfigError: images are asked for where there are none.
    """
    dataset = _open(config)
    if not isinstance(config, LabelledConfig):
        return dataset
    samples, validation = config.samples, config.validation
    wanted, present = (samples or 1) + validation, len(dataset.x_train)
    if wanted > present:
        kept = f" beside data.validation={validation}" if validation else ""
        raise DataError(
            f"{dataset.description}: expected at least data.samples={samples or 1} training "
            f"samples{kept}; got {present}. Set data.samples to fewer, or to null for all"
            + (", and data.validation to fewer." if validation else ".")
        )
    return replace(
        dataset,
        train_samples=samples,
        validation=validation,
        augmentation=augmentation_of(config, dataset.task),
    )


def _open(config: DataConfig) -> Dataset:
    if isinstance(config, DigitsConfig):
        file = digits_file(cache.folder(config))
        return labelled("digits", open_npz(file, _KEYS, cache.folder(config)), 10)
    if isinstance(config, IdxConfig):  # before NpzConfig, which it is a kind of
        path = _path(config.path)
        return labelled(str(path), open_idx(path, cache.folder(config)), config.classes)
    if isinstance(config, NpzConfig):
        path = _path(config.path)
        return labelled(str(path), open_npz(path, _KEYS, cache.folder(config)), config.classes)
    if isinstance(config, HubConfig):
        file = hub_file(config)
        arrays = open_npz(file, _KEYS, cache.folder(config))
        return labelled(config.name, arrays, ORIGINALS[config.name].classes)
    if isinstance(config, TextConfig):
        return _open_text(config)
    if isinstance(config, TokensConfig):
        return _open_tokens(config)
    raise DataError(
        f"data.name: expected the name of a source of data; got {config.name!r}. Set data.name."
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
    content = open_tokens(path, np.dtype(np.uint8), str(path))
    if config.tokenizer == "byte":  # the file is its own tokens
        train, test = held_out(content, config.test_fraction)
        tokenizer = ByteTokenizer()
        return sequence(
            str(path),
            train,
            test,
            config,
            vocabulary=tokenizer.vocabulary,
            bytes_per_token=1.0,
            tokenizer=tokenizer,
        )
    encoded = encode_file(
        path, content, config.tokenizer, config.test_fraction, cache.folder(config)
    )
    return sequence(
        str(path),
        encoded.train,
        encoded.test,
        config,
        vocabulary=encoded.tokenizer.vocabulary,
        bytes_per_token=encoded.bytes_per_token,
        tokenizer=encoded.tokenizer,
    )


def _refuse_npy(path: Path, dtype: np.dtype) -> None:
    """Its header, and numbers of another type, would be read as tokens."""
    with reading(str(path), "a file of tokens"), path.open("rb") as file:
        npy = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
    if npy:
        raise DataError(
            f"{path}: expected tokens of {dtype} and nothing else, as numpy's tofile writes them; "
            f"got an .npy file. numpy.load('{path}').astype('{dtype}').tofile(..) makes one."
        )


def _open_tokens(config: TokensConfig) -> Dataset:
    dtype = np.dtype(config.dtype)

    def open_file(given: str, key: str) -> Array:
        path = existing_file(_path(given), f"a file of tokens ({key})")
        _refuse_npy(path, dtype)
        return open_tokens(path, dtype, str(path))

    train = open_file(config.train, "data.train")
    if config.test is None:
        train, test = held_out(train, config.test_fraction)
    else:
        test = open_file(config.test, "data.test")
    return sequence(
        config.train,
        train,
        test,
        config,
        vocabulary=config.vocabulary,
        bytes_per_token=config.bytes_per_token,
    )
