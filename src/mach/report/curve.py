"""How is a curve of any length drawn on a few characters, and kept in a few numbers?"""

from __future__ import annotations

import math
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


class Curve:
    """Means of equally many values each; when there are too many, neighbours become one.

    Args:
        most: means that are kept; of a long run each stands for many values.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._each = 1
        self._means: list[float] = []
        self._sum = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._means)

    def add(self, value: float) -> None:
        """The next value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == self._most:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._each *= 2

    def drawn(self, width: int) -> str:
        """The whole curve from its least value to its greatest, in `width` characters at most."""
        shown = _resampled(self._means, width)
        if not shown:
            return ""
        low, high = min(shown), max(shown)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((value - low) * scale)] for value in shown)


def _resampled(values: list[float], width: int) -> list[float]:
    if len(values) <= width:
        return values
    cuts = [i * len(values) // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
