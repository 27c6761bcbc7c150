"""Which data?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import LONGEST_S, at_least, one_of, within
from mach.errors import ConfigError


@dataclass
class DataConfig:
    """What every data source has."""

    name: str = ""
    """Kind of source; set by the `data` group."""
    cache: str | None = None
    """Folder for unpacked arrays, shared by all ranks and runs. None: `$XDG_CACHE_HOME/mach`."""
    validation: int = 0
    """Training samples kept back to choose by, and never trained on: one of each of so many equal
    stretches of the training split, always the same; of text so many windows at its end. See
    `eval.split`."""
    prefetch: int = 0
    """Microbatches that a thread makes ahead; 0: each is made when it is needed. On a CPU it pays
    where making one takes a millisecond (128 augmented photos: 1.7); where it takes a tenth of one
    (64 images of MNIST, 16 windows of text) the thread costs training more than it saves."""

    def __post_init__(self) -> None:
        at_least("data.validation", self.validation, 0)
        at_least("data.prefetch", self.prefetch, 0)


@dataclass
class LabelledConfig(DataConfig):
    """What every source of labelled samples has."""

    samples: int | None = None
    """Training samples used: one of each of so many equal stretches of what `validation` leaves of
    the training split, always the same. None: all. Features are standardised as the whole split
    is."""
    augment: str = "none"
    """What is done to a training image each time it is met: none, crop (shifted by up to `padding`
    pixels, black beyond its edge), or crop_flip (and mirrored, one in two)."""
    padding: int = 4
    """Pixels that crop may shift an image, in each direction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None:
            at_least("data.samples", self.samples, 1)
        one_of("data.augment", self.augment, ("none", "crop", "crop_flip"))
        at_least("data.padding", self.padding, 0)


@dataclass
class DigitsConfig(LabelledConfig):
    """1,797 hand-written digits of 8 x 8 pixels that scikit-learn embeds (UCI)."""

    name: str = "digits"


@dataclass
class NpzConfig(LabelledConfig):
    """A file with x_train, y_train, x_test, y_test: images or vectors, integer labels."""

    name: str = "npz"
    path: str = "???"
    """Where the data is: a file; for idx a folder."""
    classes: int | None = None
    """Number of classes. None: one more than the largest training label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:
            at_least("data.classes", self.classes, 2)


@dataclass
class IdxConfig(NpzConfig):
    """A folder in the MNIST layout: train-images-idx3-ubyte and companions, plain or .gz."""

    name: str = "idx"


@dataclass
class HubConfig(LabelledConfig):
    """Images from the Hugging Face Hub, downloaded once by the package `datasets`."""

    source: str | None = None
    """Where to take them from: a name on the Hub, or a folder of parquet files, with the columns of
    the original. None: the original."""
    timeout_s: float = 900.0
    """Longest the download and the unpacking may take, once per machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within("data.timeout_s", self.timeout_s, 1, LONGEST_S)


@dataclass
class Cifar10Config(HubConfig):
    """60,000 colour photos of 10 classes, [3, 32, 32] (Krizhevsky, 2009)."""

    name: str = "cifar10"


@dataclass
class MnistConfig(HubConfig):
    """70,000 hand-written digits, [28, 28] (LeCun et al., 1998)."""

    name: str = "mnist"


@dataclass
class FashionMnistConfig(HubConfig):
    """70,000 pieces of clothing in 10 classes, [28, 28] (Xiao et al., 2017)."""

    name: str = "fashion_mnist"


@dataclass
class SequenceConfig(DataConfig):
    """What every source of tokens has; the task is to predict the next one."""

    context: int = 64
    """Tokens the model sees before the one it predicts (of bytes: bytes)."""
    test_fraction: float = 0.1
    """The last part of the file, held out."""
    test_samples: int = 4096
    """Windows drawn evenly from the held-out part for one evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("data.context", self.context, 1)
        within("data.test_fraction", self.test_fraction, 0.001, 0.9)
        at_least("data.test_samples", self.test_samples, 1)


@dataclass
class TextConfig(SequenceConfig):
    """Any file of bytes, or of UTF-8 for a tokenizer that knows characters."""

    name: str = "text"
    path: str = "???"
    """The file to read."""
    tokenizer: str = "byte"
    """byte: a token is a byte. char: it is one of the characters of the file. tiktoken:NAME: one
    of that encoding of the package tiktoken, as in tiktoken:gpt2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, encoding = self.tokenizer.partition(":")
        if self.tokenizer not in ("byte", "char") and not (kind == "tiktoken" and encoding):
            raise ConfigError(
                "data.tokenizer: expected byte, char or tiktoken:NAME, as in tiktoken:gpt2; got "
                f"{self.tokenizer!r}"
            )


TOKEN_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")


@dataclass
class TokensConfig(SequenceConfig):
    """Files of token numbers, one after the other with no header, in this machine's byte order."""

    name: str = "tokens"
    train: str = "???"
    """The file to train on."""
    test: str | None = None
    """The held-out tokens. None: the last `test_fraction` of `train`."""
    dtype: str = "uint16"
    """Type of each number: uint8, uint16, uint32, int32 or int64."""
    vocabulary: int = "???"  # type: ignore[assignment]  # must be given
    """Tokens are 0 to vocabulary - 1."""
    bytes_per_token: float | None = None
    """Bytes of text behind a token of the held-out part, on average. With it a model is reported
    in bits per byte, which compares across tokenizers; None: in bits per token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("data.dtype", self.dtype, TOKEN_DTYPES)
        at_least("data.vocabulary", self.vocabulary, 2)
        if self.bytes_per_token is not None and not 0 < self.bytes_per_token < float("inf"):
            raise ConfigError(
                f"data.bytes_per_token: expected a number above 0; got {self.bytes_per_token}"
            )
