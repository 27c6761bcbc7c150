"""What do the jobs of a sweep show together?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mach.page.learning import thin
from mach.page.picture import MUTED, Picture, component_colours, draw, legend_below, log_axis
from mach.records import Log
from mach.records.scores import Measure
from mach.records.sweep import Job, Sweep
from mach.report.numbers import short

REPLICATE = "seed"
"""The key whose values are repetitions of one thing."""
_FACETS = 4
_PREFERRED = ("components", "delay")
_MAP = "cividis"
"""Even in lightness, and the same to people who do not tell red from green."""


@dataclass(frozen=True)
class Axis:
    """A key that jobs differ in, and its values in order."""

    key: str
    values: list[Any]


@dataclass(frozen=True)
class Layout:
    """Which keys span the pictures of a sweep."""

    rows: Axis
    columns: Axis
    facets: Axis | None
    averaged: list[str]
    """Over these a cell is a mean."""


def layout_of(sweep: Sweep) -> Layout | None:
    """The two keys that vary most span the map; components and delay where both vary.

    A third of few values makes a map each. Seeds are averaged unless nothing else varies. None
    where fewer than two keys vary.
    """
    varying = dict(sweep.varying)
    others = [key for key in varying if key != REPLICATE]
    if len(others) < 2 and REPLICATE in varying:
        others.append(REPLICATE)
    if len(others) < 2:
        return None
    chosen = list(_PREFERRED) if set(_PREFERRED) <= set(others) else others[:2]
    rest = [key for key in others if key not in chosen]
    facet = next((key for key in rest if len(varying[key]) <= _FACETS), None)
    averaged = [key for key in varying if key not in (*chosen, facet)]
    rows, columns = (Axis(key, varying[key]) for key in chosen)
    return Layout(rows, columns, Axis(facet, varying[facet]) if facet else None, averaged)


def heat_map(jobs: list[Job], layout: Layout, measure: Measure) -> Picture | None:
    """Mean score by the two keys, with its spread and the number of jobs in the cell; None where no
    job has both, as of two sweeps over different choices."""
    facets = layout.facets.values if layout.facets else [None]
    cells = [_cells(_of_facet(jobs, layout, value), layout) for value in facets]
    known = [mean for table in cells for mean, _, n in table.values() if n]
    if not known:
        return None
    low, high = min(known), max(known)
    rows, columns = layout.rows.values, layout.columns.values

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
                xticklabels=[str(v) for v in columns],
                yticklabels=[str(v) for v in rows],
                xlabel=layout.columns.key,
            )
            axes.set_ylabel(layout.rows.key if axes is maps[0] else "")
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if layout.facets:
                axes.set_title(f"{layout.facets.key}={value}")

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
        f"{layout.rows.key} × {layout.columns.key}",
        f"{measure.split.capitalize()} {measure.label} of the top exit. {spread}"
        f"{best[:1].upper()}{best[1:]} is better; an empty cell has no result.",
        paint,
        height_in=max(2.4, 0.9 + 0.62 * len(rows)),
        wide=wide,
    )


def lines(jobs: list[Job], layout: Layout, measure: Measure) -> Picture:
    """Score against the second key, a line for each value of the first."""
    rows, columns = layout.rows.values, layout.columns.values
    numbers = all(not isinstance(value, str) for value in columns)
    x = np.array(columns, dtype=float) if numbers else np.arange(len(columns), dtype=float)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, colour in zip(rows, component_colours(len(rows)), strict=True):
            found = [
                _scores(j for j in jobs if _at(j, layout.rows.key, row, layout.columns.key, column))
                for column in columns
            ]
            known = np.array([len(values) > 0 for values in found])
            if not known.any():
                continue
            mean = np.array([np.mean(v) for v in found if v])
            least = np.array([min(v) for v in found if v])
            most = np.array([max(v) for v in found if v])
            axes.fill_between(x[known], least, most, color=colour, alpha=0.18, lw=0)
            axes.plot(
                x[known],
                mean,
                color=colour,
                marker="o",
                markersize=4,
                label=str(row),
            )
        axes.set(xlabel=layout.columns.key, ylabel=f"{measure.split} {measure.label}")
        axes.set_xticks(x, [str(v) for v in columns])
        legend_below(axes, layout.rows.key)

    over = [key for key in (*layout.averaged, layout.facets.key if layout.facets else "") if key]
    band = f"band: least to most over {', '.join(over)}" if over else "one job a point"
    return draw(
        "lines",
        f"Against {layout.columns.key}",
        f"{measure.split.capitalize()} {measure.label} of the top exit; line: mean, {band}.",
        paint,
    )


def curves(jobs: list[Job], logs: list[Log], key: str | None, values: list[Any]) -> Picture | None:
    """Loss of the top component of every job, coloured by one key."""
    shown = [(job, log) for job, log in zip(jobs, logs, strict=True) if len(log.curve("loss")[0])]
    if not shown:
        return None
    colours = dict(zip(values, component_colours(len(values)), strict=True)) if key else {}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        named: set[Any] = set()
        for job, log in shown:
            value = job.overrides.get(key) if key else None
            label = str(value) if value in colours and value not in named else None
            named.add(value)
            axes.plot(
                *thin(*log.curve("loss", over="samples"), 200),
                color=colours.get(value, MUTED),
                lw=0.9,
                alpha=0.75,
                label=label,
            )
        axes.set(xlabel="samples seen", ylabel="loss, nats")
        axes.set_yscale("log")
        log_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        if key:
            legend_below(axes, key)

    lines = sum(log.lines for _, log in shown)
    taken = sum(len(log) for _, log in shown)
    thinned = f" {taken:,} of {lines:,} lines, evenly spaced." if taken < lines else ""
    return draw(
        "curves",
        "Loss while training",
        f"Training loss of the top component, one line a job.{thinned}",
        paint,
    )


# --- cells -----------------------------------------------------------------------------------

_Cell = tuple[float, float, int]
"""Mean, standard deviation, number of jobs."""


def _of_facet(jobs: list[Job], layout: Layout, value: Any) -> list[Job]:
    if layout.facets is None:
        return jobs
    return [job for job in jobs if job.overrides.get(layout.facets.key) == value]


def _cells(jobs: list[Job], layout: Layout) -> dict[tuple[int, int], _Cell]:
    table: dict[tuple[int, int], _Cell] = {}
    for r, row in enumerate(layout.rows.values):
        for c, column in enumerate(layout.columns.values):
            scores = _scores(
                j for j in jobs if _at(j, layout.rows.key, row, layout.columns.key, column)
            )
            if scores:
                deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
                table[r, c] = float(np.mean(scores)), deviation, len(scores)
            else:
                table[r, c] = np.nan, np.nan, 0
    return table


def _scores(jobs: Any) -> list[float]:
    return [job.score.value for job in jobs if job.score is not None]


def _at(job: Job, row_key: str, row: Any, column_key: str, column: Any) -> bool:
    return job.overrides.get(row_key) == row and job.overrides.get(column_key) == column


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
