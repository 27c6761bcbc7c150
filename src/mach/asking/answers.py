"""What does a model say: which label, how surely; which token comes next, how many bits?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from mach.data.tokenizers import Tokenizer
from mach.errors import InputError
from mach.inference import computed_together
from mach.signature import Signature

# B batch, T tokens, N rows of logits, C classes


def last_rows(logits_NC: Tensor, samples: int) -> Tensor:
    """The row of each sample: of text, that of the token which follows all of it. [B, C]"""
    return logits_NC.unflatten(0, (samples, -1))[:, -1]


def refuse_nan(logits: Tensor) -> None:
    """Refuse what is no answer.

    Raises:
        InputError: it is not finite.
    """
    # By numpy: between torch's operations another thread may take Python's lock.
    if not np.isfinite(logits.float().numpy()).all():
        raise InputError("expected an answer in finite numbers; the model has none to such samples")


def likeliest(logits_BC: Tensor, top: int) -> tuple[list[list[int]], list[list[float]]]:
    """Classes of each sample and their probabilities, the likeliest first."""
    refuse_nan(logits_BC)
    values, classes = logits_BC.float().softmax(-1).topk(min(top, logits_BC.shape[-1]))
    return classes.tolist(), values.tolist()


def spelled(token: int, tokenizer: Tokenizer | None) -> str | int:
    """A token as text, where its tokenizer is known."""
    return token if tokenizer is None else tokenizer.decode([token])


@dataclass(frozen=True)
class Reading:
    """What a language model made of a text."""

    tokens: int
    bits: float
    """Of all tokens that it had to predict, together."""
    scored_bytes: int
    """Of text behind these."""
    logits: Tensor
    """Of the token after the text, [C]."""

    @property
    def bits_per_byte(self) -> float | None:
        """None: there was nothing to predict."""
        return self.bits / self.scored_bytes if self.scored_bytes else None


def read(
    module: nn.Module, tokens_T: Tensor, signature: Signature, tokenizer: Tokenizer
) -> Reading:
    """Let a language model read a text of any length: every token is predicted once, from at most
    as many before it as the model sees."""
    context, bits, scored = signature.shape[0], 0.0, 0
    for x, y in _windows(tokens_T, signature):
        logits_NC = module(x)[-len(y) :]
        bits += float(F.cross_entropy(logits_NC.float(), y, reduction="sum")) / math.log(2)
        scored += len(y)
    # Of bytes, not of text: the first token, which is not scored, may be a part of a character.
    scored_bytes = len(tokenizer.bytes_of(tokens_T[len(tokens_T) - scored :].tolist()))
    logits_C = last_rows(module(tokens_T[None, -context:]), 1)[0]
    return Reading(len(tokens_T), bits, scored_bytes, logits_C)


def _windows(tokens_T: Tensor, signature: Signature) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs [B, T] and the targets of the last rows of their logits."""
    context = signature.shape[0]
    together = computed_together(signature.logits)
    if not signature.per_position:  # the token after each window, wherever it begins
        if len(tokens_T) <= context:
            return
        rows = tokens_T.unfold(0, context + 1, 1)
        for part in rows.split(together):
            yield part[:, :-1], part[:, -1]
        return
    whole = (len(tokens_T) - 1) // context * context
    x, y = tokens_T[:whole].view(-1, context), tokens_T[1 : whole + 1].view(-1, context)
    for x_BT, y_BT in zip(x.split(together), y.split(together), strict=True):
        if len(x_BT):
            yield x_BT, y_BT.flatten()
    rest = tokens_T[whole + 1 :]
    if len(rest):  # what is left is less than a window
        begin = whole if signature.shorter else len(tokens_T) - 1 - context
        if begin >= 0:
            yield tokens_T[None, begin:-1], rest
