"""How do accuracy and delay go together, and accuracy and the cost of inference?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from grid import ALONE, METHOD, TASKS, Changes
from origins import CONF, TUNED, Origins
from rows import at, better_is_more, chains, of, order, places, settled, tops
from stored import Row

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_SIZE, _DPI = (10, 5), 110
_APART = 1 / 400
"""How far apart methods stand that were late by as much, of the longest delay."""
_COLOURS = [plt.get_cmap("tab20")(number) for number in (*range(0, 20, 2), *range(1, 20, 2))]
_LABEL_WIDTH = 30


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Figures of each task, of whole runs and of those cut to some steps."""
    origins = Origins(rows)
    ended = chains(row for row in rows if row["exits"] and row["kind"] in (METHOD, ALONE))
    for name, cut in sorted({(row["task"], row["cut_to"] or 0) for row in ended}):
        task, mine = TASKS[name], of(ended, task=name, cut_to=cut or None)
        usual = of(mine, kind=METHOD, components=task.components)
        stem = f"{name}-{cut}-steps" if cut else name
        title = f"{task.about}, {cut} steps" if cut else task.about
        if len({row["delay"] for row in usual}) > 1:
            with _figure(folder / f"{stem}-delay.png", title) as axes:
                _by_delay(axes, usual, origins)
        if of(usual, method="mach"):
            with _figure(folder / f"{stem}-flops.png", title) as axes:
                _by_flops(axes, settled(usual), settled(of(mine, kind=ALONE)))


@contextmanager
def _figure(path: Path, title: str) -> Iterator[Axes]:
    figure, axes = plt.subplots(figsize=_SIZE)
    yield axes
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _percent(values: Sequence[float], metric: str) -> list[float]:
    return [100 * v for v in values] if better_is_more(metric) else list(values)


def _label(metric: str) -> str:
    return "accuracy of the top exit, %" if better_is_more(metric) else "bits per byte, top exit"


def _by_delay(axes: Axes, rows: Sequence[Row], origins: Origins) -> None:
    """A line for each method: the mean, and a bar from the least to the most of the seeds. A method
    has a colour, broken with an earlier choice, dotted and hollow with the values of `conf/`, dots
    and dashes with those of another method."""
    metric, delays = rows[0]["metric"], sorted({row["delay"] for row in rows})
    known = places(rows)
    methods = order({method for method, _, _ in known})
    for index, place in enumerate(known):
        method, _, changes = place
        mine = at(rows, place)
        origin = origins.of(mine[0])
        choices = [
            other
            for name, _, other in known
            if name == method and origins.of(at(rows, (name, place[1], other))[0]) == TUNED
        ]
        colour = _COLOURS[methods.index(method) % len(_COLOURS)]
        style: dict[str, Any] = {
            "label": fill(_told(method, origin, changes, choices), _LABEL_WIDTH),
            "color": colour,
            "linestyle": _line(origin, choices[::-1].index(changes) if origin == TUNED else 0),
        }
        found = sorted({row["delay"] for row in mine})
        values = [_percent(tops(of(mine, delay=d)), metric) for d in found]
        means = [mean(v) for v in values]
        if mine[0]["undelayed"]:
            axes.plot(delays, means * len(delays), **style)
            continue
        low = [m - min(v) for m, v in zip(means, values, strict=True)]
        high = [max(v) - m for m, v in zip(means, values, strict=True)]
        there = [delay + _APART * delays[-1] * (index - len(known) / 2) for delay in found]
        filled = "none" if origin == CONF else colour
        axes.errorbar(
            there, means, (low, high), marker="o", markerfacecolor=filled, capsize=2, **style
        )
    axes.set(xlabel="delay, microbatches a hop", ylabel=_label(metric), xticks=delays)
    _spread_the_best(axes, metric)


def _spread_the_best(axes: Axes, metric: str) -> None:
    """Of accuracy, %, half the errors are as far up everywhere on the axis."""
    if not better_is_more(metric):
        return

    def up(accuracy: np.ndarray) -> np.ndarray:
        return -np.log(np.maximum(100 - accuracy, 1e-3))

    def down(height: np.ndarray) -> np.ndarray:
        return 100 - np.exp(-height)

    axes.set_yscale("function", functions=(up, down))
    low, high = axes.get_ylim()
    errors = [50, 30, 20, 15, 10, 7, 5, 4, 3, 2.5, 2, 1.5, 1.3, 1.2, 1.1, 1, 0.5]
    ticks = [100 - error for error in errors if low <= 100 - error <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _line(origin: str, earlier: int) -> str:
    """How the line of a method is drawn.

    Args:
        earlier: how many choices came later.
    """
    if origin == TUNED:
        return "--" if earlier else "-"
    return ":" if origin == CONF else "-."


def _told(method: str, origin: str, changes: Changes, choices: Sequence[Changes]) -> str:
    """A method, where its values come from, and what no other of its choices has."""
    if origin != TUNED:
        return f"{method} ({origin.replace('`', '')})" if changes else method
    own = [change for change in changes if not all(change in choice for choice in choices)]
    return " ".join([method, "(tuned)", *own])


def _by_flops(axes: Axes, rows: Sequence[Row], alone: Sequence[Row]) -> None:
    """Exits and windows of mach at each delay, and networks of such sizes trained alone."""
    metric, components = rows[0]["metric"], rows[0]["components"]
    for delay in sorted({row["delay"] for row in of(rows, method="mach")}):
        group = of(rows, method="mach", delay=delay)
        for part, marker, line in (("exits", "o", "-"), ("windows", "x", ":")):
            flops = {tuple(_name(e)): e["flops"] for row in group for e in row[part]}
            points = sorted(
                (cost, mean(e["value"] for row in group for e in row[part] if tuple(_name(e)) == n))
                for n, cost in flops.items()
                if part == "exits" or n[1] == components - 1
            )
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(
                    x, _percent(y, metric), line, marker=marker, label=f"{part}, delay {delay}"
                )
    sizes: dict[int, list[float]] = {}
    for row in [*alone, *of(rows, method="backprop")]:
        sizes.setdefault(row["exits"][-1]["flops"], []).extend(tops([row]))
    costs = sorted(sizes)
    alike = _percent([mean(sizes[cost]) for cost in costs], metric)
    axes.plot(costs, alike, "k--", marker="s", label="trained alone (backprop)")
    axes.set(xlabel="FLOPs a sample", ylabel=_label(metric).replace(" of the top exit", ""))
    _spread_the_best(axes, metric)


def _name(entry: dict[str, int]) -> list[int]:
    return [entry[key] for key in ("exit", "first", "last") if key in entry]
