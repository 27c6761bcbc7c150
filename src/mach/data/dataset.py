"""What does a run read, whatever file it came from, and does it hang together?

Only what costs nothing is checked here (shapes, types, lengths); `checks` looks at every value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mach.config import SequenceConfig, one_of
from mach.data.augment import Augmentation
from mach.data.files import CHUNK_BYTES, Array
from mach.data.order import subset
from mach.data.preprocessing import Preprocessing
from mach.data.splits import Split, spared
from mach.data.tokenizers import ByteTokenizer, Tokenizer
from mach.errors import ConfigError, DataError
from mach.metrics import Task
from mach.shapes import TensorSpec

_STATISTICS_SAMPLES = 16_384
_STATISTICS_VALUES = 1 << 24
"""Of large samples fewer are looked at: every rank does this at its start."""
_MOST_CLASSES = 1 << 20
"""More than this in the labels is taken for a mistake unless `data.classes` says it is none."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Memory-mapped arrays and what is to be learned from them."""

    x_train: Array
    """Samples along the first axis; the tokens themselves, [n], if it is text. Of labelled samples
    those that `validation` keeps back are among them: `split` tells them apart."""
    y_train: Array | None
    """Labels [n]; None for text, where the next token is the target."""
    x_test: Array
    y_test: Array | None
    task: Task
    mean: float
    """Of all features of a part of the training samples; with `std` it standardises every split."""
    std: float
    test_samples: int
    """Samples of a whole evaluation: all there are, or as many windows of the held-out text."""
    description: str
    """Where the data came from, as it opens every message about it."""
    train_samples: int | None = None
    """Training samples used, spread over all there are; None: all."""
    augmentation: Augmentation | None = None
    """What is done to training images."""
    tokenizer: Tokenizer | None = None
    """What made text into tokens; None for labels, and for tokens of unknown meaning."""
    validation: int = 0
    """Samples kept back from training to choose by; of text windows."""
    x_validation: Array | None = None
    """Of text the tokens kept back, [m]."""
    held_back: Array | None = None
    """Which of `x_train` are kept back, where it was not done before training; None: a subset of
    all."""

    def split(self, name: str) -> Split:
        """The samples of train, validation or test.

        Raises:
            ConfigError: it is none of these, or nothing is kept back for validation.
        """
        one_of("split", name, ("train", "validation", "test"))
        if name == "train":
            return self._train()
        if name == "test":
            return Split(self.x_test, self.y_test, None, self.test_samples, self.task)
        if not self.validation:
            raise ConfigError(
                "split=validation: expected samples kept back from training; got none. Set "
                "data.validation."
            )
        if self.x_validation is None:
            kept = self.held_back
            if kept is None:
                kept = subset(len(self.x_train), self.validation)
            return Split(self.x_train, self.y_train, kept, self.validation, self.task)
        task = replace(self.task, bytes_per_target=self._bytes_per_token(self.x_validation))
        return Split(self.x_validation, None, None, self.validation, task)

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of its samples before a network sees them."""
        return Preprocessing(self.mean, self.std, self.tokenizer)

    @property
    def places(self) -> int:
        """Training samples; of text its windows that do not overlap."""
        if self.y_train is None:  # two more: both parts of `keeping_back` have a last target
            return (len(self.x_train) - 2) // self.task.sample.shape[0]
        return self._train().samples

    def keeping_back(self, samples: int) -> Dataset:
        """The same with some of the samples it trains on kept back for validation: one of each of
        so many equal stretches; of text so many windows at its end.

        Args:
            samples: how many, fewer than `places`.
        """
        assert not self.validation
        assert 0 < samples < self.places
        if self.y_train is None:
            kept = samples * self.task.sample.shape[0] + 1
            train, validation = self.x_train[:-kept], self.x_train[-kept:]
            return replace(self, x_train=train, x_validation=validation, validation=samples)
        used = self._train()
        part = subset(used.samples, samples)
        held_back = part if used.chosen is None else used.chosen[part]
        return replace(self, held_back=held_back, validation=samples)

    def _train(self) -> Split:
        present = len(self.x_train)
        if self.y_train is None:
            return Split(self.x_train, None, None, present, self.task)
        before = self.validation if self.held_back is None else 0
        chosen = spared(present, before) if before else None
        if self.train_samples is not None:
            part = subset(present - before, self.train_samples)
            chosen = part if chosen is None else chosen[part]
        if self.held_back is not None:
            chosen = np.setdiff1d(np.arange(present) if chosen is None else chosen, self.held_back)
        count = present if chosen is None else len(chosen)
        return Split(self.x_train, self.y_train, chosen, count, self.task)

    def _bytes_per_token(self, tokens: Array) -> float:
        """Of a part of the text; where only the user knows, what holds for all of it."""
        if self.tokenizer is None or isinstance(self.tokenizer, ByteTokenizer):
            return self.task.bytes_per_target
        return len(self.tokenizer.bytes_of(tokens.tolist())) / len(tokens)

    def __str__(self) -> str:
        """One line for the console."""
        used = "" if self.train_samples is None else f"{self.train_samples:,} of "
        kept = f" ({self.validation:,} for validation)" if self.validation else ""
        count = f"{used}{len(self.x_train):,}{kept} + {len(self.x_test):,}"
        what = "samples" if self.y_train is not None else _unit(self.tokenizer)
        return (
            f"{self.description}: {count} {what}, {self.task.sample}, {self.task.classes} classes"
        )


def labelled(description: str, arrays: Mapping[str, Array], classes: int | None) -> Dataset:
    """Data set of x_train, y_train, x_test, y_test.

    Args:
        description: where the arrays came from.
        arrays: the four arrays by name.
        classes: number of classes; None: one more than the largest training label.
    """
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim < 2:
            raise DataError(
                f"{description}: x_{split}: expected images or vectors, [samples, ..]; got shape "
                f"{list(x.shape)}. Give single numbers a second axis of length 1."
            )
        if y.ndim != 1 or y.dtype.kind not in "biu":
            raise DataError(
                f"{description}: y_{split}: expected one integer label per sample, int[{len(x)}]; "
                f"got {y.dtype}{list(y.shape)}. Save class numbers from 0 up (not one-hot, not "
                "float)."
            )
        if len(x) != len(y):
            raise DataError(
                f"{description}: expected as many labels as samples; got {len(x)} in x_{split} and "
                f"{len(y)} in y_{split}. Save both again from the same samples."
            )
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{description}: expected the same sample shape in x_train and x_test; got "
            f"{list(x_train.shape[1:])} and {list(x_test.shape[1:])}. Resize one of them."
        )
    if classes is None:
        classes = max(2, int(arrays["y_train"].max()) + 1)
        if classes > _MOST_CLASSES:
            raise DataError(
                f"{description}: y_train: expected class numbers; got labels up to {classes - 1}. "
                f"Number the classes from 0, or set data.classes={classes} if that many are meant."
            )
    mean, std = _statistics(x_train)
    if _is_constant(x_train.dtype, mean, std):
        std = 1.0
    elif _is_lost(x_train.dtype, mean, std):
        raise DataError(
            f"{description}: x_train: expected features that float32, in which networks compute, "
            f"can tell apart; got {x_train.dtype} with a mean of {mean:.6g} and a standard "
            f"deviation of {std:.3g}. Subtract the mean before you save it."
        )
    return Dataset(
        x_train=x_train,
        y_train=arrays["y_train"],
        x_test=x_test,
        y_test=arrays["y_test"],
        task=Task(TensorSpec(x_train.shape[1:], torch.float32), classes, "accuracy"),
        mean=mean,
        std=std,
        test_samples=len(x_test),
        description=description,
    )


def sequence(
    description: str,
    train: Array,
    test: Array,
    config: SequenceConfig,
    *,
    vocabulary: int,
    bytes_per_token: float | None,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Data set of tokens, each to be predicted from those before it.

    Args:
        description: where the tokens came from.
        train: tokens [n].
        test: the held-out ones [m].
        config: says how many tokens the model sees, and how many windows an evaluation has: fewer
            where there are not as many places for one.
        vocabulary: tokens are 0 to vocabulary - 1.
        bytes_per_token: of text, on average over the held-out part; None: nobody knows.
        tokenizer: what made the tokens, where that is known.
    """
    context = config.context
    x_validation = None
    if config.validation:  # so many windows that do not overlap, and the token after the last
        kept = config.validation * context + 1
        if kept >= len(train):
            raise DataError(
                f"{description}: expected more {_unit(tokenizer)} to train on than the {kept} that "
                f"data.validation={config.validation} windows keep back; got {len(train)}. Give "
                "more text, or set data.validation to fewer."
            )
        train, x_validation = train[:-kept], train[-kept:]
    if min(len(train), len(test)) < context + 1:
        unit = _unit(tokenizer)
        raise DataError(
            f"{description}: expected at least data.context + 1 = {context + 1} {unit} to train on "
            f"and to test on; got {len(train)} and {len(test)}. Give more text, a smaller "
            "data.context, or another data.test_fraction."
        )
    return Dataset(
        x_train=train,
        y_train=None,
        x_test=test,
        y_test=None,
        task=Task(
            TensorSpec((context,), torch.int64),
            vocabulary,
            "bits_per_token" if bytes_per_token is None else "bits_per_byte",
            1.0 if bytes_per_token is None else bytes_per_token,
        ),
        mean=0.0,
        std=1.0,
        test_samples=min(config.test_samples, len(test) - context),
        description=description,
        tokenizer=tokenizer,
        validation=config.validation,
        x_validation=x_validation,
    )


def held_out(tokens: Array, test_fraction: float) -> tuple[Array, Array]:
    """All but the last part, and the last part."""
    cut = len(tokens) - int(len(tokens) * test_fraction)
    return tokens[:cut], tokens[cut:]


def _unit(tokenizer: Tokenizer | None) -> str:
    return "bytes" if isinstance(tokenizer, ByteTokenizer) else "tokens"


def _statistics(x: Array) -> tuple[float, float]:
    """Mean and standard deviation over all values of an even part of the samples."""
    values = math.prod(x.shape[1:])
    wanted = min(_STATISTICS_SAMPLES, max(1, _STATISTICS_VALUES // values))
    # Not every n-th: MNIST's own order, for one, repeats with a period of four (means 31 to 35).
    sampled = subset(len(x), min(wanted, len(x)))
    step = max(1, CHUNK_BYTES // (8 * values))  # float64 needs 8 bytes
    chunks = [sampled[a : a + step] for a in range(0, len(sampled), step)]
    count = len(sampled) * values
    # Values that are not finite give nan here, and a sentence from `check`.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(float(x[chunk].sum(dtype=np.float64)) for chunk in chunks) / count
        squares = (np.square(x[chunk].astype(np.float64) - mean) for chunk in chunks)
        std = math.sqrt(sum(float(square.sum()) for square in squares) / count)
    return mean, std


def _is_constant(dtype: np.dtype[Any], mean: float, std: float) -> bool:
    """Give or take the rounding of its type."""
    rounding = 1e-12 if _is_wide(dtype) else 1e-7
    return std <= max(rounding * abs(mean), float(np.finfo(np.float32).tiny))


def _is_lost(dtype: np.dtype[Any], mean: float, std: float) -> bool:
    """Whether float32 has less than some hundred steps in a standard deviation."""
    return _is_wide(dtype) and std < 1e-5 * abs(mean)


def _is_wide(dtype: np.dtype[Any]) -> bool:
    """It holds numbers that float32 rounds."""
    return dtype.kind in "iuf" and not np.can_cast(dtype, np.float32)
