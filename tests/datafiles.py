"""Small files of data, and what is in them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from mach.config import IdxConfig, NpzConfig, TextConfig

IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}

Arrays = dict[str, np.ndarray]


def arrays(n_train: int = 50, n_test: int = 23) -> Arrays:
    """Images that can be told apart by their first pixel (0 to 49; 100 and up for testing)."""
    rng = np.random.default_rng(7)
    x_train = rng.integers(0, 256, (n_train, 5, 4), dtype=np.uint8)
    x_test = rng.integers(0, 256, (n_test, 5, 4), dtype=np.uint8)
    x_train[:, 0, 0] = np.arange(n_train)
    x_test[:, 0, 0] = 100 + np.arange(n_test)
    y_train, y_test = np.arange(n_train) % 3, np.arange(n_test) % 3
    return {
        "x_train": x_train,
        "y_train": y_train.astype(np.uint8),
        "x_test": x_test,
        "y_test": y_test.astype(np.uint8),
    }


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def write_npz(folder: Path, content: Arrays) -> NpzConfig:
    np.savez(folder / "data.npz", **content)
    return NpzConfig(path=str(folder / "data.npz"), cache=str(folder / "cache"))


def write_compressed(folder: Path, content: Arrays) -> NpzConfig:
    np.savez_compressed(folder / "packed.npz", **content)
    return NpzConfig(path=str(folder / "packed.npz"), cache=str(folder / "cache"))


def write_idx(folder: Path, content: Arrays) -> IdxConfig:
    for key, name in IDX.items():
        (folder / name).write_bytes(idx_bytes(content[key]))
    return IdxConfig(path=str(folder), cache=str(folder / "cache"))


def write_idx_gz(folder: Path, content: Arrays) -> IdxConfig:
    for key, name in IDX.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(content[key])))
    return IdxConfig(path=str(folder), cache=str(folder / "cache"))


def write_text(folder: Path, content: bytes, **options: float) -> TextConfig:
    (folder / "text.txt").write_bytes(content)
    return TextConfig(path=str(folder / "text.txt"), **{"context": 8, **options})  # type: ignore[arg-type]
