"""Which of them is worth most for its cost?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from summary import Row

mpl.use("agg")
from matplotlib import pyplot as plt

_STYLES = {
    "exit": ("o-", "exits of the chain"),
    "raw": ("x", "windows, as the run leaves them"),
    "consolidated": ("*", "windows, consolidated"),
    "alone": ("s", "alone, samples of the chain"),
    "alone, longer": ("D", "alone, samples of chain and consolidation"),
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against FLOPs, the mean of the seeds, with a bar from the least to the most; of the
    longest training there is."""
    steps = max(row["steps"] for row in rows)
    group = [row for row in rows if row["steps"] == steps]
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind, (style, label) in _STYLES.items():
        models = [m for row in group for m in row["models"] if m["kind"] == kind]
        names = list(dict.fromkeys(m["name"] for m in models))
        points = []
        for name in names:
            own = [m for m in models if m["name"] == name]
            points.append((own[0]["flops"], [100 * m["accuracy"] for m in own]))
        _points(axes, sorted(points), style, label)
    cascades = [row["cascade"]["cascade"] for row in group]
    flops = mean(point["flops"] for point in cascades)
    _points(axes, [(flops, [100 * p["accuracy"] for p in cascades])], "P", "cascade")
    axes.set(xlabel="FLOPs a sample (of the cascade on the mean)", ylabel="test accuracy, %")
    axes.set_title(
        f"mnist1d, chain trained on {steps * group[0]['batch']:,} samples, {len(group)} seeds",
        fontsize=9,
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
