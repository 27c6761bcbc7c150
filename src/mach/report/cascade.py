"""How is a cascade shown: how accurate it is, and what it costs on the mean?"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from mach.choice.cascade import Found, Point, cascade
from mach.config import CascadeConfig
from mach.report.numbers import short

_LINES = 11
"""Of the curve, from the small model alone to the large one always."""


def tell(config: CascadeConfig) -> int:
    """Print what was asked for. Returns the exit code.

    Raises:
        MachError: as `mach.choice.cascade.cascade`.
    """
    found = cascade(config)
    if config.format == "json":
        print(json.dumps(as_json(found), indent=1))
    else:
        show(found, Console())
    return 0


def as_json(found: Found) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "small": str(found.small),
        "large": str(found.large),
        "threshold": found.threshold,
        "calibrated": found.chosen is not None,
        "samples": found.samples,
        "validation": None if found.chosen is None else vars(found.chosen),
        "test": {name: vars(point) for name, point in found.test.items()},
        "curve": [vars(point) for point in found.points],
    }


def show(found: Found, console: Console) -> None:
    """At most 80 columns wide."""
    if found.chosen is not None:
        table = _table(f"On {found.samples['validation']:,} validation samples", "threshold")
        for point in shown_of(found.points, found.chosen):
            style = "bold" if point is found.chosen else None
            table.add_row(f"{point.threshold:.4f}", *_cells(point), style=style)
        console.print(table)
    table = _table(f"On {found.samples['test']:,} test samples", "model")
    names = {"small": found.small.title, "large": found.large.title}
    names["cascade"] = f"cascade at {found.threshold:.4f}"
    for name, point in found.test.items():
        table.add_row(names[name], *_cells(point), style="bold" if name == "cascade" else None)
    console.print(table)
    console.print(_sentence(found))


def _sentence(found: Found) -> str:
    """Who answers when, and what that saves."""
    saved = 1 - found.test["cascade"].flops / found.test["large"].flops
    much = f"{100 * abs(saved):.1f} % {'fewer' if saved >= 0 else 'more'} FLOPs"
    if found.threshold == 0:
        asked = f"{found.small.title} answers all, {found.large.title} is never asked"
    else:
        asked = (
            f"{found.small.title}, and {found.large.title} where its answer has a probability of "
            f"{found.threshold:.4f} or less"
        )
    return f"{asked}: {much} than the large one alone."


def shown_of(points: list[Point], chosen: Point) -> list[Point]:
    """Some points of a curve, evenly by what is asked, and the chosen one."""
    wished = [k / (_LINES - 1) for k in range(_LINES)]
    near = {min(points, key=lambda p, w=w: abs(p.asked - w)).asked for w in wished}  # type: ignore[misc]
    return [point for point in points if point.asked in near or point is chosen]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in ("accuracy %", "large asked %", "mean flops"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(point: Point) -> list[str]:
    return [f"{100 * point.accuracy:.2f}", f"{100 * point.asked:.1f}", short(point.flops)]
