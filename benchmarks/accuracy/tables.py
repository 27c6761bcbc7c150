"""What do the runs say? From rows to the README's tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from goals import AIMS, goals
from grid import ALONE, METHOD, TASKS, TUNING, order
from origins import CONF, TUNED, Origins
from rows import (
    DASH,
    Values,
    at,
    better_is_more,
    by_seed,
    chains,
    difference,
    like,
    of,
    paired,
    places,
    reached_after,
    reference,
    settled,
    shown,
    tops,
    unit,
)
from stored import Row

from mach.provenance import commit_of

Line = Sequence[str]
Entry = tuple[str, str]
"""What is told of some runs, and of how many seeds it is."""


# --- numbers ---------------------------------------------------------------------------------


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean (least .. most)."""
    if not values:
        return DASH
    if len(values) == 1:
        return show(values[0])
    return f"{show(mean(values))} ({show(min(values))} .. {show(max(values))})"


def table(head: Line, lines: Iterable[Line]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def told(row: Row) -> str:
    """One run in one line."""
    what = f"{row['task']}, {row['method']}, delay {row['delay']}, seed {row['seed']}"
    what += f", {row['components']} components" + "".join(f", {c}" for c in row["changes"])
    if not row["exits"]:
        return f"{what}: diverged"
    return f"{what}: {shown(tops([row])[0], row['metric'])} ({row['seconds']} s)"


# --- tables ----------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """Every table that there are rows for."""
    origins = Origins(rows)
    rows = chains(row for row in rows if row["kind"] != TUNING)
    whole = of(rows, cut_to=None)
    aims = [line for name in AIMS for line in goals(of(whole, task=name), name, origins)]
    blocks = ["## Result"]
    if aims:
        blocks += [table(["whole runs", "measured", "aim", "met"], aims)]
    for name, task in TASKS.items():
        mine = of(rows, task=name)
        for cut in sorted({row["cut_to"] for row in mine}, key=lambda steps: steps or 0):
            part = of(mine, cut_to=cut)
            blocks += [f"### {task.about}" + f", {cut} steps" * (cut is not None)]
            blocks += _task(part, origins)
    return "\n\n".join([*blocks, "## Environment", _environment(rows)])


def _task(rows: Sequence[Row], origins: Origins) -> list[str]:
    ended = [row for row in rows if row["exits"]]
    if not ended:
        return ["Nothing has been run."]
    metric, methods = ended[0]["metric"], of(rows, kind=METHOD)
    what = "accuracy of the top exit, %" if better_is_more(metric) else "bits per byte, top exit"
    samples = max(row["samples"] for row in methods or rows)
    blocks = [
        f"Equal samples ({samples:,}): {what}, mean (least .. most) of the seeds. "
        + _origins(methods, origins),
        _by_delay(methods, lambda group, _: (spread(tops(group), _show(metric)), _seeds(group))),
    ]
    if tops(of(methods, method="backprop")):
        blocks += [
            f"Lost against `backprop`, {unit(metric)}: the mean of the differences, seed by seed, "
            "over the seeds that both have brought to an end.",
            _by_delay(methods, lambda group, best: _loss(group, best, metric)),
            "Samples until the top exit is as good as `backprop` is at its end on the mean, as a "
            f"part of all samples; looked at every {_interval(ended):,} samples.",
            _by_delay(methods, lambda group, best: (_reach(group, best, metric), _seeds(group))),
        ]
    blocks += [
        "Every exit, and every window (a window needs nothing below its first component); of a "
        "method with several choices those of the one that most seeds have."
    ]
    blocks += [_parts(methods, metric)]
    alone = of(rows, kind=ALONE)
    if alone:
        blocks += _equal_cost(methods, alone, metric) + _equal_parameters(methods, alone, metric)
    return blocks


def _show(metric: str) -> Callable[[float], str]:
    return lambda value: shown(value, metric)


def _interval(rows: Sequence[Row]) -> int:
    return int(max((row["curve"][0][0] for row in rows if row["curve"]), default=0))


def _origins(rows: Sequence[Row], origins: Origins) -> str:
    """Which methods were tuned, and which have the values of `conf/` or of another method."""
    found: dict[str, set[str]] = {TUNED: set(), CONF: set()}
    for row in rows:
        found.setdefault(origins.of(row), set()).add(row["method"])
    words = {TUNED: "Tuned on the validation split", CONF: "Not tuned, as in `conf/`"}
    lists = {words.get(origin, f"With the {origin}"): names for origin, names in found.items()}
    said = {what: ", ".join(f"`{m}`" for m in order(names)) for what, names in lists.items()}
    return " ".join(f"{what}: {methods}." for what, methods in said.items() if methods)


def _seeds(rows: Iterable[Row]) -> str:
    return f"{len({row['seed'] for row in rows})}"


def _by_delay(rows: Sequence[Row], entry: Callable[[list[Row], list[Row]], Entry]) -> str:
    """A line for each method and number of components, a column for each delay.

    Args:
        entry: from some runs, and those of back-propagation.
    """
    delays = sorted({row["delay"] for row in rows})
    lines = []
    for place in places(rows):
        mine, best = at(rows, place), reference(rows, place[1])
        cells = []
        for delay in delays:
            group = [row for row in mine if row["undelayed"] or row["delay"] == delay]
            if not group:
                cells.append(DASH)
                continue
            text, seeds = entry(group, best)
            if not tops(group):
                text, seeds = "diverged", _seeds(group)
            elif len(tops(group)) < len(group):
                text += f", {len(group) - len(tops(group))} diverged"
            cells.append(f"{text} [{seeds}]")
        lines.append([_name(*place), *cells])
    return table(["[seeds]", *(f"delay {d}" for d in delays)], lines)


def _name(method: str, components: int, changes: Sequence[str]) -> str:
    told = f"`{method}`, {components} components"
    return told + (f" ({', '.join(changes)})" if changes else "")


def _loss(group: list[Row], best: list[Row], metric: str) -> Entry:
    found = paired(by_seed(group), by_seed(best), metric)
    return DASH if found.lost is None else difference(found.lost, metric), found.counted


def _reach(group: list[Row], best: list[Row], metric: str) -> str:
    if not tops(best):
        return DASH
    goal = mean(tops(best))
    found = [(reached_after(row["curve"], goal, metric), row["samples"]) for row in group]
    parts = [after / samples for after, samples in found if after is not None]
    never = len(found) - len(parts)
    text = spread(parts, lambda part: f"{part:.2f}")
    return text if not never else f"{text}, {never} never" if parts else "never"


def _parts(rows: Sequence[Row], metric: str) -> str:
    top = _usual(rows)
    common = settled(of(rows, components=top))
    windows = [(j, i) for j in range(1, top) for i in range(j, top)]
    head = ["", *(f"exit {k}" for k in range(top)), *(f"{j}..{i}" for j, i in windows)]
    lines = []
    for place in places(common):
        mine = at(common, place)
        for delay in sorted({row["delay"] for row in mine}):
            group = [row for row in of(mine, delay=delay) if row["exits"]]
            if not group:
                continue
            exits = [_mean_of(group, "exits", metric, exit=k) for k in range(top)]
            others = [_mean_of(group, "windows", metric, first=j, last=i) for j, i in windows]
            late = "" if group[0]["undelayed"] else f", delay {delay}"
            lines.append([f"`{place[0]}`{late}", *exits, *others])
    return table(head, lines)


def _usual(rows: Sequence[Row]) -> int:
    """The number of components that most rows have."""
    counts = [row["components"] for row in rows]
    return max(set(counts), key=counts.count)


def _mean_of(rows: Sequence[Row], part: str, metric: str, **wanted: int) -> str:
    values = [entry["value"] for row in rows for entry in of(row[part], **wanted)]
    return shown(mean(values), metric) if values else DASH


def _equal_cost(rows: Sequence[Row], alone: Sequence[Row], metric: str) -> list[str]:
    """Exits and windows of `mach`, each beside a network of its FLOPs."""
    known = [*alone, *of(rows, method="backprop")]
    top, lines = _usual(rows) - 1, []
    by_mach = settled(of(rows, method="mach", components=top + 1))
    for delay in sorted({row["delay"] for row in by_mach if row["exits"]}):
        group = of(by_mach, delay=delay)
        whole = max(group, key=lambda row: (len(row["windows"]), len(row["exits"])))
        for part in ("exits", "windows"):
            for entry in whole[part]:
                if part == "windows" and entry["last"] != top:
                    continue
                key = {k: entry[k] for k in ("exit", "first", "last") if k in entry}
                name = f"exit {entry['exit']}" if "exit" in key else "window {first}..{last}"
                own = by_seed(group, part, **key)
                same = by_seed(like(known, "flops", entry["flops"]))
                about = [f"delay {delay}: {name.format(**entry)}", f"{entry['flops']:,}"]
                lines.append([*about, *_beside(own, same, metric)])
    head = ["equal inference cost: `mach`", "FLOPs / sample", "of the run", "alone"]
    return [table([*head, "ahead by [seeds]"], lines)] if lines else []


def _equal_parameters(rows: Sequence[Row], alone: Sequence[Row], metric: str) -> list[str]:
    """The top exit of `mach` beside a network of as many parameters as `mach` trains together."""
    by_mach = settled(of(rows, method="mach", components=_usual(rows)))
    delays = sorted({row["delay"] for row in by_mach if row["exits"]})
    if not delays:
        return []
    # The chain knows nothing of its students: a run that was made without them stands for both.
    params = max(row["trained_params"] for row in by_mach)
    same = by_seed(like([*alone, *of(rows, method="backprop")], "params", params))
    lines = [
        [f"delay {d}", f"{params:,}", *_beside(by_seed(of(by_mach, delay=d)), same, metric)]
        for d in delays
    ]
    head = ["equal parameters: `mach`, all that is trained", "parameters", "top exit", "alone"]
    return [table([*head, "ahead by [seeds]"], lines)]


def _beside(own: Values, other: Values, metric: str) -> Line:
    """Both, and by how much the first is ahead."""
    found = paired(own, other, metric)
    ahead = DASH
    if found.lost is not None:
        gone = f", {found.diverged} diverged" * (found.diverged > 0)
        ahead = f"{difference(-found.lost, metric)}{gone} [{found.counted}]"
    ended = [[value for value in part.values() if value is not None] for part in (own, other)]
    return [*(spread(part, _show(metric)) for part in ended), ahead]


def _environment(rows: Sequence[Row]) -> str:
    commits: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        cpu = row.get("cpu", DASH)  # the first ones did not keep it
        key = (row["task"], commit_of(row), row["date"], row["torch"], cpu)
        commits.setdefault(key, []).append(row)
    head = ["task", "commit", "date", "torch", "CPU", "cells", "s of one, beside other work"]
    return table(
        head,
        [
            [*key, str(len(group)), f"{mean(row['seconds'] for row in group):.0f}"]
            for key, group in sorted(commits.items())
        ],
    )


# --- CSV -------------------------------------------------------------------------------------


def csv_of(rows: Sequence[Row]) -> str:
    """A line for every exit and window of every run."""
    text = io.StringIO()
    names = ["task", "kind", "method", "components", "delay", "seed", "changes", "cut_to"]
    parts = ["part", "metric", "value", "params", "flops", "samples", "commit", "changed"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *parts])
    for row in rows:
        about = [" ".join(row["changes"]) if n == "changes" else row[n] for n in names]
        entries = [(f"exit {e['exit']}", e) for e in row["exits"]]
        entries += [(f"window {e['first']}..{e['last']}", e) for e in row["windows"]]
        for part, e in entries:
            measured = [e["value"], e["params"], e["flops"], row["samples"]]
            end = [(row["commit"] or "")[:12], row["changed"]]
            writer.writerow([*about, part, row["metric"], *measured, *end])
        if not entries:
            writer.writerow([*about, "diverged"])
    return text.getvalue()
