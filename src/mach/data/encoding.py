"""How does a file of text become two mapped files of tokens: to train on, and held out?

The text is cut first, at a byte, and both parts are encoded: whatever the tokenizer, the same text
is held out, so that bits per byte compare. What was encoded is kept in the cache, together with the
tokenizer's description: only the first to ask reads the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mach.data import cache
from mach.data.files import CHUNK_BYTES, Array, map_array, reading
from mach.data.tokenizers import CharTokenizer, TiktokenTokenizer, Tokenizer, restore
from mach.errors import DataError

_PIECE = 1 << 20
"""Characters encoded at a time."""
# A word ends a line; or a line that ends in anything is over, and the next begins at once. The
# patterns with which tiktoken's encodings split a text before they merge bytes all split it there,
# so that piece by piece gives the tokens of the whole.
_BORDER = re.compile(r"(?<=[^\W_])(?=[\r\n])|(?<=\S\n)(?=[^\s/])")


@dataclass(frozen=True)
class Encoded:
    """A text as tokens."""

    tokenizer: Tokenizer
    train: Array
    """uint8, uint16 or uint32 [T]."""
    test: Array
    bytes_per_token: float
    """Of the held-out part."""


def encode_file(
    path: Path, content: Array, tokenizer: str, test_fraction: float, cache_folder: Path
) -> Encoded:
    """Tokens of a file of UTF-8.

    Args:
        path: the file, and
        content: its bytes.
        tokenizer: char or tiktoken:NAME.
        test_fraction: how much of the end is held out.
        cache_folder: where the tokens go.

    Raises:
        DataError: it is no UTF-8, a part of it is empty, or the tokenizer cannot be had.
    """
    cut = _cut(content, test_fraction)
    parts = {"train": content[:cut], "test": content[cut:]}
    if not all(len(part) for part in parts.values()):
        raise DataError(
            f"{path}: expected text to train on and to test on; got {cut} and "
            f"{len(content) - cut} bytes. Give more text, or another data.test_fraction."
        )
    name = cache.name_of(path, re.sub(r"\W", "-", tokenizer))
    found = _tokenizer(path, content, tokenizer, cache_folder, name)
    dtype = np.dtype(_smallest(found.vocabulary))
    tokens = {}
    for part, its_bytes in parts.items():

        def chunks(its_bytes: Array = its_bytes, part: str = part) -> Iterator[bytes]:
            start = 0 if part == "train" else cut
            texts = _characters(path, its_bytes, start)
            # A character is a token of its own wherever the text is cut.
            for piece in texts if isinstance(found, CharTokenizer) else _pieces(texts):
                yield found.encode(piece).astype(dtype).tobytes()

        file = cache.cached(cache_folder, f"{name}-{cut}-{part}.bin", chunks)
        tokens[part] = open_tokens(file, dtype, f"{path} ({part}, encoded as {file})")
    return Encoded(found, tokens["train"], tokens["test"], len(parts["test"]) / len(tokens["test"]))


def open_tokens(file: Path, dtype: np.dtype, who: str) -> Array:
    """Map a file of numbers that has nothing else in it.

    Raises:
        DataError: it is empty, or ends within a number.
    """
    with reading(who, "a file of tokens"):
        size = file.stat().st_size
    if size == 0 or size % dtype.itemsize:
        found = "it is empty" if size == 0 else f"got {size:,} bytes"
        raise DataError(
            f"{who}: expected tokens of {dtype}, a multiple of {dtype.itemsize} bytes; {found}. "
            "Set data.dtype to the type the file was written with, or write it again."
        )
    return map_array(file, who, dtype, (size // dtype.itemsize,), 0)


def _cut(content: Array, test_fraction: float) -> int:
    """Where the held-out part begins: at a byte that begins a character."""
    cut = len(content) - int(len(content) * test_fraction)
    while cut < len(content) and content[cut] & 0xC0 == 0x80:  # goes on with one
        cut += 1
    return cut


def _tokenizer(path: Path, content: Array, kind: str, folder: Path, name: str) -> Tokenizer:
    def chunks() -> Iterator[bytes]:
        made: Tokenizer
        if kind == "char":
            points: set[str] = set()
            for text in _characters(path, content):
                points.update(text)
            made = CharTokenizer("".join(sorted(points)))
        else:
            made = TiktokenTokenizer(kind)
        yield json.dumps(made.describe()).encode()

    file = cache.cached(folder, f"{name}.json", chunks)
    with reading(file, "the description of a tokenizer"):
        return restore(json.loads(file.read_text()))


def _smallest(vocabulary: int) -> str:
    return next(f"u{n}" for n in (1, 2, 4) if vocabulary <= 1 << (8 * n))


def _characters(path: Path, content: Array, start: int = 0) -> Iterator[str]:
    """Text of some bytes, a few at a time; they begin at byte `start` of the file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(content), CHUNK_BYTES):
        end = begin + CHUNK_BYTES
        kept = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut
        try:
            yield decoder.decode(content[begin:end].tobytes(), final=end >= len(content))
        except UnicodeDecodeError as error:
            place = start + begin - kept + error.start
            raise DataError(
                f"{path}: expected text in UTF-8; got byte 0x{error.object[error.start]:02x} at "
                f"byte {place:,}, which is none. Convert it, or use data.tokenizer=byte."
            ) from error


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """The same text in pieces that can be encoded one by one."""
    left = ""
    for text in texts:
        left += text
        begin = 0
        while len(left) - begin > _PIECE and (border := _BORDER.search(left, begin + _PIECE)):
            yield left[begin : border.start()]
            begin = border.start()
        left = left[begin:]
    if left:
        yield left
