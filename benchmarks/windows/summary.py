"""What do the seeds say? From rows to the README's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from tasks import TASKS

from mach.provenance import commit_of, machine_of

Row = dict[str, Any]
KEEPS = 0.99
"""Of the chain's accuracy, that a window of at most half its FLOPs is to keep."""
_KINDS = {
    "exit": "chain {name}",
    "raw": "window {name}, as the run leaves it",
    "consolidated": "consolidated {name}",
    "alone": "alone, same cost, samples of the chain",
    "alone, longer": "alone, same cost, samples of chain and consolidation",
}


def markdown(rows: Sequence[Row]) -> str:
    """Tables of every task and length that there are seeds of, the longest first."""
    blocks = ["## Result"]
    for name in TASKS:
        for steps in sorted({row["steps"] for row in rows if row["task"] == name}, reverse=True):
            blocks += _of_length(of(rows, name, steps))
    return "\n\n".join([*blocks, "## Environment", _environment(rows)])


def of(rows: Sequence[Row], name: str, steps: int) -> list[Row]:
    """The seeds of one length of a task."""
    return [row for row in rows if (row["task"], row["steps"]) == (name, steps)]


def _quality(metric: str, value: float) -> float:
    """The more the better."""
    return value if metric == "accuracy" else -value


def chosen(rows: Sequence[Row]) -> str:
    """The consolidated window that is best on validation, on the mean of the seeds."""
    models = [m for row in rows for m in row["models"] if m["kind"] == "consolidated"]
    metric = rows[0]["metric"]

    def validated(name: str) -> float:
        return _quality(metric, mean(m["validated"] for m in models if m["name"] == name))

    return max(sorted({m["name"] for m in models}), key=validated)


def values(rows: Sequence[Row], kind: str, name: str | None = None) -> list[float]:
    """What each seed has on the test split."""
    return [
        m["value"]
        for row in rows
        for m in row["models"]
        if m["kind"] == kind and (name is None or m["name"] == name)
    ]


def _of_length(rows: Sequence[Row]) -> list[str]:
    first, best, task = rows[0], chosen(rows), TASKS[rows[0]["task"]]
    top = max(m["name"] for m in first["models"] if m["kind"] == "exit")
    more = next(m["steps"] for m in first["models"] if m["kind"] == "alone, longer")
    seen, extra = first["steps"] * first["batch"], (more - first["steps"]) * first["batch"]
    told = "Accuracy, %" if first["metric"] == "accuracy" else "Bits per byte"
    blocks = [
        f"### {task.about}, chain trained on {seen:,} {task.samples}, windows consolidated with "
        f"{extra:,} more; {len(rows)} seeds",
        _table(["", "measured", "aim", "met"], _aims(rows, best, top)),
        f"{told} on the test split, mean (least .. most) of the seeds; FLOPs of a sample as part "
        "of the chain's.",
        _table(["model", "FLOPs", "of the chain", "test"], _models(rows, top)),
    ]
    if first["cascade"] is None:
        return blocks
    return [
        *blocks,
        "Cascade: the consolidated window that is best on validation first, the chain where it is "
        "not sure; the threshold is the cheapest that is as accurate as the chain on validation.",
        _table(["", "accuracy", "chain asked, %", "FLOPs on the mean"], _cascades(rows)),
    ]


def _aims(rows: Sequence[Row], best: str, top: str) -> list[list[str]]:
    metric, window = rows[0]["metric"], values(rows, "consolidated", best)
    chain = mean(values(rows, "exit", top))
    kept = mean(window) / chain if metric == "accuracy" else chain / mean(window)
    what = "accuracy that it keeps" if metric == "accuracy" else "bits per byte, as one of its own"
    kept_line = [
        f"consolidated {best} (best on validation): part of the chain's {what}",
        f"{kept:.4f}",
        f"≥ {KEEPS}",
        _met(kept >= KEEPS),
    ]
    return [
        kept_line,
        _ahead(rows, window, "alone", "samples of the chain"),
        _ahead(rows, window, "alone, longer", "samples of chain and consolidation"),
    ]


def _ahead(rows: Sequence[Row], window: Sequence[float], kind: str, samples: str) -> list[str]:
    metric = rows[0]["metric"]
    ahead = _quality(metric, mean(window) - mean(values(rows, kind)))
    percent = metric == "accuracy"
    measured = f"{100 * ahead:+.2f}" if percent else f"{ahead:+.3f}"
    unit = "points" if percent else "bits per byte"
    what = f"it is ahead of a network alone, {samples}, {unit}"
    return [what, measured, "> 0", _met(ahead > 0)]


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _models(rows: Sequence[Row], top: str) -> list[list[str]]:
    show = _shown(rows[0]["metric"])
    whole = next(m["flops"] for m in rows[0]["models"] if (m["kind"], m["name"]) == ("exit", top))
    lines = []
    for kind, told in _KINDS.items():
        for name in dict.fromkeys(m["name"] for m in rows[0]["models"] if m["kind"] == kind):
            flops = next(
                m["flops"] for m in rows[0]["models"] if (m["kind"], m["name"]) == (kind, name)
            )
            found = spread(values(rows, kind, name), show)
            lines.append([told.format(name=name), f"{flops:,}", f"{flops / whole:.2f}", found])
    return lines


def _cascades(rows: Sequence[Row]) -> list[list[str]]:
    names = {"small": "window alone", "cascade": "cascade", "large": "chain alone"}
    lines = []
    for key, told in names.items():
        points = [row["cascade"][key] for row in rows]
        lines.append(
            [
                told,
                spread([p["accuracy"] for p in points], _percent),
                spread([p["asked"] for p in points], lambda v: f"{100 * v:.1f}"),
                spread([p["flops"] for p in points], lambda v: f"{v:,.0f}"),
            ]
        )
    return lines


def spread(found: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean (least .. most)."""
    if len(set(found)) == 1:
        return show(found[0])
    return f"{show(mean(found))} ({show(min(found))} .. {show(max(found))})"


def _shown(metric: str) -> Callable[[float], str]:
    """How a value is written."""
    return _percent if metric == "accuracy" else lambda value: f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _environment(rows: Sequence[Row]) -> str:
    lines = [
        f"- {machine}" for machine in dict.fromkeys(machine_of(r["environment"]) for r in rows)
    ]
    for name, task in TASKS.items():
        first = next((row for row in rows if row["task"] == name), None)
        if first is not None:
            words = " ".join([f"experiment={task.experiment}", *first["words"]])
            lines.append(
                f"- {task.about}: `{words}`, students of width "
                f"{first['student']}, {first['validation']:,} training samples kept back from all; "
                "one thread"
            )
    head = ["task", "steps", "seed", "commit", "date", "load at the start", "s it took"]
    body = [
        [
            TASKS[row["task"]].about,
            f"{row['steps']:,}",
            str(row["seed"]),
            commit_of(row["environment"]),
            row["environment"]["date"],
            f"{row['environment']['load']:.2f}",
            f"{row['seconds']:,}",
        ]
        for row in rows
    ]
    return "\n".join([*lines, "", _table(head, body)])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
