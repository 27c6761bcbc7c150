"""What do the seeds say? From rows to the README's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

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
    """Tables of every length that there are seeds of, the longest first."""
    blocks = ["## Result"]
    for steps in sorted({row["steps"] for row in rows}, reverse=True):
        group = [row for row in rows if row["steps"] == steps]
        blocks += _of_length(group)
    return "\n\n".join([*blocks, "## Environment", _environment(rows)])


def chosen(rows: Sequence[Row]) -> str:
    """The consolidated window that is best on validation, on the mean of the seeds."""
    models = [m for row in rows for m in row["models"] if m["kind"] == "consolidated"]
    names = sorted({m["name"] for m in models})
    return max(names, key=lambda n: mean(m["validated"] for m in models if m["name"] == n))


def values(rows: Sequence[Row], kind: str, name: str | None = None) -> list[float]:
    """Test accuracy of each seed."""
    return [
        m["accuracy"]
        for row in rows
        for m in row["models"]
        if m["kind"] == kind and (name is None or m["name"] == name)
    ]


def _of_length(rows: Sequence[Row]) -> list[str]:
    first, best = rows[0], chosen(rows)
    top = max(m["name"] for m in first["models"] if m["kind"] == "exit")
    chain = values(rows, "exit", top)
    window = values(rows, "consolidated", best)
    more = next(m["steps"] for m in first["models"] if m["kind"] == "consolidated")
    seen, extra = first["steps"] * first["batch"], (more - first["steps"]) * first["batch"]
    kept = mean(window) / mean(chain)
    aims = [
        [
            f"consolidated {best} (best on validation): part of the chain's accuracy that it keeps",
            f"{kept:.4f}",
            f"≥ {KEEPS}",
            _met(kept >= KEEPS),
        ],
        _ahead(window, values(rows, "alone"), "of a network alone, samples of the chain"),
        _ahead(
            window,
            values(rows, "alone, longer"),
            "of a network alone, samples of chain and consolidation",
        ),
    ]
    return [
        f"### mnist1d, chain trained on {seen:,} samples, windows consolidated with {extra:,} "
        f"more; {len(rows)} seeds",
        _table(["", "measured", "aim", "met"], aims),
        "Test accuracy, %, mean (least .. most) of the seeds; FLOPs of a sample as part of the "
        "chain's.",
        _table(["model", "FLOPs", "of the chain", "accuracy"], _models(rows, top)),
        "Cascade: the consolidated window that is best on validation first, the chain where it is "
        "not sure; the threshold is the cheapest that is as accurate as the chain on validation.",
        _table(["", "accuracy", "chain asked, %", "FLOPs on the mean"], _cascades(rows)),
    ]


def _ahead(window: Sequence[float], other: Sequence[float], what: str) -> list[str]:
    points = 100 * (mean(window) - mean(other))
    return [f"it is ahead {what}, points", f"{points:+.2f}", "> 0", _met(points > 0)]


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _models(rows: Sequence[Row], top: str) -> list[list[str]]:
    whole = next(m["flops"] for m in rows[0]["models"] if (m["kind"], m["name"]) == ("exit", top))
    lines = []
    for kind, told in _KINDS.items():
        for name in dict.fromkeys(m["name"] for m in rows[0]["models"] if m["kind"] == kind):
            flops = next(
                m["flops"] for m in rows[0]["models"] if (m["kind"], m["name"]) == (kind, name)
            )
            found = spread(values(rows, kind, name), _percent)
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


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _environment(rows: Sequence[Row]) -> str:
    lines = [
        f"- {machine}" for machine in dict.fromkeys(machine_of(r["environment"]) for r in rows)
    ]
    first = rows[0]
    lines += [
        "- `experiment=mnist1d` (4 components of one block of width 128, delay 4), students of "
        f"width {first['student']}, {first['validation']:,} training samples kept back from all; "
        "one thread",
    ]
    head = ["steps", "seed", "commit", "date", "load at the start", "s it took"]
    body = [
        [
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
