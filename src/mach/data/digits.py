"""What is in the embedded data set, and which of its samples are for testing?"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mach.data import cache
from mach.data.files import Array

_FILE = "digits-1.npz"
"""Rises with every change of `split` or of what is stored, so that no old cache is read."""


def digits_file(cache_folder: Path) -> Path:
    """The digits as an uncompressed .npz in the cache; only the first to ask needs scikit-learn."""
    return cache.cached(cache_folder, _FILE, _pack)


def split(labels: Array) -> tuple[Array, Array]:
    """Indices of the training and of the test samples: always the same, 80 to 20 in every class."""
    rng = np.random.default_rng(0)
    # One index in five of each class, which are drawn in random order.
    order = rng.permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        is_test[members[: round(len(members) / 5)]] = True
    return order[~is_test[order]], order[is_test[order]]


def _pack() -> Iterator[bytes]:
    from sklearn.datasets import load_digits  # seconds to import, and needed once per machine

    # Pixels are whole numbers from 0 to 16 that come as float64.
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8).astype(np.uint8)
    labels = labels.astype(np.uint8)
    train, test = split(labels)
    file = io.BytesIO()
    np.savez(
        file,
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
    )
    yield file.getvalue()
