"""How does a table look in Markdown, and a number in it?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

DASH = "–"
Row = list[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    """Words on the left, numbers on the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Median (least .. most)."""
    if not values:
        return DASH
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def known(values: Iterable[float | None]) -> list[float]:
    """Those that could be measured."""
    return [value for value in values if value is not None]
