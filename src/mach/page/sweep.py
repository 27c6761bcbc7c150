"""What does the page of a sweep say?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from mach.page.grid import REPLICATE, curves, heat_map, layout_of, lines, scatter
from mach.page.parts import Cell, Page, Section, Table, Tile, cells
from mach.records.scores import Measure
from mach.records.sweep import Job, Sweep, known, scores_of
from mach.report.numbers import several
from mach.secrets import value_of


def page_of(sweep: Sweep) -> Page:
    """The page of a sweep, or of several runs side by side."""
    scored = [job for job in sweep.jobs if job.score is not None]
    measure = _measure(scored)
    # Jobs on other data are in the table; means are of what can be compared.
    alike = [j for j in scored if j.score is not None and j.score.measure == measure]
    if len(alike) < len(scored):
        sweep.notes.add(
            sweep.name,
            f"job whose result has no {measure.key}; not in the pictures",
            len(scored) - len(alike),
        )
    best = sorted(alike, key=lambda job: _rank(job, measure))
    layout = layout_of(sweep)
    coloured = layout.rows or layout.columns if layout else None
    colour_key = coloured.key if coloured else next(iter(sweep.varying), None)
    values = sweep.varying.get(colour_key, []) if colour_key else []
    if layout is not None:
        pictures = [heat_map(alike, layout, measure), lines(alike, layout, measure)]
    else:
        pictures = [scatter(alike, sweep, measure)]
    trained = curves(sweep.jobs, colour_key, values)
    sections = [
        Section("At a glance", [p for p in pictures if p is not None]),
        Section("How they learned", [trained] if trained is not None else []),
        Section("Every job", [], [_table(sweep, best, measure)] if best else []),
        Section("Failed or not ended", [], _failed(sweep)),
        Section("What all have in common", [], _common(sweep)),
    ]
    return Page(
        kind="Sweep" if len({j.run.folder.parent for j in sweep.jobs if j.run}) < 2 else "Runs",
        title=sweep.name,
        summary=_summary(sweep, best, measure),
        tiles=_tiles(sweep, best, measure),
        sections=[s for s in sections if s.pictures or s.tables],
        problems=[str(note) for note in sweep.notes],
        footer=f"{len(sweep.jobs)} jobs · written {datetime.now():%Y-%m-%d %H:%M} by mach report",
        colours=max(1, len(values)),
    )


def _measure(jobs: list[Job]) -> Measure:
    """The one that most jobs have, on all the splits it was taken on."""
    found = [job.score.measure for job in jobs if job.score is not None]
    if not found:
        return Measure("accuracy")
    measure, _ = Counter(found).most_common(1)[0]
    splits = {one.split for one in found if one == measure}
    return Measure(measure.key, " or ".join(sorted(splits)))


def _rank(job: Job, measure: Measure) -> float:
    assert job.score is not None
    return -job.score.value if measure.higher_is_better else job.score.value


def _summary(sweep: Sweep, best: list[Job], measure: Measure) -> str:
    varied = [
        f"{key} ({several(len(known(values)), 'value')})" for key, values in sweep.varying.items()
    ]
    over = f" over {_list(varied)}" if varied else ""
    done = f"{len(sweep.jobs)} jobs{over}; {len(best)} have a result."
    if not best:
        return done
    label, jobs = _best_group(sweep, best, measure)
    scores = scores_of(jobs)
    good = measure.with_unit(float(np.mean(scores)))
    top = f"{label} is best with {good}" if label else f"They have {good}"
    if len(jobs) > 1:
        top += f", the mean of {_number_of(jobs)} (± {measure.text(_deviation(scores))})"
    return f"{done} {top}; the last job has {measure.text(scores_of(best)[-1])}."


def _best_group(sweep: Sweep, best: list[Job], measure: Measure) -> tuple[str, list[Job]]:
    """What was asked for, seeds aside, that scores best on average, and the jobs that were.

    It has no words where seeds alone set them apart.
    """
    groups: dict[str, list[Job]] = {}
    for job in best:
        asked = {k: job.overrides[k] for k in sweep.varying if k in job.overrides}
        asked.pop(REPLICATE, None)
        alike = _words(asked) or ("" if REPLICATE in sweep.varying else job.name)
        groups.setdefault(alike, []).append(job)
    sign = -1 if measure.higher_is_better else 1
    return min(groups.items(), key=lambda group: sign * float(np.mean(scores_of(group[1]))))


def _number_of(jobs: list[Job]) -> str:
    """As many seeds where each has its own."""
    seeds = {job.overrides.get(REPLICATE) for job in jobs}
    return f"{len(jobs)} {'seeds' if len(seeds) == len(jobs) else 'jobs'}"


def _deviation(scores: list[float]) -> float:
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def _tiles(sweep: Sweep, best: list[Job], measure: Measure) -> list[Tile]:
    failed = [job for job in sweep.jobs if job.failed]
    tiles = []
    if best:
        label, jobs = _best_group(sweep, best, measure)
        unit = "%" if measure.key == "accuracy" else measure.label
        what = label or f"mean of {_number_of(jobs)}"
        more = f"{what}; median of all jobs {measure.text(float(np.median(scores_of(best))))}"
        tiles.append(Tile("How good", measure.text(float(np.mean(scores_of(jobs)))), unit, more))
        rates = [rate for job in best if math.isfinite(rate := _of(job, "samples_per_s"))]
        if rates:
            more = f"median; {min(rates):,.0f} to {max(rates):,.0f}"
            tiles.append(Tile("How fast", f"{np.median(rates):,.0f}", "samples/s", more))
        stale = [age for job in best if math.isfinite(age := _staleness(job))]
        if stale:
            number = f"{min(stale):.1f}"
            if max(stale) > min(stale):
                number += f" – {max(stale):.1f}"
            more = "mean of each job's most stale component"
            tiles.append(Tile("How stale", number, "steps", more))
    number = f"{len(sweep.jobs) - len(failed)}"
    more = "all ended well" if not failed else f"{len(failed)} failed or have not ended"
    tiles.append(Tile("How many", number, f"of {len(sweep.jobs)} jobs", more))
    return tiles


def _table(sweep: Sweep, best: list[Job], measure: Measure) -> Table:
    keys = list(sweep.varying)
    rows = []
    for job in best:
        assert job.score is not None
        rate, wall_s, stale = (
            _of(job, "samples_per_s"),
            max(_of(job, "wall_s"), job.log.wall_s),  # a result knows its last launch alone
            _staleness(job),
        )
        rows.append(
            [
                Cell(job.name),
                *(Cell(value_of(key, job.overrides.get(key, "–"))) for key in keys),
                Cell(measure.text(job.score.value)),
                Cell(Measure("loss").text(job.score.loss)),
                Cell(_plain(rate, 0)),
                Cell(_plain(wall_s, 1)),
                Cell(_plain(stale, 1)),
            ]
        )
    return Table(
        "",
        ["job", *keys, measure.label, "loss", "samples/s", "wall s", "staleness"],
        rows,
        "The best first. Staleness: mean of the most stale component, in optimizer steps.",
        marked=0,
        sortable=True,
    )


def _failed(sweep: Sweep) -> list[Table]:
    rows = []
    for job in sweep.jobs:
        if not job.failed:
            continue
        code = "–" if job.exit_code is None else str(job.exit_code)
        said = job.error or ("no result" if job.run is not None else "never began")
        rows.append(cells(job.name, _label(job, sweep), code, said))
    columns = ["job", "asked for", "exit code", "what was said"]
    codes = "Exit codes: 1 went wrong while running, 2 refused before training, 130 stopped."
    return [Table("", columns, rows, codes, text_columns=4)] if rows else []


def _common(sweep: Sweep) -> list[Table]:
    flats = [job.run.flat for job in sweep.jobs if job.run is not None and job.run.flat]
    if not flats:
        return []
    shared = {
        key: value
        for key, value in flats[0].items()
        if key != "out" and all(key in flat and flat[key] == value for flat in flats)
    }
    rows = [cells(key, value_of(key, value)) for key, value in shared.items()]
    return [Table(f"{len(rows)} values", ["key", "value"], rows, text_columns=2, folded=True)]


def _of(job: Job, key: str) -> float:
    value: Any = (job.run.result or {}).get(key) if job.run is not None else None
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable else math.nan


def _staleness(job: Job) -> float:
    rows = (job.run.result or {}).get("staleness_steps", []) if job.run is not None else []
    means = [row.get("mean") for row in rows]
    return max((float(m) for m in means if isinstance(m, int | float)), default=math.nan)


def _label(job: Job, sweep: Sweep) -> str:
    """What sets a job apart."""
    apart = {key: value for key, value in job.overrides.items() if key in sweep.varying}
    return _words(apart) or job.name


def _words(asked: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value_of(key, value)}" for key, value in asked.items())


def _plain(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
