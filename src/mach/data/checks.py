"""Is every value of the data one that can be trained on?

Reads everything once, in chunks, so only one process of a run does it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mach.data.dataset import Dataset
from mach.data.files import CHUNK_BYTES, Array
from mach.errors import DataError


def check(dataset: Dataset) -> None:
    """Look at every feature, label and token; shapes and lengths were checked at the opening.

    Raises:
        DataError: names the array and the first sample that cannot be used.
    """
    if dataset.y_train is None or dataset.y_test is None:
        for part in ("train", "validation", "test") if dataset.validation else ("train", "test"):
            _check_tokens(
                f"{dataset.description}: {part}", dataset.split(part).x, dataset.task.classes
            )
        return
    _check_features(f"{dataset.description}: x_train", dataset.x_train)
    _check_features(f"{dataset.description}: x_test", dataset.x_test)
    _check_labels(f"{dataset.description}: y_train", dataset.y_train, dataset.task.classes)
    _check_labels(f"{dataset.description}: y_test", dataset.y_test, dataset.task.classes)


def _chunks(array: Array) -> Iterator[tuple[int, Array]]:
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def _check_features(who: str, x: Array) -> None:
    if x.dtype.kind != "f":
        return
    for start, chunk in _chunks(x):
        with np.errstate(over="ignore"):  # beyond float32, which is what the model gets, is inf too
            finite = np.isfinite(chunk.astype(np.float32, copy=False))
        if finite.all():
            continue
        sample, *rest = (int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{who}: expected finite numbers within float32; got {chunk[(sample, *rest)]} at "
            f"sample {start + sample}, position {rest}. Clean or drop that sample."
        )


def _check_labels(who: str, y: Array, classes: int) -> None:
    for start, chunk in _chunks(y):
        wrong = (chunk < 0) | (chunk >= classes)
        if wrong.any():
            index = int(wrong.argmax())
            raise DataError(
                f"{who}: expected labels 0 to {classes - 1}; got {chunk[index]} at index "
                f"{start + index}. Number the classes from 0, or set data.classes (None: one more "
                "than the largest training label)."
            )


def _check_tokens(who: str, tokens: Array, vocabulary: int) -> None:
    limits = np.iinfo(tokens.dtype)
    if limits.min >= 0 and limits.max < vocabulary:  # as every byte is
        return
    for start, chunk in _chunks(tokens):
        wrong = (chunk < 0) | (chunk >= vocabulary)
        if wrong.any():
            index = int(wrong.argmax())
            raise DataError(
                f"{who}: expected tokens 0 to {vocabulary - 1}; got {chunk[index]} at index "
                f"{start + index}. Set data.vocabulary to the tokenizer's, and data.dtype to the "
                "type the file was written with."
            )
