"""How did a run learn, and what are its models worth?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mach.page.picture import (
    ACCENT,
    INK,
    MUTED,
    Picture,
    component_colours,
    draw,
    legend_below,
    log_axis,
)
from mach.records import Log
from mach.records.log import Column
from mach.records.scores import Measure
from mach.report.numbers import short

_POINTS = 600
"""Of a curve: as many as a screen can show."""

Point = tuple[str, float, float]
"""Name of a model, its FLOPs, its score."""


def losses(logs: list[Log]) -> Picture | None:
    """Training loss of every component over the steps."""
    return _curves(
        logs,
        "loss",
        "Loss by component",
        "loss, nats",
        "Training loss at each component's own head, mean of the steps between two lines.",
    )


def students(logs: list[Log]) -> Picture | None:
    """How well every student imitates its child; None without students."""
    return _curves(
        logs,
        "student_loss",
        "Student loss",
        "student loss",
        "What each student still gets wrong of its child's activation (in parts of its variance), "
        "and of the task. Below 1 it says more than the mean would.",
    )


def _curves(logs: list[Log], key: str, title: str, label: str, caption: str) -> Picture | None:
    curves = [log.curve(key) for log in logs]
    if not any(len(x) for x, _ in curves):
        return None
    thinned = any(len(x) > _POINTS for x, _ in curves)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        colours = component_colours(len(logs))
        for k, (colour, (x, y)) in enumerate(zip(colours, curves, strict=True)):
            if len(x):
                axes.plot(*thin(x, y), color=colour, label=str(k))
        axes.set(xlabel="optimizer step", ylabel=label)
        if _spans(curves):
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        legend_below(axes, "component")

    if thinned:
        caption += f" Each point is the mean of a stretch of lines, {_POINTS} points a curve."
    return draw(key.replace("_", "-"), title, caption, paint)


def exits(logs: list[Log], measure: Measure) -> Picture | None:
    """What exits scored along the way; None where none was evaluated twice."""
    curves, windows = [], False
    for log in logs:
        x, y = log.curve(f"eval_{measure.key}")
        if not len(x):
            x, y = log.curve(f"eval_window_{measure.key}")
            windows = windows or len(x) > 0
        curves.append((x, np.array([measure.of({measure.key: float(value)}) for value in y])))
    if not any(len(x) > 1 for x, _ in curves):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for k, colour, (x, y) in zip(
            range(len(logs)), component_colours(len(logs)), curves, strict=True
        ):
            axes.plot(x, y, color=colour, marker="o", markersize=3, label=str(k))
        axes.set(xlabel="optimizer step", ylabel=f"{measure.split} {measure.label}")
        legend_below(axes, "exit")

    what = "window of each component alone" if windows else "exit"
    name = f"{measure.split.capitalize()} {measure.label}"
    caption = f"{name} of every {what}, on the samples that eval.samples allows."
    return draw("exits", f"{_title(measure)} by exit", caption, paint)


def models(
    chain: list[Point], windows: list[Point], consolidated: list[Point], measure: Measure
) -> Picture | None:
    """What every model scores against what it costs, and which are worth their cost."""
    known = [
        p for p in [*chain, *windows, *consolidated] if np.isfinite(p[1]) and np.isfinite(p[2])
    ]
    if not known:
        return None
    best = frontier(known, measure.higher_is_better)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _, x, y = zip(*best, strict=True)
        right = max(p[1] for p in known) * 1.08
        axes.plot(
            [*x, right], [*y, y[-1]], color=ACCENT, drawstyle="steps-post", lw=1.1, label="frontier"
        )
        for points, marker, colour, name in (
            (chain, "o", INK, "exit of the chain"),
            (windows, "s", MUTED, "window"),
            (consolidated, "D", INK, "window, consolidated"),
        ):
            shown = [p for p in points if p in known]
            if shown:
                axes.scatter(
                    [p[1] for p in shown],
                    [p[2] for p in shown],
                    s=26,
                    marker=marker,
                    color=colour,
                    facecolor=colour if marker == "o" else "none",
                    label=name,
                    zorder=3,
                )
        up = 1 if measure.higher_is_better else -1
        for name, flops, score in best:
            axes.annotate(
                name,
                (flops, score),
                xytext=(0, 7 * up),
                textcoords="offset points",
                ha="center",
                va="bottom" if up > 0 else "top",
                fontsize=8,
            )
        axes.set(xlabel="FLOPs of one sample", ylabel=f"{measure.split} {measure.label}")
        axes.set_xscale("log" if right > 8 * known_least(known) else "linear")
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
        axes.margins(x=0.1, y=0.16)
        legend_below(axes)

    top = best[-1]
    caption = (
        f"Every model of the run. Those on the line are the best for their cost; {top[0]} is best "
        f"of all. A window begins with a student and needs nothing below it."
        if windows
        else f"Every exit of the chain. Those on the line are the best for their cost; {top[0]} is "
        "best of all."
    )
    return draw("models", f"{_title(measure)} against inference cost", caption, paint)


def frontier(points: list[Point], higher_is_better: bool) -> list[Point]:
    """Points that no other beats at the same cost or less, cheapest first."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -sign * p[2])):
        if not best or sign * point[2] > sign * best[-1][2]:
            best.append(point)
    return best


def known_least(points: list[Point]) -> float:
    """The cheapest model's FLOPs."""
    return max(1.0, min(p[1] for p in points))


def thin(x: Column, y: Column, points: int = _POINTS) -> tuple[Column, Column]:
    """At most so many points: means of equal stretches."""
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def _spans(curves: list[tuple[Column, Column]]) -> bool:
    """Whether the curves cover so much that a linear axis would hide the end."""
    values = np.concatenate([y for _, y in curves])
    return bool(len(values) and values.min() > 0 and values.max() > 20 * values.min())


def _title(measure: Measure) -> str:
    name = measure.label.partition(",")[0]
    return name[:1].upper() + name[1:]
