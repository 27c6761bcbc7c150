"""Is a file that cannot be read, or a value that cannot be learnt from, refused with its place?"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datafiles import (
    IDX,
    Arrays,
    arrays,
    idx_bytes,
    write_compressed,
    write_idx,
    write_idx_gz,
    write_npz,
    write_text,
)
from mach.config import DataConfig, IdxConfig, NpzConfig, TextConfig
from mach.data import check, npz, open_dataset
from mach.errors import DataError


def damaged(config: DataConfig, damage: Callable[[bytes], bytes], name: str = "") -> DataConfig:
    assert isinstance(config, NpzConfig | TextConfig)
    file = Path(config.path) / name
    file.write_bytes(damage(file.read_bytes()))
    return config


def with_member(folder: Path, content: bytes, compression: int) -> NpzConfig:
    """A sound zip whose x_train is not a sound array."""
    config = write_npz(folder, arrays())
    with zipfile.ZipFile(config.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = content
    with zipfile.ZipFile(config.path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return config


def npy(array: np.ndarray) -> bytes:
    return npz.npy_header(array.dtype, array.shape) + array.tobytes()


def without(key: str) -> Arrays:
    return {name: array for name, array in arrays().items() if name != key}


def flip(data: bytes) -> bytes:
    """Bytes in the first member's compressed data turned around."""
    return data[:90] + bytes(255 - byte for byte in data[90:110]) + data[110:]


OBJECTS = np.array([[{}], [None]], dtype=object)
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
NPZ, IDX_IMAGES, GZ = "data.npz", IDX["x_train"], IDX["x_train"] + ".gz"

BAD_FILES: dict[str, tuple[Callable[[Path], DataConfig], str, str]] = {
    # case: (what makes the config, the file that must be named, what must be said of it)
    "no npz": (lambda p: NpzConfig(path=str(p / NPZ)), NPZ, "found nothing"),
    "folder for npz": (lambda p: NpzConfig(path=str(p)), "", "found a folder"),
    "npz is text": (
        lambda p: damaged(write_npz(p, arrays()), lambda data: b"hello"),
        NPZ,
        "not a zip file",
    ),
    "npz is empty": (
        lambda p: damaged(write_npz(p, arrays()), lambda data: b""),
        NPZ,
        "not a zip file",
    ),
    "npz cut short": (
        lambda p: damaged(write_npz(p, arrays()), lambda data: data[:-30]),
        NPZ,
        "not a zip file",
    ),
    "npz header damaged": (
        lambda p: damaged(write_npz(p, arrays()), lambda data: b"XX" + data[2:]),
        f"{NPZ}: x_train",
        "header is damaged",
    ),
    "compressed npz damaged": (
        lambda p: damaged(write_compressed(p, arrays()), flip),
        "packed.npz: x_train",
        "cannot be read",
    ),
    "missing key": (lambda p: write_npz(p, without("y_test")), NPZ, "y_test is missing among"),
    "no keys at all": (lambda p: write_npz(p, {}), NPZ, "x_train is missing among none"),
    "member cut short": (
        lambda p: with_member(p, npy(arrays()["x_train"])[:-9], STORED),
        f"{NPZ}: x_train",
        "expected 1000 bytes for uint8[50, 5, 4]; got 991",
    ),
    "compressed member cut short": (
        lambda p: with_member(p, npy(arrays()["x_train"])[:-9], DEFLATED),
        f"{NPZ}: x_train",
        "expected 1000 bytes for uint8[50, 5, 4]; got 991",
    ),
    "member is no array": (
        lambda p: with_member(p, b"hello", STORED),
        f"{NPZ}: x_train",
        "cannot be read",
    ),
    "compressed member is no array": (
        lambda p: with_member(p, b"hello", DEFLATED),
        f"{NPZ}: x_train",
        "cannot be read",
    ),
    "objects": (
        lambda p: write_npz(p, arrays() | {"x_train": OBJECTS}),
        f"{NPZ}: x_train",
        "Python objects",
    ),
    "compressed objects": (
        lambda p: write_compressed(p, arrays() | {"y_test": OBJECTS}),
        "packed.npz: y_test",
        "Python objects",
    ),
    "words": (
        lambda p: write_npz(p, arrays() | {"x_train": np.array([["cat"]])}),
        f"{NPZ}: x_train",
        "expected numbers; got <U3",
    ),
    "no samples": (
        lambda p: write_npz(p, arrays(n_test=0)),
        f"{NPZ}: x_test",
        "at least one sample",
    ),
    "empty samples": (
        lambda p: write_npz(p, arrays() | {"x_train": np.zeros((50, 0))}),
        f"{NPZ}: x_train",
        "shape [50, 0]",
    ),
    "one number": (
        lambda p: write_npz(p, arrays() | {"y_train": np.array(3)}),
        f"{NPZ}: y_train",
        "shape []",
    ),
    "samples without axes": (
        lambda p: write_npz(p, arrays() | {"x_train": np.arange(50)}),
        f"{NPZ}: x_train",
        "expected images or vectors",
    ),
    "float labels": (
        lambda p: write_npz(p, arrays() | {"y_train": np.zeros(50)}),
        f"{NPZ}: y_train",
        "got float64[50]",
    ),
    "one-hot labels": (
        lambda p: write_npz(p, arrays() | {"y_test": np.zeros((23, 3), dtype=int)}),
        f"{NPZ}: y_test",
        "got int64[23, 3]",
    ),
    "other lengths": (
        lambda p: write_npz(p, arrays() | {"y_train": np.zeros(49, dtype=int)}),
        NPZ,
        "50 in x_train and 49 in y_train",
    ),
    "other sample shapes": (
        lambda p: write_npz(p, arrays() | {"x_test": np.zeros((23, 4, 5))}),
        NPZ,
        "[5, 4] and [4, 5]",
    ),
    "labels that are no classes": (
        lambda p: write_npz(p, arrays() | {"y_train": np.full(50, 2**40)}),
        f"{NPZ}: y_train",
        "labels up to 1099511627776",
    ),
    "no idx folder": (lambda p: IdxConfig(path=str(p / "none")), "none", "found nothing"),
    "file for idx folder": (
        lambda p: IdxConfig(path=write_npz(p, arrays()).path),
        NPZ,
        "found a file",
    ),
    "idx file missing": (lambda p: IdxConfig(path=str(p)), "", IDX_IMAGES),
    "idx wrong magic": (
        lambda p: damaged(write_idx(p, arrays()), lambda data: b"\x89PNG" + data, IDX_IMAGES),
        IDX_IMAGES,
        "it begins with 89 50 4e 47",
    ),
    "idx empty": (
        lambda p: damaged(write_idx(p, arrays()), lambda data: b"", IDX_IMAGES),
        IDX_IMAGES,
        "it begins with nothing",
    ),
    "idx header cut short": (
        lambda p: damaged(write_idx(p, arrays()), lambda data: data[:7], IDX_IMAGES),
        IDX_IMAGES,
        "ends within its header",
    ),
    "idx cut short": (
        lambda p: damaged(write_idx(p, arrays()), lambda data: data[:-9], IDX_IMAGES),
        IDX_IMAGES,
        "expected 1000 bytes for uint8[50, 5, 4]; got 991",
    ),
    "idx too long": (
        lambda p: damaged(write_idx(p, arrays()), lambda data: data + b"more", IDX_IMAGES),
        IDX_IMAGES,
        "got 1004",
    ),
    "idx labels where images belong": (
        lambda p: damaged(
            write_idx(p, arrays()), lambda d: idx_bytes(np.zeros(50, "u1")), IDX_IMAGES
        ),
        "x_train",
        "expected images or vectors",
    ),
    "gz is not gzip": (
        lambda p: damaged(write_idx_gz(p, arrays()), gzip.decompress, GZ),
        GZ,
        "cannot be read",
    ),
    "gz cut short": (
        lambda p: damaged(write_idx_gz(p, arrays()), lambda data: data[:-20], GZ),
        GZ,
        "cannot be read",
    ),
    "gz content cut short": (
        lambda p: damaged(
            write_idx_gz(p, arrays()), lambda d: gzip.compress(gzip.decompress(d)[:-9]), GZ
        ),
        GZ,
        "got 991",
    ),
    "no text": (lambda p: TextConfig(path=str(p / "none.txt")), "none.txt", "found nothing"),
    "folder for text": (lambda p: TextConfig(path=str(p)), "", "found a folder"),
    "empty text": (lambda p: write_text(p, b""), "text.txt", "it is empty"),
    "text too short to train": (
        lambda p: write_text(p, b"x" * 80, test_fraction=0.9),
        "text.txt",
        "context + 1 = 9 bytes to train on and to test on; got 8 and 72",
    ),
    "text too short to test": (lambda p: write_text(p, b"x" * 80), "text.txt", "got 72 and 8"),
    "home of nobody": (lambda p: NpzConfig(path="~no-such-user/f"), "no-such-user", "home"),
    "cache cannot be a folder": (
        lambda p: NpzConfig(path=write_compressed(p, arrays()).path, cache=f"{p}/packed.npz/c"),
        "packed.npz/c",
        "Set data.cache",
    ),
}

BAD_VALUES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "lost in float32": (
        {"x_train": np.random.default_rng(0).normal(size=(50, 3)) + 1.7e9},
        "x_train: expected features that float32, in which networks compute, can tell apart; got "
        "float64 with a mean of 1.7e+09 and a standard deviation of ",
    ),
    "nan": (
        {"x_train": np.where(np.arange(150).reshape(50, 3) < 101, 1.0, np.nan)},
        "x_train: expected finite numbers within float32; got nan at sample 33, position [2]",
    ),
    "inf in float16": (
        {
            "x_train": np.zeros((50, 2), dtype=np.float16),
            "x_test": np.where(np.arange(46).reshape(23, 2) == 44, -np.inf, 0).astype(np.float16),
        },
        "x_test: expected finite numbers within float32; got -inf at sample 22, position [0]",
    ),
    "beyond float32": (
        {"x_train": np.full((50, 1), 1e300), "x_test": np.zeros((23, 1))},
        "x_train: expected finite numbers within float32; got 1e+300 at sample 0, position [0]",
    ),
    "negative label": (
        {"y_train": np.arange(50) - 1},
        "y_train: expected labels 0 to 48; got -1 at index 0",
    ),
    "test label that training has not": (
        {"y_test": np.arange(23)},
        "y_test: expected labels 0 to 2; got 3 at index 3",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, name, problem = BAD_FILES[case]
    config = make(tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset(config)
    message = str(caught.value)
    assert name in message
    assert str(tmp_path) in message or case == "home of nobody"
    assert problem in message
    assert "\n" not in message
    left = tmp_path / "cache"
    assert not left.exists() or not list(left.glob("*.tmp"))


@pytest.mark.parametrize("keep_bytes", [0, 5, 200])
@pytest.mark.parametrize("write", [write_compressed, write_idx_gz])
def test_a_damaged_cache_is_refused_by_name(
    tmp_path: Path, write: Callable[[Path, Arrays], DataConfig], keep_bytes: int
) -> None:
    config = write(tmp_path, arrays())
    open_dataset(config)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(
        DataError, match=rf"unpacked as {tmp_path}/cache/.*delete it if mach put it"
    ):
        open_dataset(config)


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    change, problem = BAD_VALUES[case]
    content = arrays() | change
    if content["x_test"].shape[1:] != content["x_train"].shape[1:]:
        content["x_test"] = content["x_train"][:23]
    config = write_npz(tmp_path, content)
    with pytest.raises(DataError) as caught:
        check(open_dataset(config))
    assert f"{tmp_path / 'data.npz'}: {problem}" in str(caught.value)


def test_a_bad_value_is_found_beyond_the_first_chunk(tmp_path: Path) -> None:
    x_train = np.zeros((1100, 1024), dtype=np.float32)  # 4.4 MB, chunks have 4 MiB
    x_train[1090, 5] = np.inf
    content = arrays(n_train=1100) | {"x_train": x_train, "x_test": x_train[:23]}
    with pytest.raises(DataError, match=r"got inf at sample 1090, position \[5\]"):
        check(open_dataset(write_npz(tmp_path, content)))


def test_given_classes_bound_the_labels(tmp_path: Path) -> None:
    config = write_npz(tmp_path, arrays())
    config.classes = 2
    dataset = open_dataset(config)
    assert dataset.task.classes == 2
    with pytest.raises(DataError, match="y_train: expected labels 0 to 1; got 2 at index 2"):
        check(dataset)
