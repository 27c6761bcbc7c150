"""How does text become numbers, and numbers text again?

A tokenizer describes itself in a few words of JSON, which every checkpoint carries: whoever has the
checkpoint can encode a prompt and decode what the model says, without the text it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from mach.data.fetch import fetch
from mach.data.files import Array
from mach.errors import CheckpointError, DataError, FetchError
from mach.extras import missing

# T tokens of a text, V vocabulary

_DOWNLOAD_S = 120.0
"""Longest that tiktoken may take to download a vocabulary (two megabytes at most)."""
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(ABC):
    """Between text and the tokens 0 to V - 1."""

    name: str
    """As in `data.tokenizer`."""
    vocabulary: int
    """V."""

    @abstractmethod
    def encode(self, text: str) -> Array:
        """Tokens of a text, int64 [T].

        Raises:
            DataError: the text has a character this tokenizer does not know.
        """

    @abstractmethod
    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """What some tokens say, in UTF-8; they may begin or end within a character."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of some tokens; what is no text becomes the replacement character."""
        return self.bytes_of(tokens).decode(errors="replace")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that `restore` needs, for JSON."""

    @property
    def fingerprint(self) -> str:
        """Hash of the description: two tokenizers with the same one give the same tokens."""
        return _fingerprint(self.describe())

    def __str__(self) -> str:
        return f"{self.name} ({self.vocabulary:,} tokens, {self.fingerprint})"


class ByteTokenizer(Tokenizer):
    """A token is a byte of the text in UTF-8."""

    name = "byte"
    vocabulary = 256

    def encode(self, text: str) -> Array:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        return bytes(map(int, tokens))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "vocabulary": self.vocabulary}


class CharTokenizer(Tokenizer):
    """A token is one of the characters (Unicode code points) that the training text has."""

    name = "char"

    def __init__(self, characters: str) -> None:
        """
        Args:
            characters: all of them, each once, in the order of their code points.
        """
        self._points = _code_points(characters)
        assert len(self._points) > 0
        assert (np.diff(self._points) > 0).all(), "sorted, and no character twice"
        self.characters = characters
        self.vocabulary = len(self._points)

    def encode(self, text: str) -> Array:
        points = _code_points(text)
        tokens = np.searchsorted(self._points, points)
        known = self._points[np.minimum(tokens, self.vocabulary - 1)] == points
        if not known.all():
            place = int(known.argmin())
            raise DataError(
                f"tokenizer {self}: expected characters of the text it was made from; got "
                f"{text[place]!r} (U+{int(points[place]):04X}) at character {place}. Leave it out, "
                "or train with data.tokenizer=byte, which knows every text."
            )
        return tokens.astype(np.int64)

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        return "".join(self.characters[token] for token in tokens).encode()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "characters": self.characters}


class TiktokenTokenizer(Tokenizer):
    """An encoding of the package tiktoken, which is loaded when the first text needs it.

    Text that looks like a special token is taken for what it is: text.
    """

    def __init__(self, name: str, vocabulary: int | None = None, digest: str | None = None) -> None:
        """
        Args:
            name: tiktoken:NAME.
            vocabulary: V, and
            digest: of the bytes of all tokens, where they are known; else they are looked up.
        """
        self.name = name
        self._expected = digest
        if vocabulary is None or digest is None:
            vocabulary, digest = self._encoding.n_vocab, self._digest()
        self.vocabulary, self._known_digest = vocabulary, digest

    def encode(self, text: str) -> Array:
        encoding = self._encoding
        try:
            return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)
        except ValueError as error:  # its pattern goes back from the end of a row of white space
            raise DataError(
                f"tokenizer {self}: expected text that tiktoken can split; got {len(text):,} "
                f"characters of which it says: {error}. Leave long rows of white space out, or "
                "train with data.tokenizer=byte, which knows every text."
            ) from error

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of(int(token)) for token in tokens)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "vocabulary": self.vocabulary, "digest": self._known_digest}

    @cached_property
    def _encoding(self) -> Any:
        encoding = _load_encoding(self.name)
        self.__dict__["_encoding"] = encoding  # `_digest` asks for it
        if self._expected is not None and (found := self._digest()) != self._expected:
            raise DataError(
                f"data.tokenizer={self.name}: expected the vocabulary {self._expected}, with which "
                f"the tokens were made; this machine's tiktoken has {found}. Install the version "
                "of tiktoken that was used."
            )
        return encoding

    def _digest(self) -> str:
        parts = hashlib.sha256()
        for token in range(self._encoding.n_vocab):
            parts.update(b"%d:%b\0" % (token, self._bytes_of(token)))
        return parts.hexdigest()[:16]

    def _bytes_of(self, token: int) -> bytes:
        try:
            found: bytes = self._encoding.decode_single_token_bytes(token)
        except KeyError:  # some encodings have numbers without a token
            return _UNKNOWN.encode()
        return found


def restore(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `describe` was asked of."""
    match dict(description):
        case {"name": "byte"}:
            return ByteTokenizer()
        case {"name": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"name": str(name), "vocabulary": int(vocabulary), "digest": str(digest)}:
            return TiktokenTokenizer(name, vocabulary, digest)
    raise DataError(
        "tokenizer: expected the description of one, by this version of mach; got "
        f"{json.dumps(description)[:80]}"
    )


def refuse_other(who: object, here: Tokenizer | None, there: Mapping[str, Any] | None) -> None:
    """Refuse a checkpoint whose tokens mean something else than those here.

    Args:
        who: the checkpoint.
        here: the tokenizer of the data or the prompt; None where there is none (images; files of
            tokens, whose meaning nobody knows).
        there: the description in the checkpoint; None: none, too.

    Raises:
        CheckpointError: they differ; names both.
    """
    mine = None if here is None else here.describe()
    if mine == there:
        return
    expected = "data without a tokenizer" if there is None else f"the tokenizer {restore(there)}"
    raise CheckpointError(
        f"{who}: a tokenizer that does not fit the checkpoint: expected {expected}, with which it "
        f"was trained; got {here or 'none'}. Set data.tokenizer and data.path as they were then."
    )


def _code_points(text: str) -> Array:
    # surrogatepass: a lone half of a pair is no character, and is refused as one that is unknown.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _fingerprint(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _load_encoding(name: str) -> Any:
    if missing("tiktoken"):
        raise DataError(
            f"data.tokenizer={name}: expected the package tiktoken; it is not installed. Install "
            "it: pip install 'mach[tiktoken]'"
        )
    tiktoken: Any = import_module("tiktoken")
    encoding = name.partition(":")[2]
    known = tiktoken.list_encoding_names()
    if encoding not in known:
        raise DataError(
            f"data.tokenizer={name}: expected tiktoken: and one of {', '.join(sorted(known))}; got "
            f"{encoding!r}"
        )
    try:
        # In a process of its own first, which leaves the vocabulary in tiktoken's cache: tiktoken
        # downloads without a deadline.
        fetch("load_encoding", encoding, timeout_s=_DOWNLOAD_S)
    except FetchError as error:
        raise DataError(
            f"data.tokenizer={name}: expected to have or to download its vocabulary; {error}. Go "
            "on with a network, or set TIKTOKEN_CACHE_DIR to a folder that has it, or use "
            "data.tokenizer=byte."
        ) from error
    return tiktoken.get_encoding(encoding)
