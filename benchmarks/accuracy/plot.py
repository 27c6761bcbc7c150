"""How do accuracy and delay go together, and accuracy and the cost of inference?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from grid import ALONE, METHOD, TASKS, Changes
from rows import at, better_is_more, chains, of, places, settled, tops
from stored import Row

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_SIZE, _DPI = (8, 5), 110


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Figures of each task, of whole runs and of those cut to some steps."""
    ended = chains(row for row in rows if row["exits"] and row["kind"] in (METHOD, ALONE))
    for name, cut in sorted({(row["task"], row["cut_to"] or 0) for row in ended}):
        task, mine = TASKS[name], of(ended, task=name, cut_to=cut or None)
        usual = of(mine, kind=METHOD, components=task.components)
        stem = f"{name}-{cut}-steps" if cut else name
        title = f"{task.about}, {cut} steps" if cut else task.about
        if len({row["delay"] for row in usual}) > 1:
            with _figure(folder / f"{stem}-delay.png", title) as axes:
                _by_delay(axes, usual)
        if of(usual, method="mach"):
            with _figure(folder / f"{stem}-flops.png", title) as axes:
                _by_flops(axes, settled(usual), settled(of(mine, kind=ALONE)))


@contextmanager
def _figure(path: Path, title: str) -> Iterator[Axes]:
    figure, axes = plt.subplots(figsize=_SIZE)
    yield axes
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _percent(values: Sequence[float], metric: str) -> list[float]:
    return [100 * v for v in values] if better_is_more(metric) else list(values)


def _label(metric: str) -> str:
    return "accuracy of the top exit, %" if better_is_more(metric) else "bits per byte, top exit"


def _by_delay(axes: Axes, rows: Sequence[Row]) -> None:
    """A line for each method: the mean, and a bar from the least to the most of the seeds."""
    metric, delays = rows[0]["metric"], sorted({row["delay"] for row in rows})
    known = places(rows)
    for place in known:
        mine = at(rows, place)
        label = _told(place[0], place[2], [changes for m, _, changes in known if m == place[0]])
        found = sorted({row["delay"] for row in mine})
        values = [_percent(tops(of(mine, delay=d)), metric) for d in found]
        if mine[0]["undelayed"]:
            axes.plot(delays, [mean(values[0])] * len(delays), "--", label=label)
            continue
        means = [mean(v) for v in values]
        low = [m - min(v) for m, v in zip(means, values, strict=True)]
        high = [max(v) - m for m, v in zip(means, values, strict=True)]
        axes.errorbar(found, means, (low, high), marker="o", capsize=3, label=label)
    axes.set(xlabel="delay, microbatches a hop", ylabel=_label(metric), xticks=delays)


def _told(method: str, changes: Changes, choices: Sequence[Changes]) -> str:
    """A method, whether something was chosen for it, and what no other of its choices has."""
    if not changes:
        return method
    tuned = [set(choice) for choice in choices if choice]
    own = [change for change in changes if not all(change in choice for choice in tuned)]
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


def _name(entry: dict[str, int]) -> list[int]:
    return [entry[key] for key in ("exit", "first", "last") if key in entry]
