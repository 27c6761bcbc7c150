"""Which of them is worth most for its cost?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from summary import Row, of
from tasks import TASKS

mpl.use("agg")
from matplotlib import pyplot as plt

_STYLES = {
    "exit": ("o-", "exits of the chain"),
    "raw": ("x", "windows, as the run leaves them"),
    "consolidated": ("*", "windows, consolidated"),
    "alone": ("s", "alone, samples of the chain"),
    "alone, longer": ("D", "alone, samples of chain and consolidation"),
}


def draw(rows: Sequence[Row], folder: Path) -> None:
    """A picture of each task, of its longest training there is."""
    for name in dict.fromkeys(row["task"] for row in rows):
        steps = max(row["steps"] for row in rows if row["task"] == name)
        _frontier(of(rows, name, steps), folder / f"{name}.png")


def _frontier(rows: Sequence[Row], path: Path) -> None:
    """What a model is worth against its FLOPs, the mean of the seeds, with a bar from the least to
    the most."""
    task, metric = TASKS[rows[0]["task"]], rows[0]["metric"]
    scale = 100 if metric == "accuracy" else 1
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind, (style, label) in _STYLES.items():
        models = [m for row in rows for m in row["models"] if m["kind"] == kind]
        names = list(dict.fromkeys(m["name"] for m in models))
        points = []
        for name in names:
            own = [m for m in models if m["name"] == name]
            points.append((own[0]["flops"], [scale * m["value"] for m in own]))
        _points(axes, sorted(points), style, label)
    cascades = [row["cascade"]["cascade"] for row in rows if row["cascade"] is not None]
    if cascades:
        flops = mean(point["flops"] for point in cascades)
        _points(axes, [(flops, [scale * p["accuracy"] for p in cascades])], "P", "cascade")
    axes.set(
        xlabel="FLOPs a sample" + (" (of the cascade on the mean)" if cascades else ""),
        ylabel="test accuracy, %" if metric == "accuracy" else "bits per byte, test",
    )
    seen = rows[0]["steps"] * rows[0]["batch"]
    axes.set_title(
        f"{task.about}, chain trained on {seen:,} {task.samples}, {len(rows)} seeds", fontsize=9
    )
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(
    axes: plt.Axes, points: Sequence[tuple[float, list[float]]], style: str, label: str
) -> None:
    means = [mean(found) for _, found in points]
    low = [m - min(found) for m, (_, found) in zip(means, points, strict=True)]
    high = [max(found) - m for m, (_, found) in zip(means, points, strict=True)]
    axes.errorbar([x for x, _ in points], means, (low, high), fmt=style, capsize=3, label=label)
