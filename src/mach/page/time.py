"""Where did the time of a run's components go?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mach.page.picture import KINDS, PAPER, WAIT, Picture, component_colours, draw
from mach.records import Log, Slices

_SHOWN = 60
"""Slices of work of a component in the timeline: more are too narrow to be seen."""
_PLACES_TRIED = 201
"""Stretches of the trace from which the timeline is chosen."""


def timeline(traces: list[Slices]) -> Picture | None:
    """A few steps of all components, from where all work, as near to the middle as can be."""
    traces = [t for t in traces if len(t.start_s)]
    if not traces:
        return None
    begin, end = _window(traces)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, trace in enumerate(traces):
            inside = (trace.start_s < end) & (trace.start_s + trace.duration_s > begin)
            for name, code in zip(trace.names, range(len(trace.names)), strict=True):
                here = inside & (trace.name == code)
                kind = _kind(name)
                starts, widths = 1e3 * (trace.start_s[here] - begin), 1e3 * trace.duration_s[here]
                bars = list(zip(starts, widths, strict=True))
                if kind == "wait":  # takes out of the slice around it
                    axes.broken_barh(bars, (row - 0.42, 0.84), facecolor=PAPER, lw=0, zorder=3)
                low, tall = _PLACES.get(kind, (-0.4, 0.8))
                axes.broken_barh(
                    bars,
                    (row + low, tall),
                    facecolor=KINDS.get(kind, WAIT),
                    linewidth=0,
                    zorder=3 if kind in _PLACES else 2,
                )
        axes.set(
            yticks=range(len(traces)),
            yticklabels=[f"component {t.component}" for t in traces],
            xlabel="ms",
            xlim=(0, 1e3 * (end - begin)),
        )
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        _legend(figure)

    span = sum(float((t.start_s + t.duration_s).max()) for t in traces) / len(traces)
    return draw(
        "timeline",
        "Timeline",
        f"{1e3 * (end - begin):,.0f} ms of a trace of {span:,.1f} s, where all work; the bottom of "
        "the chain is the lowest row. A thin grey line is waiting: for a neighbour, or for data. "
        "Gaps are what mach itself and Python take. The whole trace is in trace.json, for "
        "ui.perfetto.dev or chrome://tracing.",
        paint,
        height_in=1.2 + 0.34 * len(traces),
        wide=True,
    )


def shares(traces: list[Slices], logs: list[Log]) -> Picture | None:
    """What part of its time each component worked and waited."""
    if any(len(t.start_s) for t in traces):
        rows = {f"component {t.component}": _by_kind(t) for t in traces if len(t.start_s)}
        source = "From the trace; what is missing to 100 % is spent between actions."
    else:
        rows = {f"component {log.component}": _waits(log) for log in logs if len(log)}
        source = "From the log. report.trace=true shows what the work consisted of."
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, parts in enumerate(rows.values()):
            left = 0.0
            for kind in _ORDER:
                part = 100 * parts.get(kind, 0.0)
                axes.barh(row, part, left=left, height=0.72, color=_COLOURS[kind])
                left += part
        axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel="% of the time")
        axes.set_xlim(0, 100)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        present = [k for k in _ORDER if any(parts.get(k, 0) > 0.002 for parts in rows.values())]
        _legend(figure, present, columns=3)

    busiest = max(rows, key=lambda name: 1 - rows[name].get("wait", 0))
    return draw(
        "time",
        "Where the time went",
        f"{busiest[:1].upper()}{busiest[1:]} waited least. {source}",
        paint,
        height_in=1.3 + 0.3 * len(rows),
    )


def staleness(logs: list[Log]) -> Picture | None:
    """How old the gradients were that each component used."""
    values = [log.column("staleness_steps") for log in logs]
    values = [v[np.isfinite(v)] for v in values]
    if not any(len(v) for v in values):
        return None
    most = max(float(v.max()) for v in values if len(v))
    edges = np.linspace(0, max(1.0, np.ceil(most)), 25)

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(values), sharex=True, squeeze=False)[::-1, 0]
        for k, (axes, own, colour) in enumerate(
            zip(rows, values, component_colours(len(values)), strict=True)
        ):
            if len(own):
                counts, _ = np.histogram(own, edges)
                axes.bar(
                    edges[:-1],
                    100 * counts / len(own),
                    np.diff(edges),
                    align="edge",
                    color=colour,
                )
                axes.axvline(own.mean(), color=colour, lw=0.8, ls=":")
                axes.set_title(
                    f"component {k}, mean {own.mean():.1f}",
                    fontweight="normal",
                    fontsize=8,
                    pad=2,
                )
            axes.set(ylim=(0, 105), yticks=[0, 100], yticklabels=["0", "100"])
            axes.tick_params(labelsize=7)
        rows[0].set_xlabel("staleness, optimizer steps")
        rows[0].set_ylabel("%", rotation=0)

    return draw(
        "staleness",
        "Staleness",
        "Age of the gradients each component used, as a histogram over its logged lines; those of "
        "the top are never old. What hurts is staleness in optimizer steps, not delay.",
        paint,
        height_in=max(2.0, 0.7 + 0.66 * len(values)),
    )


# --- sums ------------------------------------------------------------------------------------

_COLOURS = {**KINDS, "work": KINDS["forward"], "wait": WAIT}
_PLACES = {"distil": (-0.4, 0.4), "wait": (-0.08, 0.16)}
"""Lower edge and height of what is drawn in less than the whole row."""
_ORDER = ["forward", "backward", "distil", "step", "evaluate", "save", "work", "wait"]


def _kind(name: str) -> str:
    """`forward` of `forward imagined`; waits are of one kind."""
    word = name.partition(" ")[0]
    return "save" if word == "flush" else word


def _by_kind(trace: Slices) -> dict[str, float]:
    """Part of the trace's time by kind, what lies within a slice not counted twice."""
    order = np.lexsort((-trace.duration_s, trace.start_s))
    start, took = trace.start_s[order], trace.duration_s[order]
    end = start + took
    furthest = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]])
    inner = start < furthest - 1e-7
    # The slice around an inner one is the last before it that is not inner itself.
    around = np.maximum.accumulate(np.where(inner, 0, np.arange(len(start))))
    own = took.copy()
    np.subtract.at(own, around[inner], took[inner])
    total = float(end.max() - start.min()) or 1.0
    kinds = [_kind(trace.names[code]) for code in trace.name[order]]
    sums: dict[str, float] = {}
    for kind, value in zip(kinds, np.maximum(own, 0.0), strict=True):
        sums[kind] = sums.get(kind, 0.0) + float(value) / total
    return sums


def _waits(log: Log) -> dict[str, float]:
    wall_s = log.wall_s
    keys = ("wait_child_ms", "wait_parent_ms", "wait_data_ms")
    waited_s = sum(float(np.nansum(log.column(key))) for key in keys) / 1e3
    wait = min(1.0, waited_s / wall_s) if wall_s > 0 else 0.0
    return {"work": 1 - wait, "wait": wait}


def _window(traces: list[Slices]) -> tuple[float, float]:
    """Begin and end, in seconds, of a stretch with work at every component, near the middle."""
    begin = min(float(t.start_s.min()) for t in traces)
    end = max(float((t.start_s + t.duration_s).max()) for t in traces)
    work = [np.sort(t.start_s[~t.waits()]) for t in traces]
    most = max((len(starts) for starts in work), default=0) or 1
    span = (end - begin) * min(1.0, _SHOWN / most)
    first = np.linspace(begin, end - span, _PLACES_TRIED)
    counts = [np.searchsorted(w, first + span) - np.searchsorted(w, first) for w in work]
    busy = np.minimum(np.min(counts, axis=0), _SHOWN // 2)  # more than that is no better
    off_middle = np.abs(first - first.mean())
    best = float(first[np.lexsort((off_middle, -busy))[0]])
    return best, best + span


def _legend(figure: Figure, kinds: list[str] | None = None, columns: int = 8) -> None:
    shown = kinds or [*KINDS, "wait"]
    patches = [Patch(color=_COLOURS[kind], label=kind) for kind in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns)
