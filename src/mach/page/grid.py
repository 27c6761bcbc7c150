"""What do the jobs of a sweep show together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mach.page.learning import thin
from mach.page.picture import INK, MUTED, Picture, component_colours, draw, legend_below, log_axis
from mach.records.scores import Measure
from mach.records.sweep import Job, Sweep, scores_of
from mach.report.numbers import short
from mach.secrets import value_of

REPLICATE = "seed"
"""The key whose values are repetitions of one thing."""
_FACETS = 4
_ROOM = 2
"""Of a grid: cells for each job, at most."""
_NAMED = 12
"""Values that have a place at an axis or in a legend."""
_LOGARITHMIC = 100
"""From there on the least and the most of positive numbers are too far apart for even steps."""
_PREFERRED = ("components", "delay")
_MAP = "cividis"
"""Even in lightness, and the same to people who do not tell red from green."""


@dataclass(frozen=True)
class Axis:
    """A key that jobs differ in, and its values in order."""

    key: str
    values: list[Any]

    @property
    def labels(self) -> list[str]:
        """The values as they are written at an axis."""
        return [_label(self.key, value) for value in self.values]

    @property
    def places(self) -> NDArray[np.float64]:
        """Where the values stand: numbers where they are, words side by side."""
        places = self.values if self._of_numbers else range(len(self.values))
        return np.array(places, dtype=np.float64)

    def draw(self, axes: Axes, room: int) -> None:
        """Be the horizontal axis; of numbers that span much, a logarithmic one.

        Args:
            room: for the names of so many values.
        """
        places, labels = self.places, self.labels
        axes.set_xlabel(self.key)
        if places.min() > 0 and places.max() >= _LOGARITHMIC * places.min():
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        elif len(places) > room:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        if len(places) <= room or not self._of_numbers:
            axes.set_xticks(places, labels)
            axes.tick_params(axis="x", rotation=30 if len("".join(labels)) > 5 * room else 0)

    @property
    def _of_numbers(self) -> bool:
        return all(not isinstance(v, str) and isfinite(v) for v in self.values)


@dataclass(frozen=True)
class Layout:
    """Which keys span the pictures of a sweep."""

    rows: Axis | None
    """None where one key alone varies: there is no map."""
    columns: Axis
    facets: Axis | None
    averaged: list[str]
    """Over these a cell is a mean."""


def layout_of(sweep: Sweep) -> Layout | None:
    """The two keys that vary most span the map; components and delay where both vary.

    A third of few values makes a map each; all else is averaged, seeds before anything. None where
    nothing but seeds varies, and where values are met too rarely for a grid, as in a search.
    """
    varying = sweep.varying
    keys = [key for key in varying if key != REPLICATE]
    if not keys:
        return None
    chosen = list(_PREFERRED) if set(_PREFERRED) <= set(keys) else keys[:2]
    rest = [key for key in keys if key not in chosen]
    facet = next((key for key in rest if len(varying[key]) <= _FACETS), None)
    spanning = [*chosen, facet] if facet else chosen
    if prod(len(varying[key]) for key in spanning) > _ROOM * len(sweep.jobs):
        return None
    axes = [Axis(key, varying[key]) for key in chosen]
    return Layout(
        rows=axes[0] if len(axes) > 1 else None,
        columns=axes[-1],
        facets=Axis(facet, varying[facet]) if facet else None,
        averaged=[key for key in varying if key not in spanning],
    )


def heat_map(jobs: list[Job], layout: Layout, measure: Measure) -> Picture | None:
    """Mean score by the two keys, with its spread and the number of jobs in the cell; None where
    there is one key, or no job has both."""
    if layout.rows is None:
        return None
    across, down = layout.columns, layout.rows
    rows, columns = down.values, across.values
    facets = layout.facets.values if layout.facets else [None]
    cells = [_cells(_of_facet(jobs, layout, value), down, across) for value in facets]
    known = [mean for table in cells for mean, _, n in table.values() if n]
    if not known:
        return None
    low, high = min(known), max(known)

    def paint(figure: Figure) -> None:
        maps = figure.subplots(1, len(facets), sharey=True, squeeze=False)[0]
        for axes, table, value in zip(maps, cells, facets, strict=True):
            grid = np.full((len(rows), len(columns)), np.nan)
            for (r, c), (mean, _, n) in table.items():
                grid[r, c] = mean if n else np.nan
            norm = mpl.colors.Normalize(low, high if high > low else low + 1)
            colours = mpl.colormaps[_MAP if measure.higher_is_better else f"{_MAP}_r"]
            axes.pcolormesh(grid, cmap=colours, norm=norm, edgecolors="none")
            for (r, c), cell in table.items():
                _write(axes, r, c, cell, measure, colours(norm(cell[0])) if cell[2] else None)
            axes.set(
                xticks=np.arange(len(columns)) + 0.5,
                yticks=np.arange(len(rows)) + 0.5,
                xticklabels=across.labels,
                yticklabels=down.labels,
                xlabel=across.key,
            )
            axes.set_ylabel(down.key if axes is maps[0] else "")
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if layout.facets:
                axes.set_title(f"{layout.facets.key}={_label(layout.facets.key, value)}")

    over = f" over {', '.join(layout.averaged)}" if layout.averaged else ""
    spread = (
        f"Mean{over}, below it ± standard deviation and the number of jobs. "
        if layout.averaged
        else "One job a cell. "
    )
    wide = len(facets) > 1 or len(columns) > 6
    best = "brighter" if measure.higher_is_better else "brighter (less)"
    return draw(
        "heat-map",
        f"{down.key} × {across.key}",
        f"{measure.split.capitalize()} {measure.label} of the top exit. {spread}"
        f"{best[:1].upper()}{best[1:]} is better; an empty cell has no result.",
        paint,
        height_in=max(2.4, 0.9 + 0.62 * len(rows)),
        wide=wide,
    )


def lines(jobs: list[Job], layout: Layout, measure: Measure) -> Picture | None:
    """Score against the key of the columns, a line for each value of the other, if there is one.
    None where no job has both."""
    across, down = layout.columns, layout.rows
    rows = [{down.key: value} for value in down.values] if down else [{}]
    labels = down.labels if down else [""]
    found = [[_scores(jobs, row | {across.key: value}) for value in across.values] for row in rows]
    if not any(scores for row in found for scores in row):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, label, colour in zip(found, labels, component_colours(len(rows)), strict=True):
            known = [scores for scores in row if scores]
            if not known:
                continue
            x = across.places[[len(scores) > 0 for scores in row]]
            least, most = [min(scores) for scores in known], [max(scores) for scores in known]
            axes.fill_between(x, least, most, color=colour, alpha=0.18, lw=0)
            mean = [np.mean(scores) for scores in known]
            axes.plot(x, mean, color=colour, marker="o", markersize=4, label=label)
        axes.set_ylabel(f"{measure.split} {measure.label}")
        across.draw(axes, _NAMED)
        if down:
            legend_below(axes, down.key)

    over = [key for key in (*layout.averaged, layout.facets.key if layout.facets else "") if key]
    band = f"band: least to most over {', '.join(over)}" if over else "one job a point"
    return draw(
        "lines",
        f"Against {across.key}",
        f"{measure.split.capitalize()} {measure.label} of the top exit; line: mean, {band}.",
        paint,
    )


def scatter(jobs: list[Job], sweep: Sweep, measure: Measure) -> Picture | None:
    """Score of every job against each key by itself, as a search met it; None of seeds alone."""
    keys = [key for key in sweep.varying if key != REPLICATE][:_FACETS]
    if not keys or not jobs:
        return None

    def paint(figure: Figure) -> None:
        every = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axes, key in zip(every, keys, strict=True):
            axis = Axis(key, sweep.varying[key])
            for value, place in zip(axis.values, axis.places, strict=True):
                scores = _scores(jobs, {key: value})
                axes.plot([place] * len(scores), scores, "o", color=INK, alpha=0.6, markersize=4)
            axis.draw(axes, 2 * _NAMED // (1 + len(keys)))
        every[0].set_ylabel(f"{measure.split} {measure.label}")

    left_out = len(sweep.varying) - len(keys) - (REPLICATE in sweep.varying)
    first = f" The {len(keys)} keys of the most values." if left_out else ""
    return draw(
        "scatter",
        "Against each key",
        f"{measure.split.capitalize()} {measure.label} of the top exit, a dot a job.{first}",
        paint,
        wide=len(keys) > 1,
    )


def curves(jobs: list[Job], key: str | None, values: list[Any]) -> Picture | None:
    """Loss of the top component of every job, coloured by one key."""
    shown = [(job, job.log) for job in jobs if len(job.log.curve("loss")[0])]
    if not shown:
        return None
    colours = dict(zip(values, component_colours(len(values)), strict=True)) if key else {}
    named = values if len(values) <= _NAMED else values[:: -(-len(values) // 5)]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        if key:
            for value in named:
                axes.plot([], [], color=colours[value], label=_label(key, value))
            legend_below(axes, key)
        for job, log in shown:
            value = job.overrides.get(key) if key else None
            axes.plot(
                *thin(*log.curve("loss", over="samples"), 200),
                color=colours.get(value, MUTED),
                lw=0.9,
                alpha=0.75,
            )
        axes.set(xlabel="samples seen", ylabel="loss, nats")
        axes.set_yscale("log")
        log_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))

    lines = sum(log.lines for _, log in shown)
    taken = sum(len(log) for _, log in shown)
    thinned = f" {taken:,} of {lines:,} lines, evenly spaced." if taken < lines else ""
    if len(named) < len(values):
        thinned += f" Of {len(values)} values {len(named)} are named, in the order of the colours."
    return draw(
        "curves",
        "Loss while training",
        f"Training loss of the top component, one line a job.{thinned}",
        paint,
    )


def _label(key: str, value: Any) -> str:
    """A value where room is scarce: a number that a search has drawn has many digits."""
    return f"{value:.3g}" if isinstance(value, float) else value_of(key, value)


# --- cells -----------------------------------------------------------------------------------

_Cell = tuple[float, float, int]
"""Mean, standard deviation, number of jobs."""


def _of_facet(jobs: list[Job], layout: Layout, value: Any) -> list[Job]:
    return _having(jobs, {layout.facets.key: value}) if layout.facets else jobs


def _cells(jobs: list[Job], down: Axis, across: Axis) -> dict[tuple[int, int], _Cell]:
    table: dict[tuple[int, int], _Cell] = {}
    for r, row in enumerate(down.values):
        for c, column in enumerate(across.values):
            scores = _scores(jobs, {down.key: row, across.key: column})
            if scores:
                deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
                table[r, c] = float(np.mean(scores)), deviation, len(scores)
            else:
                table[r, c] = np.nan, np.nan, 0
    return table


def _scores(jobs: list[Job], asked: Mapping[str, Any]) -> list[float]:
    return scores_of(_having(jobs, asked))


def _having(jobs: list[Job], asked: Mapping[str, Any]) -> list[Job]:
    return [job for job in jobs if all(job.overrides.get(k) == v for k, v in asked.items())]


def _write(axes: Axes, r: int, c: int, cell: _Cell, measure: Measure, colour: Any) -> None:
    mean, deviation, n = cell
    if colour is None:
        axes.text(c + 0.5, r + 0.5, "–", ha="center", va="center", color=MUTED)
        return
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
    ink = "#000000" if light else "#ffffff"
    axes.text(
        c + 0.5,
        r + (0.58 if n > 1 else 0.5),
        measure.text(mean),
        ha="center",
        va="center",
        color=ink,
        fontweight="bold",
    )
    if n > 1:
        text = f"± {measure.text(deviation)}  n={n}"
        axes.text(c + 0.5, r + 0.28, text, ha="center", va="center", color=ink, fontsize=7)
