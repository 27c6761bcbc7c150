"""What do the measurements say? From the JSON to the README's tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import log
from statistics import mean, median, stdev
from typing import Any

from variants import NETWORKS

from mach.provenance import commit_of, machine_of

Row = Sequence[str]
_MOST = 0.005
"""How much of its final loss a run may lose or win by the wire."""
_HALF = 0.5


def markdown(result: dict[str, Any]) -> str:
    """Every table that `result` has the measurements for."""
    result = {name: _complete(section) for name, section in result.items()}
    result = {name: section for name, section in result.items() if section.get("runs", True)}
    blocks = ["## Result", _table(["", "measured", "aim", "met"], _aims(result))]
    for name in NETWORKS:
        if name in result:
            blocks += [f"### {result[name]['about']}", _network(name, result[name])]
    if "memory" in result:
        blocks += ["### Memory", *_memory(result["memory"])]
    if "compile" in result:
        blocks += ["### Compiled bodies", _speed(result["compile"])]
    return "\n\n".join([*blocks, "## Environment", _environment(result)])


def _complete(section: dict[str, Any]) -> dict[str, Any]:
    """With those seeds alone that float32 has been trained from: it is what others are told by."""
    runs = section.get("runs")
    if runs is None:
        return section
    seeds = {run["seed"] for run in runs if run["variant"] == "float32"}
    return {**section, "runs": [run for run in runs if run["seed"] in seeds]}


def relative(section: dict[str, Any], variant: str, key: str) -> list[float]:
    """A variant's number as a fraction of float32's, for each seed that it has."""
    of = {(run["variant"], run["seed"]): run[key] for run in section["runs"]}
    seeds = sorted(seed for kind, seed in of if kind == variant)
    return [of[variant, seed] / of["float32", seed] for seed in seeds]


def _changes(section: dict[str, Any], variant: str, key: str) -> list[float]:
    """Logarithms of the ratios: of two alike that vary, either is by the mean ratio the larger."""
    return [log(ratio) for ratio in relative(section, variant, key)]


def _aims(result: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    networks = [name for name in NETWORKS if name in result]
    losses = (("loss", "training loss"), ("test_loss", "test loss"))
    for name, variant, (key, loss) in product(networks, ("bfloat16 wire", "int8 wire"), losses):
        changes = _changes(result[name], variant, key)
        if changes:
            seeds = f"mean of {len(changes)} seeds" if len(changes) > 1 else "one seed"
            what = f"{name}: final {loss} with {variant}, {seeds}"
            rows.append([what, _with_error(changes), f"± {_MOST:.1%}", _clearly(changes)])
    for name in networks:
        for wire, aim in (("bfloat16", 0.5), ("int8", 0.25)):
            for part in relative(result[name], f"{wire} wire", "bytes")[:1]:
                rows.append([f"{name}: bytes, {wire}", f"{part:.3f}", str(aim), _near(part, aim)])
    if "memory" in result:
        for what, key in (("kept by autograd", "saved_mib"), ("peak memory", "grown_mib")):
            without, with_it = (row[key] for row in result["memory"]["rows"])
            share = with_it / max(without, 1e-9)
            met = "yes" if share <= _HALF else "**no**"
            rows.append([f"checkpointing: {what}", f"{share:.2f}", "≤ 0.5", met])
    return rows


def _with_error(changes: list[float]) -> str:
    """The mean, and its standard error where there is more than one seed."""
    error = f", standard error {_error(changes):.2%}" if len(changes) > 1 else ""
    return f"{mean(changes):+.2%}{error}"


def _clearly(changes: list[float]) -> str:
    """Whether the mean is within the aim, by two standard errors."""
    size, error = abs(mean(changes)), _error(changes)
    if size + 2 * error <= _MOST:
        return "yes"
    return "**no**" if size - 2 * error > _MOST else "not clear"


def _error(changes: list[float]) -> float:
    """Standard error of the mean; of one seed nobody knows it."""
    return stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0


def _near(value: float, aim: float) -> str:
    """Headers and scales come on top."""
    return "yes" if value <= aim + 0.03 else "**no**"


def _network(name: str, section: dict[str, Any]) -> str:
    quality = "bits_per_byte" if section["runs"][0]["accuracy"] is None else "accuracy"
    rows: list[Row] = []
    for variant in NETWORKS[name].variants:
        runs = [run for run in section["runs"] if run["variant"] == variant]
        if not runs:
            continue
        changes = _changes(section, variant, "loss")
        tests = _changes(section, variant, "test_loss")
        rows.append(
            [
                variant,
                str(len(runs)),
                f"{mean(run['loss'] for run in runs):.4f}",
                f"{mean(changes):+.2%} ({min(changes):+.2%} .. {max(changes):+.2%})",
                f"{mean(tests):+.2%} ({min(tests):+.2%} .. {max(tests):+.2%})",
                _quality([run[quality] for run in runs], quality),
                f"{median(run['bytes'] for run in runs):,.0f}",
                f"{median(run['step_ms'] for run in runs):.1f}",
                f"{median(run['start_s'] for run in runs):.1f}",
            ]
        )
    head = ["", "seeds", "training loss", "of float32's", "test loss, of float32's"]
    more = [quality.replace("_", " "), "bytes / microbatch and edge", "ms / step", "s to start"]
    return (
        _table([*head, *more], rows)
        + f"\n\n{section['steps']} steps of 4 microbatches; mean (least .. most) of the seeds."
    )


def _quality(values: list[float], what: str) -> str:
    if what == "accuracy":
        return f"{100 * mean(values):.1f} % ({100 * min(values):.1f} .. {100 * max(values):.1f})"
    return f"{mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def _memory(section: dict[str, Any]) -> list[str]:
    rows = [
        ["yes" if r["checkpointing"] else "no", f"{r['saved_mib']:.1f}", f"{r['grown_mib']:.0f}"]
        for r in section["rows"]
    ]
    head = ["checkpointing", "MiB kept from forward to backward", "MiB by which the peak grew"]
    return [f"{section['about']}.", _table(head, rows)]


def _speed(section: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            f"{row['plain_ms']:.1f}",
            f"{row['compiled_ms']:.1f}",
            "{1:.2f} ({0:.2f} .. {2:.2f})".format(*row["faster"]),
            f"{row['start_s']:.0f}",
        ]
        for row in section["rows"]
    ]
    head = ["one microbatch, one thread", "ms", "ms compiled", "times as fast", "s to compile"]
    return _table(head, rows)


def _environment(result: dict[str, Any]) -> str:
    lines: list[str] = []
    rows: list[Row] = []
    for name, section in result.items():
        for measured in section["measured"]:
            e = measured["environment"]
            machine = f"- {machine_of(e)}"
            if machine not in lines:
                lines.append(machine)
            about = [f"`{e['command']}`", commit_of(e), e["date"], f"{e['load']:.2f}"]
            rows.append([name, *about, f"{measured['seconds']:,}"])
    head = ["section", "command", "commit", "date", "load at the start", "s it took"]
    return "\n".join([*lines, "", _table(head, rows)])


def _table(head: Row, rows: Sequence[Row]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
