"""How is what a model says of some samples written as JSON?

In parts of a few milliseconds: Python's lock is held while one is encoded, and in between goes to
whoever waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel
from torch import Tensor

from mach.asking.answers import spelled
from mach.data.tokenizers import Tokenizer

# B batch, C classes, A answers for each sample

_AT_ONCE = 4096
"""Answers in a part, where one sample has no more."""

_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Answer(BaseModel):
    """One of the likeliest: a class, or of a language model the token that follows, as text where
    its tokenizer is known."""

    label: int | str
    probability: float


class Exit(BaseModel):
    """What one exit of the model says: for each sample the likeliest first."""

    name: str
    predictions: list[list[Answer]]


class Predictions(BaseModel):
    """For each sample the likeliest first, by the model's last exit; and by each, if asked."""

    model: str
    predictions: list[list[Answer]]
    exits: list[Exit] | None = None


def written(
    model: str,
    by_exit: Sequence[Tensor],
    names: Sequence[str] | None,
    top: int,
    tokenizer: Tokenizer | None,
) -> bytes:
    """`Predictions` as JSON.

    Args:
        by_exit: probabilities [B, C] by each exit, the model's last at the end.
        names: of these exits; None: they were not asked for.
        top: answers for each sample.
    """
    told = [_of_exit(probabilities_BC, top, tokenizer) for probabilities_BC in by_exit]
    exits = b"null"
    if names is not None:
        named = zip(map(_encoded, names), told, strict=True)
        exits = b"[%b]" % b",".join(b'{"name":%b,"predictions":%b}' % one for one in named)
    return b'{"model":%b,"predictions":%b,"exits":%b}' % (_encoded(model), told[-1], exits)


def _of_exit(probabilities_BC: Tensor, top: int, tokenizer: Tokenizer | None) -> bytes:
    values_BA, classes_BA = probabilities_BC.topk(top)
    samples = max(1, _AT_ONCE // top)
    parts = zip(values_BA.split(samples), classes_BA.split(samples), strict=True)
    lists = (_encoded(_of_samples(values, classes, tokenizer)) for values, classes in parts)
    return b"[%b]" % b",".join(one[1:-1] for one in lists)  # one list of all that they have


def _of_samples(
    values_BA: Tensor, classes_BA: Tensor, tokenizer: Tokenizer | None
) -> list[list[dict[str, str | int | float]]]:
    return [
        [
            {"label": spelled(label, tokenizer), "probability": value}
            for label, value in zip(labels, values, strict=True)
        ]
        for labels, values in zip(classes_BA.tolist(), values_BA.tolist(), strict=True)
    ]


def _encoded(value: object) -> bytes:
    return _json.encode(value).encode()
