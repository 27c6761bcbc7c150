"""Is this something the model can be asked about?

Whatever comes in is made a batch of the model's own samples here, or refused in one sentence that
says what was expected and what came. Nothing is guessed: no picture is resized, no text is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach.data.files import Array
from mach.data.tokenizers import Tokenizer
from mach.errors import DataError, InputError
from mach.signature import Signature

# B batch, T tokens


def batch_of(values: Any, signature: Signature, who: str = "inputs") -> Tensor:
    """Samples [B, ..] of numbers as the model takes them.

    Args:
        values: an array, or nested lists of numbers.
        who: opens the message.

    Raises:
        InputError: other shapes, something else than numbers, none, or numbers that are not finite
            or no tokens.
    """
    if not len(values):
        raise InputError(f"{who}: expected one sample or more; got none")
    array = _array(values, signature, who)
    if signature.text:
        return _tokens(array, signature, who)
    with np.errstate(over="ignore"):
        floats = np.require(array, np.float32, ["C", "W"])  # torch warns of what is read-only
    if array.dtype.kind == "f" and not np.isfinite(floats).all():
        sample, *place = (int(i) for i in np.argwhere(~np.isfinite(floats))[0])
        raise InputError(
            f"{who}: expected finite numbers within float32; got {array[(sample, *place)]} "
            f"{_where(array, sample, place)}"
        )
    low, high = float(array.min()), float(array.max())  # before they are rounded to float32
    if low < -signature.largest or high > signature.largest:
        raise InputError(
            f"{who}: expected numbers within {signature.largest:g} of 0, as the model has seen "
            f"{signature.low:g} to {signature.high:g}; got {low:g} to {high:g}"
        )
    return torch.from_numpy(floats)


def tokens_of(
    text: str, signature: Signature, tokenizer: Tokenizer | None, who: str = "inputs"
) -> Tensor:
    """All tokens [T] of a text.

    Raises:
        InputError: no text, too little of it, or signs that the tokenizer does not know.
    """
    if tokenizer is None:
        raise InputError(
            f"{who}: expected arrays of tokens, as nobody knows the model's tokenizer; got text"
        )
    try:
        text.encode()
        tokens = tokenizer.encode(text)
    except (UnicodeEncodeError, DataError) as error:
        raise InputError(f"{who}: expected text that the tokenizer can read; {error}") from error
    least = 1 if signature.shorter else signature.shape[0]
    if len(tokens) < least:
        raise InputError(f"{who}: expected a text of at least {least} tokens; got {len(tokens)}")
    return torch.from_numpy(np.asarray(tokens, dtype=np.int64))


def _array(values: Any, signature: Signature, who: str) -> Array:
    shape = signature.shape
    expected = f"numbers of shape [samples, {', '.join(map(str, shape))}]"
    if isinstance(values, np.ndarray):
        array = values
    else:
        _refuse_text(values, expected, who)
        try:
            array = np.asarray(values, None if signature.text else np.float64)
        except OverflowError as error:
            raise InputError(f"{who}: expected {expected}; got one beyond float64") from error
        except ValueError as error:
            raise InputError(f"{who}: expected {expected}; got lists of unequal length") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{who}: expected {expected}; got {_kind(array)}")
    fits = array.shape[1:] == shape
    if signature.text and signature.shorter and array.ndim == 2:
        fits = 1 <= array.shape[1] <= shape[0]
        expected += " or shorter"
    if array.ndim == 2 and not fits and array.shape[1] == math.prod(shape):
        return array.reshape(len(array), *shape)  # the same numbers in one row
    if not fits:
        raise InputError(f"{who}: expected {expected}; got shape {list(array.shape)}")
    return array


def _tokens(array: Array, signature: Signature, who: str) -> Tensor:
    with np.errstate(invalid="ignore"):  # nan, and what is beyond int64, is told in words
        whole = array.astype(np.int64)
    wrong = (whole != array) | (whole < 0) | (whole >= signature.classes)
    if wrong.any():
        sample, place = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{who}: expected tokens 0 to {signature.classes - 1}; got {array[sample, place]} "
            f"{_where(array, sample, place)}"
        )
    return torch.from_numpy(whole)


def _where(array: Array, sample: int, place: int | list[int]) -> str:
    """Of one sample alone nobody asks which."""
    return f"at {place}" if len(array) == 1 else f"in sample {sample} at {place}"


def _refuse_text(values: Any, expected: str, who: str) -> None:
    """A text, a null or a mapping anywhere; numpy would make text of all numbers beside it."""
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        # A list of plain numbers, as nearly all are, is told at once.
        if {type(one) for one in values} <= {int, float}:
            return
        for one in values:
            _refuse_text(one, expected, who)
    elif isinstance(values, bool) or not isinstance(values, int | float):
        raise InputError(f"{who}: expected {expected}; got {values!r:.40}")


def _kind(array: Array) -> str:
    return "Python objects" if array.dtype.hasobject else f"{array.dtype}"
