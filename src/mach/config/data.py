"""Which data?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import at_least, within


@dataclass
class DataConfig:
    """What every data source has."""

    name: str = ""
    cache: str | None = None
    """Folder for unpacked arrays, shared by all ranks and runs. None: `$XDG_CACHE_HOME/mach`."""


@dataclass
class DigitsConfig(DataConfig):
    """1,797 hand-written digits of 8 x 8 pixels that scikit-learn embeds (UCI)."""

    name: str = "digits"


@dataclass
class NpzConfig(DataConfig):
    """A file with x_train, y_train, x_test, y_test: images or vectors, integer labels."""

    name: str = "npz"
    path: str = "???"
    classes: int | None = None
    """Number of classes. None: one more than the largest training label."""

    def __post_init__(self) -> None:
        if self.classes is not None:
            at_least("data.classes", self.classes, 2)


@dataclass
class IdxConfig(NpzConfig):
    """A folder in the MNIST layout: train-images-idx3-ubyte and companions, plain or .gz."""

    name: str = "idx"


@dataclass
class TextConfig(DataConfig):
    """Any file of bytes; the task is to predict the next byte."""

    name: str = "text"
    path: str = "???"
    context: int = 64
    """Bytes the model sees before the one it predicts."""
    test_fraction: float = 0.1
    """The last part of the file, held out."""
    test_samples: int = 4096
    """Windows drawn evenly from the held-out part for one evaluation."""

    def __post_init__(self) -> None:
        at_least("data.context", self.context, 1)
        within("data.test_fraction", self.test_fraction, 0.001, 0.9)
        at_least("data.test_samples", self.test_samples, 1)
