"""What becomes of raw data before a network sees it? Without that a saved one means nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mach.data.tokenizers import Tokenizer, refuse_other
from mach.errors import DataError

_NEAR = 1e-4
"""Of a standard deviation: what another processor's order of adding changes is far less."""


@dataclass(frozen=True)
class Preprocessing:
    """Of a data set. Every checkpoint describes the one it was trained with."""

    mean: float
    """Subtracted from every feature."""
    std: float
    """Which then divides it."""
    tokenizer: Tokenizer | None
    """Made text into tokens; None for labels, and for tokens of unknown meaning."""

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        tokenizer = None if self.tokenizer is None else self.tokenizer.describe()
        return {"mean": self.mean, "std": self.std, "tokenizer": tokenizer}

    def refuse_other(self, who: object, there: Mapping[str, Any], or_else: str) -> None:
        """Refuse to read with this what was trained with another.

        Args:
            who: the checkpoint.
            there: its manifest, with what `describe` gave.
            or_else: what to do where the file cannot be brought back.

        Raises:
            MachError: they differ; names both.
        """
        refuse_other(who, self.tokenizer, there.get("tokenizer"))
        if "mean" not in there or self._near(there["mean"], there["std"]):
            return
        raise DataError(
            f"{who}: expected the data it was trained on, whose features have a mean of "
            f"{there['mean']:.6g} and a standard deviation of {there['std']:.6g}; got "
            f"{self.mean:.6g} and {self.std:.6g}: the data has changed since. Bring back the file, "
            f"or {or_else}."
        )

    def _near(self, mean: float, std: float) -> bool:
        return abs(self.mean - mean) <= _NEAR * std and math.isclose(self.std, std, rel_tol=_NEAR)
