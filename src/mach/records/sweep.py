"""What did the jobs of a sweep leave, and what sets each apart from the others?"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mach import runfolder, sweepfolder, sweeptable
from mach.errors import RunFolderError
from mach.records.find import find_runs, natural
from mach.records.log import Log
from mach.records.notes import Notes
from mach.records.run import RunRecord, read_run
from mach.records.scores import Score, score_of

_OWN = ("out", "report", "launch", "checkpoint")
"""What says how a job is run and told, with all below it: it makes no other job of it, and nor does
resume=auto."""


_LINES = 400
ABSENT = "–"
"""In place of the value of a key that others were asked for and this job's config has not."""


@dataclass(frozen=True)
class Job:
    """A run of a sweep, or what is known of one that never began."""

    name: str
    overrides: dict[str, Any]
    """What it was asked for, beside what all were."""
    run: RunRecord | None
    exit_code: int | None
    """As `mach train` ended; None where nobody has written that down."""
    error: str

    @cached_property
    def score(self) -> Score | None:
        """Of the top exit; None without a result."""
        return score_of(self.run.result) if self.run is not None and self.run.result else None

    @cached_property
    def log(self) -> Log:
        """Of the top component; as many of its lines as a curve among others shows."""
        if self.run is None or not self.run.components:
            return Log(0, 0, 0, {})
        logs = [self.run.log(k, _LINES) for k in range(self.run.components)]  # damage is counted
        return logs[-1]

    @property
    def failed(self) -> bool:
        """Whether it ended without a result, as far as is known."""
        return self.score is None or self.exit_code not in (0, None)


@dataclass(frozen=True)
class Sweep:
    """Jobs to be looked at together."""

    name: str
    jobs: list[Job]
    notes: Notes = field(compare=False)

    @cached_property
    def varying(self) -> dict[str, list[Any]]:
        """Keys that differ between jobs, and their values in order; the most varied first."""
        values: dict[str, set[Any]] = {}
        for job in self.jobs:
            for key, value in job.overrides.items():
                values.setdefault(key, set()).add(value)
        varied = {k: in_order(v) for k, v in values.items() if len(v) > 1}
        return dict(sorted(varied.items(), key=lambda item: -len(known(item[1]))))


def read_sweep(paths: Sequence[Path], notes: Notes | None = None) -> Sweep:
    """Read sweep folders, or several runs, as one sweep.

    What is no run is counted in the notes and left out.

    Raises:
        RunFolderError: no path holds a run.
    """
    notes = Notes() if notes is None else notes
    jobs: list[Job] = []
    refused: list[RunFolderError] = []
    for path in paths:
        try:
            new = _without_doubles(_jobs(path, notes), path, notes)
        except RunFolderError as error:
            refused.append(error)
            notes.add(path, "no run in it; left out")
        else:
            jobs += _not_among(jobs, new, path, notes)
    if not jobs:
        raise refused[0]
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(jobs)} runs"
    return Sweep(name, _completed(_named_by_differences(jobs)), notes)


def scores_of(jobs: Iterable[Job]) -> list[float]:
    """Of those that have one."""
    return [job.score.value for job in jobs if job.score is not None]


def known(values: Sequence[Any]) -> list[Any]:
    """Those that are values."""
    return [value for value in values if value != ABSENT]


def in_order(values: Iterable[Any]) -> list[Any]:
    """Numbers by size, then texts."""
    return sorted(values, key=lambda v: (1, 0, str(v)) if isinstance(v, str) else (0, v, ""))


# --- finding the jobs ------------------------------------------------------------------------


def _jobs(path: Path, notes: Notes) -> list[Job]:
    rows = _rows(path / sweeptable.TABLE, notes)
    try:
        folders = find_runs(path, notes)
    except RunFolderError:
        if not rows:
            raise
        folders = []
    by_name = {str(folder.relative_to(path)): folder for folder in folders}
    jobs = []
    for name in sorted({*rows, *by_name}, key=lambda name: natural(Path(name))):
        run = read_run(by_name[name], notes) if name in by_name else None
        row = rows.get(name)
        asked = row[0] if row is not None else _asked(path / name / sweepfolder.OVERRIDES)
        jobs.append(
            Job(
                name if name != "." else path.resolve().name,
                asked,
                run,
                row[1] if row is not None else None,
                row[2] if row is not None else "",
            )
        )
    return jobs


_Row = tuple[dict[str, Any], int | None, str]


def _rows(path: Path, notes: Notes) -> dict[str, _Row]:
    """Of `sweep.csv`, by job: what it was asked for, how it ended, and what it said then."""
    try:
        columns, rows = sweeptable.read(path)
    except RunFolderError as error:
        notes.add(path, str(error).removeprefix(f"{path}: "))
        return {}
    asked = sweeptable.overrides_in(columns)
    found: dict[str, _Row] = {}
    for row in rows:
        job, code = row[sweeptable.JOB], row[sweeptable.EXIT_CODE]
        if not job or not code.lstrip("-").isdecimal():
            notes.add(path, "row without a job or its exit code; left out")
            continue
        if job in found:
            notes.add(path, f"two results for job {job}; the last is taken")
        overrides = {key: typed(row[key]) for key in asked if row[key]}
        found[job] = (overrides, int(code), row.get(sweeptable.ERROR, ""))
    return found


def _asked(path: Path) -> dict[str, Any]:
    """Of a job that has not ended yet."""
    try:
        counted = sweepfolder.counted(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}
    return {key.lstrip("+~"): typed(value) for key, value in counted.items()}


def typed(text: Any) -> Any:
    """A number where it is one; text otherwise."""
    if isinstance(text, bool) or text is None:
        return str(text).lower()
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError, OverflowError):
            continue
    return str(text)


def _what_counts(job: Job) -> dict[str, Any]:
    """The part of a job's config that makes it what it is."""
    flat = job.run.flat if job.run is not None else {}
    return {
        key: value
        for key, value in flat.items()
        if key.partition(".")[0] not in _OWN and not (key == "resume" and value in (None, "auto"))
    }


# --- telling them apart ----------------------------------------------------------------------


def _without_doubles(jobs: list[Job], path: Path, notes: Notes) -> list[Job]:
    """One job for each thing that was asked: of two with a result the newer."""
    kept: dict[Hashable, Job] = {}
    for job in sorted(jobs, key=_age):
        what = _identity(job)
        before = kept.get(what) if job.score is not None else None
        if before is not None and before.score is not None:
            notes.add(
                path, f"two results for one job: {job.name} is taken, {before.name} is left out"
            )
        if what not in kept or job.score is not None or kept[what].score is None:
            kept[what] = job
    return sorted(kept.values(), key=lambda job: natural(Path(job.name)))


def _not_among(known: list[Job], jobs: list[Job], path: Path, notes: Notes) -> list[Job]:
    """Those whose run no path before has named: twice it would count as two seeds."""
    folders = {job.run.folder.resolve() for job in known if job.run is not None}
    new = []
    for job in jobs:
        if job.run is not None and job.run.folder.resolve() in folders:
            notes.add(path, f"job {job.name} is named twice; counted once")
        else:
            new.append(job)
    return new


def _identity(job: Job) -> Hashable:
    if job.overrides:
        return tuple(sorted((key, str(value)) for key, value in job.overrides.items()))
    if job.run is None or not job.run.values:
        return job.name
    return tuple(sorted((key, str(value)) for key, value in _what_counts(job).items()))


def _age(job: Job) -> float:
    try:
        assert job.run is not None
        return (job.run.folder / runfolder.RESULT).stat().st_mtime
    except (AssertionError, OSError):
        return 0.0


def _named_by_differences(jobs: list[Job]) -> list[Job]:
    """Give jobs that were asked for the same what their configs differ in all the same.

    Of a job without overrides nobody knows what it was asked for: it is compared with all.
    """
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(frozenset(job.overrides.items()), []).append(job)
    compared = list(groups.values()) if all(job.overrides for job in jobs) else [jobs]
    differing = list(dict.fromkeys(key for alike in compared for key in _differences(alike)))
    named = []
    for job in jobs:
        flat = _what_counts(job)
        own = {key: typed(flat[key]) for key in differing if key in flat}
        named.append(replace(job, overrides=job.overrides | own))
    return named


def _differences(jobs: list[Job]) -> list[str]:
    """Keys under which the configs of these jobs have different values."""
    flats = [_what_counts(job) for job in jobs]
    return [
        key
        for key in dict.fromkeys(key for flat in flats for key in flat)
        if not any(isinstance(flat.get(key), list) for flat in flats)  # a cut that was found
        and len({str(flat[key]) for flat in flats if key in flat}) > 1
    ]


def _completed(jobs: list[Job]) -> list[Job]:
    """Give jobs that were not asked for what others were the value that they had all the same."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        replace(job, overrides={k: v for k in keys if (v := _value(job, k)) is not None})
        for job in jobs
    ]


def _value(job: Job, key: str) -> Any:
    """What a job had, asked or not; None where nothing is known of it."""
    if key in job.overrides:
        return job.overrides[key]
    flat = job.run.flat if job.run is not None else {}
    # What was chosen of a group, as in optim=adamw, may be in the config under its name.
    had = next((typed(flat[name]) for name in (key, f"{key}.name") if name in flat), ABSENT)
    return had if flat else None
