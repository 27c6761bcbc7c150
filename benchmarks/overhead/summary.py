"""What do the measurements say? From the JSON to the README's tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import product
from typing import Any

from predict import interior_samples_per_s
from variants import (
    IDEAL,
    IDEAL_ALONE,
    IDEAL_STEPS,
    LATER,
    OURS,
    STOCK,
    VARIANTS,
    Settings,
    Variant,
)

from mach.provenance import commit_of, machine_of

_DASH = "–"
_QUIET = 1.1
"""Most that a quiet machine's ideal varies by, from the slowest round to the fastest."""
_NOT_QUIET = (
    "**The machine was not quiet**: ideal itself varied by more than a tenth between the rounds, "
    "so no ratio here can be trusted."
)


def markdown(result: dict[str, Any]) -> str:
    """Every table that `result` has the measurements for."""
    settings = Settings(**result["settings"])
    sections = {
        "throughput": _throughput,
        "wire": _wire,
        "memory": _memory,
        "constancy": _constancy,
        "startup": _startup,
    }
    blocks = ["## Result", _aims(result, settings)]
    blocks += [write(result, settings) for name, write in sections.items() if name in result]
    blocks.append(_environment(result, settings))
    return "\n\n".join(blocks)


# --- aims -----------------------------------------------------------------------------------------


def _aims(result: dict[str, Any], settings: Settings) -> str:
    """Speed by the middle half of the rounds; the worst case of what must hold for a process."""
    rows: list[list[str]] = []
    if "aims" in result:
        by_round = rates(result["aims"], settings)
        against = (
            (IDEAL, "of ideal (forward and backward alone)", 0.95),
            (IDEAL_STEPS, "of ideal with optimizer steps", 0.95),
            (STOCK, "of 1F1B at M = 4", 1.15),
        )
        measured = [ours for ours in (OURS, LATER) if ours in by_round[0]]
        for ours, (other, words, bound) in product(measured, against):
            low, middle, high = _quartiles([rate[ours] / rate[other] for rate in by_round])
            met = "yes" if low >= bound else "**no**" if high < bound else "not clear"
            spread = f"{middle:.3f} ({low:.3f} .. {high:.3f})"
            rows.append([f"{ours}: samples/s, {words}", spread, f"≥ {bound}", met])

    def at_most(what: str, value: float, digits: int, bound: float) -> None:
        met = "yes" if value <= bound else "**no**"
        rows.append([what, f"{value:.{digits}f}", f"≤ {bound:g}", met])

    if "memory" in result:
        worst = max(one["ratio"] for both in result["memory"].values() for one in both)
        at_most("memory grown by, of what must be held, worst process", worst, 2, 1.3)
    if "startup" in result:
        both = ("first component", "top component")
        runs = [one for times in result["startup"].values() for one in times]
        worst = max(one[key] for one in runs for key in both)
        at_most("s from the command to step 1, worst run and component", worst, 1, 10)
    table = _table(["", "measured", "aim", "met"], rows)
    if "aims" not in result:
        return table
    how = (
        f"Speed: median (first .. third quartile) of {len(by_round)} rounds in which these "
        "variants take their turns right after each other; ratios are taken within a round. An aim "
        "is met where the first quartile meets it, and is not where the third does not."
    )
    return f"{table}\n\n{how}"


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if values[1:] else 3 * values


def _quiet(by_round: list[dict[str, float]]) -> bool:
    ideals = [rate[IDEAL] for rate in by_round]
    return max(ideals) <= _QUIET * min(ideals)


# --- throughput -----------------------------------------------------------------------------------


def rates(rounds: list[dict[str, Any]], settings: Settings) -> list[dict[str, float]]:
    """Samples per second of every variant that was measured, by round."""
    return [
        {
            variant.name: _rate(variant, both[variant.name], settings)
            for variant in VARIANTS
            if variant.kind != "parts" and variant.name in both
        }
        for both in rounds
    ]


def _rate(variant: Variant, both: list[dict[str, Any]], settings: Settings) -> float:
    """Of the slower of the two processes."""
    keys = ("microbatches", "seconds")
    if variant.kind != "ideal":
        keys = ("interior_microbatches", "interior_s")
    return min(one[keys[0]] / one[keys[1]] for one in both) * settings.microbatch_size


def _whole(both: list[dict[str, Any]], settings: Settings) -> float:
    """Samples per second between two flushes: until the last process has ended there."""
    start, end = (max(one["flushes"][i] for one in both) for i in (0, 1))
    return both[0]["segment_microbatches"] * settings.microbatch_size / float(end - start)


def _predicted(variant: Variant, both: dict[str, Any], settings: Settings) -> float:
    mu_0 = "mu = 0" in variant.name
    parts = [one["parts_ms"] for one in both["parts, mu = 0" if mu_0 else "parts"]]
    return interior_samples_per_s(variant, settings, parts)


def _throughput(result: dict[str, Any], settings: Settings) -> str:
    by_round = rates(result["throughput"], settings)
    rows = []
    for variant in VARIANTS:
        if variant.name not in by_round[0]:
            continue
        name, M = variant.name, variant.accumulate
        own = [rate[name] for rate in by_round]
        ideal = [rate[name] / rate[IDEAL] for rate in by_round]
        row = [name, _spread(own, 0), _spread(ideal, 3)]
        if variant.kind == "ideal":
            rows.append([*row, *[_DASH] * 4])
            continue
        stepping = [rate[name] / rate[f"ideal with steps, M = {M}"] for rate in by_round]
        stock = [rate[name] / rate[f"1F1B, M = {M}"] for rate in by_round]
        rounds = result["throughput"]
        expected = [
            rate[name] / _predicted(variant, both, settings)
            for rate, both in zip(by_round, rounds, strict=True)
        ]
        whole = statistics.median(_whole(both[name], settings) for both in rounds)
        rows.append(
            [*row, _spread(stepping, 3), _spread(stock, 3), _spread(expected, 3), f"{whole:.0f}"]
        )
    head = ["variant", "samples/s", "of ideal", "of ideal with steps", "of 1F1B at the same M"]
    head += ["of its prediction", "with fill and drain"]
    return "\n\n".join(
        [
            f"Steady state, median (least .. most) of {len(by_round)} rounds; ratios are taken "
            "within a round. The last column counts the pipeline's filling and draining over "
            f"{settings.measured} microbatches.",
            *([] if _quiet(by_round) else [_NOT_QUIET]),
            _table(head, rows),
            _parts(result),
            _diagnostics(result),
        ]
    )


def _parts(result: dict[str, Any]) -> str:
    """What the predictions are made of."""
    named = ("forward", "backward", "step", "look", "stash copy", "distil")
    rows = []
    for k in (0, 1):
        row = [f"component {k}"]
        for part in (*named, "distil mu = 0"):
            source, key = ("parts", part) if part in named else ("parts, mu = 0", "distil")
            times = [both[source][k]["parts_ms"].get(key) for both in result["throughput"]]
            row.append(_DASH if None in times else _spread(times, 1))
        rows.append(row)
    head = ["ms", "forward", "backward", "step", "forward without graph", "copy of the weights"]
    head += ["student", "student (mu = 0)"]
    return "Parts by themselves, both cores busy:\n\n" + _table(head, rows)


def _diagnostics(result: dict[str, Any]) -> str:
    rows = []
    for variant in VARIANTS:
        measured = variant.name in result["throughput"][0]
        if not measured or variant.kind == "parts" or variant.name == IDEAL_ALONE:
            continue
        row = [variant.name]
        for key, digits in (
            ("wait_ms", 1),
            ("main_cpu_ms", 1),
            ("other_threads_cpu_ms", 1),
            ("page_faults", 0),
        ):
            cells = []
            for k in (0, 1):
                found = [both[variant.name][k].get(key) for both in result["throughput"]]
                known = variant.kind == "mach" or key != "wait_ms"
                known = known and None not in found
                cells.append(f"{statistics.median(found):.{digits}f}" if known else _DASH)
            row.append(" / ".join(cells))
        rows.append(row)
    head = ["per microbatch, component 0 / 1", "waiting for messages, ms"]
    head += ["CPU of the computing thread, ms", "CPU of other threads, ms", "page faults"]
    return _table(head, rows)


# --- the rest -------------------------------------------------------------------------------------


def _wire(result: dict[str, Any], settings: Settings) -> str:
    rounds = result["wire"]
    size = rounds[0]["bytes_per_microbatch"]
    floor = {
        key: _spread([one[key] for one in rounds], 2)
        for key in ("there_and_back_ms", "stream_ms", "stream_cpu_ms")
    }
    text = (
        f"The wire: {size:,} bytes per microbatch (one activation up, one gradient down). Nothing "
        f"computed, an exchange takes {floor['there_and_back_ms']} ms there and back, and "
        f"{floor['stream_ms']} ms of a stream of them; the stream costs "
        f"{floor['stream_cpu_ms']} ms of each core."
    )
    if "throughput" in result:
        compute = [
            max(one["seconds"] / one["microbatches"] for one in both[IDEAL]) * 1e3
            for both in result["throughput"]
        ]
        text += f" A microbatch computes for {_spread(compute, 1)} ms."
    return text


def _memory(result: dict[str, Any], settings: Settings) -> str:
    rows = []
    for name, both in result["memory"].items():
        for k, one in enumerate(both):
            parts = one["expected_mib"]
            total = sum(parts.values())
            what = ", ".join(f"{part} {mib:.0f}" for part, mib in parts.items() if mib >= 0.5)
            row = [f"{name}: {k}", f"{one['grown_mib']:.0f}", f"{total:.0f}", f"{one['ratio']:.2f}"]
            rows.append([*row, what])
    head = ["variant: component", "grown by, MiB", "must hold, MiB", "ratio", "of which"]
    return "Memory of each process (RSS after any action, over a baseline of " + (
        f"{_median(one['baseline_mib'] for both in result['memory'].values() for one in both):.0f}"
        " MiB after a run of a tiny network):\n\n" + _table(head, rows)
    )


def _constancy(result: dict[str, Any], settings: Settings) -> str:
    rows = []
    at: list[str] = []
    for name, both in result["constancy"].items():
        for k, one in enumerate(both):
            at = list(one["rss_mib"])
            sizes = list(one["rss_mib"].values())
            rows.append(
                [f"{name}: {k}", *(f"{s:.1f}" for s in sizes), f"{sizes[-1] - sizes[0]:+.2f}"]
            )
    head = ["RSS, MiB, after microbatch", *(f"{int(b):,}" for b in at), "growth"]
    return "Memory over time, a tiny network:\n\n" + _table(head, rows)


def _startup(result: dict[str, Any], settings: Settings) -> str:
    keys = ("first component", "top component", "end", "cpu")
    rows = [
        [name, *(_spread([one[key] for one in runs], 1) for key in keys)]
        for name, runs in result["startup"].items()
    ]
    head = ["s from the command to", "step 1 of component 0", "step 1 of the top"]
    head += ["the end (20 steps)", "CPU of all processes, s"]
    return "Start-up of `mach train`, 4 components, default data:\n\n" + _table(head, rows)


def _environment(result: dict[str, Any], settings: Settings) -> str:
    rows = [
        [name, f"`{e['command']}`", commit_of(e), e["date"], f"{e['load']:.2f}"]
        for name, e in result["environments"].items()
    ]
    machines = {machine_of(e): None for e in result["environments"].values()}
    return "\n\n".join(
        [
            "## Environment",
            "\n".join(
                [
                    *(f"- {machine}" for machine in machines),
                    f"- mlp, {settings.depth} blocks of width {settings.width} in 2 components, "
                    f"microbatch {settings.microbatch_size}, {settings.optimizer} with clipping, "
                    "seed 0; one thread and one core for each component",
                ]
            ),
            _table(["section", "command", "commit", "date", "load at its start"], rows),
        ]
    )


# --- cells ----------------------------------------------------------------------------------------


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
