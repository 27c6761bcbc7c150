"""What does the page of one run say?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import Any

from mach.config import Config
from mach.configfile import MODELS, SOURCES
from mach.page import learning, time
from mach.page.learning import Point
from mach.page.parts import Cell, Page, Section, Table, Tile, cells
from mach.page.picture import Picture
from mach.records import Log, RunRecord, read_traces
from mach.records.scores import Measure, measure_of
from mach.report.numbers import several, short
from mach.secrets import value_of

_MOST_EVENTS = 200


def page_of(run: RunRecord) -> Page:
    """The page of a run, whatever part of it there is."""
    logs = [run.log(k) for k in range(run.components)]
    traces = read_traces(run.folder, run.notes)
    result = run.result or {}
    logged = {key for log in logs for key in log.columns if key.startswith("eval_")}
    measure = measure_of({"split": run.flat.get("eval.split"), **result}, logged)
    chain = [_point(f"0..{row['exit']}", row, measure) for row in result.get("chain", [])]
    windows, consolidated = (
        [_point(f"{row['first']}..{row['last']}", row, measure) for row in rows]
        for rows in (result.get("windows", []), run.consolidated)
    )
    sections = [
        Section(
            "How good",
            _some(
                learning.models(chain, windows, consolidated, measure),
                learning.exits(logs, measure),
            ),
            [_models(result, run.consolidated, measure)] if result.get("chain") else [],
        ),
        Section("How it learned", _some(learning.losses(logs), learning.students(logs))),
        Section(
            "How fast, how stale",
            _some(time.timeline(traces), time.shares(traces, logs), time.staleness(logs)),
            [_speeds(logs)],
            ""
            if traces
            else "This run wrote no trace. With report.trace=200, the first 200 steps are shown "
            "here as a timeline of every component.",
        ),
        Section("The cut", [], [_cut(run)]),
        _faults(run, logs),
        Section("Config", [], _config(run)),
    ]
    return Page(
        kind="Run",
        title=run.name,
        summary=_summary(run, measure),
        tiles=_tiles(run, measure, logs),
        sections=[s for s in sections if s.pictures or s.tables or s.text],
        problems=[str(note) for note in run.notes],
        footer=_footer(run),
        colours=max(1, run.components),
    )


def _some(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _point(name: str, row: Mapping[str, Any], measure: Measure) -> Point:
    return name, _number(row.get("flops")), measure.of(row)


def _number(value: Any) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable else math.nan


# --- at the top ------------------------------------------------------------------------------


def _summary(run: RunRecord, measure: Measure) -> str:
    result, known = run.result or {}, run.flat
    model, data = known.get("model.name", "a network"), known.get("data.name", "its data")
    late = (
        f"schedule {known.get('schedule', 'unknown')}, delay {known.get('delay', 'unknown')}, "
        f"{known.get('accumulate', '?')} microbatches a step"
    )
    what = f"{model} in {several(run.components, 'component')} on {data}; {late}."
    chain = result.get("chain", [])
    if not chain:
        return f"{what} There is no result: the run has not ended, or did not come to its end."
    top = max(chain, key=lambda row: row["exit"])
    good = f"The chain reaches {measure.with_unit(measure.of(top))}"
    fast = f" at {_rate(_number(result.get('samples_per_s')))} samples/s"
    means = [_number(row.get("mean")) for row in result.get("staleness_steps", [])]
    means = [mean for mean in means if math.isfinite(mean)]
    stale = (
        f", with gradients {max(means):.1f} optimizer steps old at most, on average"
        if means
        else ""
    )
    return f"{what} {good}{fast}{stale}."


def _tiles(run: RunRecord, measure: Measure, logs: list[Log]) -> list[Tile]:
    result = run.result or {}
    chain = result.get("chain", [])
    tiles = []
    if chain:
        top = max(chain, key=lambda row: row["exit"])
        number = measure.text(measure.of(top))
        unit = "%" if measure.key == "accuracy" else measure.label
        loss = Measure("loss").text(_number(top.get("loss")))
        where = f"top exit on the {measure.split} split"
        tiles.append(Tile("How good", number, unit, f"{where}; loss {loss}"))
    else:
        reached = max((log.last("step") or 0 for log in logs), default=0)
        asked = run.flat.get("steps", "?")
        tiles.append(Tile("How far", f"{reached:,.0f}", "steps", f"of {asked}; no result yet"))
    rate = _number(result.get("samples_per_s"))
    if not math.isfinite(rate):
        rate = next((log.last("samples_per_s") or math.nan for log in logs), math.nan)
    # Logs tell of all lives, a result of its last launch alone.
    told = [_number(result.get("wall_s")), *(log.wall_s for log in logs if len(log))]
    wall_s = max((seconds for seconds in told if math.isfinite(seconds)), default=math.nan)
    busy = [_number(row.get("value")) for row in result.get("busy_fraction", [])]
    busy = [value for value in busy if math.isfinite(value)]
    more = f"{_duration(wall_s)} of training"
    if busy:
        more += f"; components busy {100 * min(busy):.0f} to {100 * max(busy):.0f} %"
    tiles.append(Tile("How fast", _rate(rate), "samples/s", more))
    rows = result.get("staleness_steps", [])
    means = [_number(row.get("mean")) for row in rows] or [_mean_staleness(log) for log in logs]
    shown = ", ".join("–" if math.isnan(mean) else f"{mean:.1f}" for mean in means[:8])
    most = max((mean for mean in means if math.isfinite(mean)), default=math.nan)
    stale = "–" if math.isnan(most) else f"{most:.1f}"
    tiles.append(Tile("How stale", stale, "steps", f"mean by component, 0 first: {shown}"))
    return tiles


def _mean_staleness(log: Log) -> float:
    _, ages = log.curve("staleness_steps")
    return float(ages.mean()) if len(ages) else math.nan


def _footer(run: RunRecord) -> str:
    result = run.result or {}
    known = [str(run.folder.resolve())]
    if result.get("git"):
        known.append(f"commit {str(result['git'])[:12]}")
    if result.get("torch"):
        known.append(f"torch {result['torch']}")
    return " · ".join([*known, f"written {datetime.now():%Y-%m-%d %H:%M} by mach report"])


# --- tables ----------------------------------------------------------------------------------


def _models(
    result: Mapping[str, Any], consolidated: list[dict[str, Any]], measure: Measure
) -> Table:
    named = [(f"chain 0..{row['exit']}", row) for row in result["chain"]]
    for kind, found in (("window", result.get("windows", [])), ("consolidated", consolidated)):
        named += [(f"{kind} {row['first']}..{row['last']}", row) for row in found]
    flops = [_number(row.get("flops")) for _, row in named]
    most = max((f for f in flops if math.isfinite(f)), default=1.0) or 1.0
    rows = [
        [
            Cell(name),
            Cell(measure.text(measure.of(row))),
            Cell(Measure("loss").text(_number(row.get("loss")))),
            Cell(_short(row.get("params"))),
            Cell(_short(row.get("flops")), cost / most if math.isfinite(cost) else None),
        ]
        for (name, row), cost in zip(named, flops, strict=True)
    ]
    return Table(
        "Every model",
        ["model", measure.label, "loss", "params", "FLOPs"],
        rows,
        f"On the {measure.split} split. A chain 0..k is components 0 to k; a window j..k begins "
        "with the student of j and needs nothing below it. FLOPs are of one sample."
        + (" A consolidated window was trained once more as a whole." if consolidated else ""),
        marked=len(result["chain"]) - 1,
    )


def _speeds(logs: list[Log]) -> Table:
    rows = []
    for log in logs:
        wall_ms = 1e3 * (log.wall_s or math.nan)
        waits = [
            float(sum(v for v in log.column(key) if math.isfinite(v))) / wall_ms
            for key in ("wait_child_ms", "wait_parent_ms", "wait_data_ms")
        ]
        sent = [float(sum(v for v in log.column(k) if v > 0)) for k in ("bytes_up", "bytes_down")]
        rows.append(
            [
                Cell(f"component {log.component}"),
                Cell(f"{log.last('step') or 0:,.0f}"),
                *(
                    Cell(f"{100 * wait:.1f} %", min(1.0, wait))
                    if math.isfinite(wait)
                    else Cell("–")
                    for wait in waits
                ),
                *(Cell(f"{short(size)}B") for size in sent),
            ]
        )
    return Table(
        "Waiting and messages",
        ["component", "steps", "for child", "for parent", "for data", "sent up", "sent down"],
        rows,
        "Part of the wall time that a component waited, and what it sent, from its log.",
    )


def _cut(run: RunRecord) -> Table:
    shares = (run.result or {}).get("cut")
    rows = []
    if isinstance(shares, list) and all(isinstance(share, dict) for share in shares):
        sums = [_part(share, "params") for share in shares]
        most = max(sums, default=1.0) or 1.0
        for share, total in zip(shares, sums, strict=True):
            parts = [share.get(name) for name in ("body", "head", "student")]
            first, last = share.get("first_block"), share.get("last_block")
            rows.append(
                [
                    Cell(f"component {share.get('component')}"),
                    Cell(f"{first}" if first == last else f"{first}..{last}"),
                    *(Cell(_short(p.get("params")) if isinstance(p, dict) else "–") for p in parts),
                    Cell(_short(total), total / most),
                    Cell(_short(_part(share, "flops"))),
                ]
            )
        note = "Parameters of each part, and FLOPs of a sample's forward through all of them."
    else:
        config = run.config
        bodies = config.bodies() if config is not None and config.model.settled else []
        for k, blocks in enumerate(bodies):
            name = f"{blocks.start}" if len(blocks) == 1 else f"{blocks.start}..{blocks.stop - 1}"
            rows.append(cells(f"component {k}", name, "–", "–", "–", "–", "–"))
        note = "Parameters and FLOPs are known when the run has a result."
    return Table(
        "",
        ["component", "blocks", "body", "head", "student", "params", "FLOPs"],
        rows,
        note,
    )


def _part(share: Mapping[str, Any], key: str) -> float:
    parts = (share.get(name) for name in ("body", "head", "student"))
    return sum(_number(p.get(key)) for p in parts if isinstance(p, dict))


def _faults(run: RunRecord, logs: list[Log]) -> Section:
    result = run.result or {}
    tables = []
    counted = result.get("free")
    if isinstance(counted, list) and counted and all(isinstance(row, dict) for row in counted):
        keys = [key for key in counted[0] if key != "component"]
        rows = [
            cells(f"component {row.get('component')}", *(value_of(k, row.get(k)) for k in keys))
            for row in counted
        ]
        names = [key.replace("_", " ") for key in keys]
        tables.append(
            Table(
                "What was made up, dropped or late",
                ["component", *names],
                rows,
                "imagined: microbatches whose input the student made; alone: trained on the local "
                "loss, for want of the parent's gradient.",
            )
        )
    started = min((log.column("time")[0] for log in logs if len(log)), default=math.nan)
    if run.events:
        rows = [
            cells(f"{event.time_s - started:,.1f} s", str(event.component), event.kind, event.text)
            for event in run.events[:_MOST_EVENTS]
        ]
        left = len(run.events) - len(rows)
        tables.append(
            Table(
                "What happened",
                ["after the first line", "component", "event", "what was said"],
                rows,
                f"{left:,} more are in events.jsonl." if left else "",
                text_columns=4,
            )
        )
    fault = run.flat.get("faults.kind", "none")
    text = ""
    if fault != "none":
        text = (
            f"Injected: {fault} at component {run.flat.get('faults.component')}, step "
            f"{run.flat.get('faults.step')}."
        )
    restarts = _number(result.get("restarts"))
    if math.isfinite(restarts) and restarts > 0:
        text += f" {several(int(restarts), 'restart')}."
    if not tables and not text:
        text = "None: no component fell, and nothing was injected."
    return Section("Faults", [], tables, text.strip())


def _config(run: RunRecord) -> list[Table]:
    usual = _defaults(run.values)
    pairs = [
        (key, value_of(key, value), value_of(key, usual.get(key)))
        for key, value in run.flat.items()
    ]
    changed = [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in ("out", "method")]
    tables = []
    if changed:
        rows = [cells(*pair) for pair in changed]
        tables.append(
            Table("Other than the default", ["key", "value", "default"], rows, text_columns=3)
        )
    if pairs:
        rows = [cells(key, value) for key, value, _ in pairs]
        tables.append(Table("Everything", ["key", "value"], rows, text_columns=2, folded=True))
    return tables


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the dataclasses by dotted key, for the model and the data of this config."""
    kinds: dict[str, Mapping[str, type]] = {"model": MODELS, "data": SOURCES}
    found: dict[str, Any] = {}
    for part in fields(Config):
        own = values.get(part.name)
        kind: Any = part.default_factory
        if part.name in kinds and isinstance(own, dict):
            kind = kinds[part.name].get(str(own.get("name")), kind)
        if not is_dataclass(kind):
            found[part.name] = part.default
            continue
        for inner in fields(kind):
            default, make = inner.default, inner.default_factory
            found[f"{part.name}.{inner.name}"] = default if make is MISSING else make()
    return found


# --- words -----------------------------------------------------------------------------------


def _short(value: Any) -> str:
    number = _number(value)
    return short(number) if math.isfinite(number) else "–"


def _rate(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
