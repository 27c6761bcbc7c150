"""What did the soak look like?"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from growth import Sample
from soak import Record

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_SIZE, _DPI = (10, 11), 80


def draw(record: Record, path: Path) -> None:
    """Losses, memory, file descriptors and threads over time, with the kills."""
    figure, (loss, memory, fds, threads) = plt.subplots(4, sharex=True, figsize=_SIZE)
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for k, points in enumerate(record.losses):
        loss.plot(*zip(*points, strict=True), color=colors[k], label=f"component {k}")
    loss.set(ylabel="loss", yscale="log")
    for axes, what, label in (
        (memory, "private_mib", "private memory, MiB"),
        (fds, "fds", "file descriptors"),
        (threads, "threads", "threads"),
    ):
        _processes(axes, record.samples, what, colors)
        axes.set(ylabel=label)
    for axes in (loss, memory, fds, threads):
        for t, victim in record.kills:
            axes.axvline(t, color=colors[victim], alpha=0.35, linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.2)
    loss.set_title("a random component is killed every 20 s (dotted, in its color)", fontsize=10)
    threads.set_xlabel("s")
    loss.legend(loc="upper right", ncols=4, fontsize=8)
    memory.legend(loc="lower right", ncols=6, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _processes(axes: Axes, samples: list[Sample], what: str, colors: list[str]) -> None:
    """A line for each process: a component has as many as it has lives."""
    labelled: set[str] = set()
    for role, pid in dict.fromkeys((one.role, one.pid) for one in samples):
        own = [one for one in samples if (one.role, one.pid) == (role, pid)]
        kind, _, k = role.partition(" ")
        color = colors[int(k)] if k else "black"
        forked = kind in ("nursery", "agent")
        axes.plot(
            [one.t_s for one in own],
            [getattr(one, what) for one in own],
            color=color,
            alpha=0.5 if kind == "agent" else 1.0,
            linestyle="--" if forked else "-",
            marker="." if len(own) == 1 else None,
            label=None if kind == "agent" or role in labelled else role,
        )
        labelled.add(role)
