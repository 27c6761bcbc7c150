"""How good is a result, by whichever measure its data has?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_MEASURES = {
    "accuracy": ("accuracy, %", 100.0, True),
    "bits_per_byte": ("bits per byte", 1.0, False),
    "bits_per_token": ("bits per token", 1.0, False),
    "loss": ("loss", 1.0, False),
}


@dataclass(frozen=True)
class Measure:
    """One of the measures a result may have."""

    key: str
    split: str = field(default="test", compare=False)
    """On which samples."""

    @property
    def label(self) -> str:
        """With its unit, as it stands at an axis."""
        return _MEASURES[self.key][0]

    @property
    def higher_is_better(self) -> bool:
        return _MEASURES[self.key][2]

    def of(self, row: Mapping[str, Any]) -> float:
        """What a row of a result has, in the unit of the label; NaN without."""
        value = row.get(self.key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return math.nan
        return float(value) * _MEASURES[self.key][1]

    def text(self, value: float) -> str:
        """The value alone, as precise as it is worth."""
        if not math.isfinite(value):
            return "–"
        return f"{value:.2f}" if self.key == "accuracy" else f"{value:.3f}"

    def with_unit(self, value: float) -> str:
        """The value in a sentence."""
        unit = " %" if self.key == "accuracy" else f" {self.label}"
        return self.text(value) + unit


@dataclass(frozen=True)
class Score:
    """Of one model."""

    measure: Measure
    value: float
    loss: float


def measure_of(result: Mapping[str, Any], logged: Collection[str] = ()) -> Measure:
    """The measure a run is judged by.

    Args:
        logged: keys of its logs, which tell it while there is no result.
    """
    rows = [*result.get("chain", []), *result.get("windows", [])]
    known = {key for row in rows for key in row} or {key.removeprefix("eval_") for key in logged}
    key = next((key for key in _MEASURES if key in known), "accuracy")
    split = result.get("split")
    return Measure(key, split if isinstance(split, str) else "test")


def score_of(result: Mapping[str, Any]) -> Score | None:
    """Of the top exit; None where the result has none, or it is not finite."""
    chain = result.get("chain", [])
    if not chain:
        return None
    top = max(chain, key=lambda row: row["exit"])
    measure = measure_of(result)
    value = measure.of(top)
    return Score(measure, value, Measure("loss").of(top)) if math.isfinite(value) else None
