"""How does one job of a sweep run: in which folder, on which part of the machine, with which row?

The same for all of Hydra's launchers: a job may be in the process of `mach train`, in one of
joblib's, or on another machine. All that jobs know of each other is in the sweep's folder.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from mach import runfolder, sweepfolder, sweeptable
from mach.config import Config
from mach.errors import FolderInUseError, MachError
from mach.introduce import die_with
from mach.launcher.compose import value_in
from mach.launcher.leases import lease

Launch = Callable[[Config], Mapping[str, Any]]


STOPPED = "stopped by Ctrl-C"


class JobFailedError(Exception):
    """A job of a sweep that failed; it has been reported. Hydra goes on with the next."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as Hydra has it."""

    sweep_dir: Path
    number: int
    overrides: Sequence[str]
    resume: bool
    """Whether what the sweep's folder holds is not done again."""
    shared: bool
    """Whether other jobs may run on this machine beside it, with no one who divides it."""


def begin(sweep_dir: Path, resume: bool) -> None:
    """Refuse a sweep whose folder is another's or cannot be written, before its first job.

    Raises:
        RunFolderError: see mach.sweepfolder.check and locked.
    """
    sweepfolder.check(sweep_dir, resume)
    sweepfolder.begin(sweep_dir)  # Hydra makes the folder next, and may not say why not
    sweeptable.read(sweep_dir / sweeptable.TABLE)


def run_job(job: Job, compose: Callable[[], Config], launch: Launch) -> float:
    """Run a job to its end, and write its row however it ends.

    Args:
        compose: makes the job's config.
        launch: trains a run.

    Returns:
        The loss of the top exit, for sweepers that search; inf where it has none.

    Raises:
        JobFailedError: it went wrong, and that has been said.
        KeyboardInterrupt, SystemExit: somebody stopped it.
    """
    starter = parent_process()
    if starter is not None and starter.pid is not None:  # joblib's: do not outlive mach train
        die_with(starter.pid, signal.SIGTERM)
    words = " ".join(f"{key}={value}" for key, value in _counted(job).items())
    number = str(job.number)
    try:
        folder = sweepfolder.enter(job.sweep_dir, job.number, job.overrides, job.resume)
        number = folder.name
        print(f"Job {number}: {words}", flush=True)
        result = _in_folder(job, folder, compose, launch)
    except SystemExit as error:
        if starter is not None and os.getppid() != starter.pid:
            os._exit(int(error.code or 0))  # joblib would wait for more work, from nobody
        raise
    except MachError as error:
        print(f"mach: {error}\nmach: job {number} failed: {words}", file=sys.stderr, flush=True)
        raise JobFailedError(f"job {number} failed: {words}") from None
    loss = result["chain"][-1]["loss"]
    return math.inf if loss is None else float(loss)  # none: the chain lacks a component for good


def all_failed(sweep_dir: Path) -> bool:
    """Whether jobs of the sweep have ended, and none of them well."""
    _, rows = sweeptable.read(sweep_dir / sweeptable.TABLE)
    return rows != [] and sweeptable.failed(rows) == rows


def close(sweep_dir: Path) -> bool:
    """Say how a sweep has ended. Returns whether all jobs that were asked for now ended well."""
    path, asked = sweep_dir / sweeptable.TABLE, sweepfolder.asked(sweep_dir)
    _, rows = sweeptable.read(path)
    mine = [row for row in rows if row[sweeptable.JOB] in asked]
    failed = sweeptable.failed(mine)
    others = sweeptable.failed(row for row in rows if row not in mine)
    print(f"Sweep: {len(mine) - len(failed)} of {len(mine)} jobs done. Table: {path}", flush=True)
    if failed:
        print(
            f"mach: failed: job {_numbers(failed)}. The same command with out={sweep_dir} "
            "resume=auto runs what is missing.",
            file=sys.stderr,
            flush=True,
        )
    if others:
        print(f"Failed before, and not asked for now: job {_numbers(others)}.", flush=True)
    return not failed


def _numbers(rows: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(row[sweeptable.JOB] for row in rows)


def write_off(sweep_dir: Path, exit_code: int, why: str) -> None:
    """Write the rows of jobs that have begun and never ended: those whose processes were ended
    before they could."""
    _, rows = sweeptable.read(sweep_dir / sweeptable.TABLE)
    told = {row[sweeptable.JOB] for row in rows}
    for folder in sweepfolder.job_folders(sweep_dir):
        if folder.name not in told:
            overrides = sweepfolder.overrides_of(folder) or {}
            sweeptable.write(sweep_dir, sweeptable.Row(folder.name, overrides, exit_code, why))


def _in_folder(
    job: Job, folder: Path, compose: Callable[[], Config], launch: Launch
) -> Mapping[str, Any]:
    started_s = time.monotonic()

    def tell(exit_code: int, error: str, result: Mapping[str, Any] | None = None) -> None:
        row = sweeptable.Row(
            job=folder.name,
            overrides=sweepfolder.overrides_of(folder) or _counted(job),
            exit_code=exit_code,
            error=error.partition("\n")[0],
            results=sweeptable.results_of(result) if result is not None else {},
            job_s=time.monotonic() - started_s if before is None else None,
        )
        sweeptable.write(job.sweep_dir, row)

    before = None
    try:
        before = runfolder.finished(folder) if job.resume else None
        config = _from_origin(_of_sweep(compose(), job.sweep_dir, folder), job, folder)
        with _own_part(job, config) if before is None and job.shared else nullcontext():
            started_s = time.monotonic()  # others may have had the machine until now
            result = launch(config)
    except FolderInUseError:  # who runs in it writes the row
        raise
    except MachError as error:
        tell(error.exit_code, str(error))
        raise
    except KeyboardInterrupt:
        tell(130, STOPPED)
        raise
    except SystemExit as error:
        # Something of the user's may call sys.exit(), too; without a result no job has ended well.
        code = error.code if isinstance(error.code, int) and error.code else 1
        tell(code, "stopped")
        raise SystemExit(code) from error
    except Exception as error:  # ours to mend, and yet a row
        tell(1, f"{type(error).__name__}: {error}")
        raise
    if before is None or not sweeptable.has_done(job.sweep_dir, folder.name):
        tell(0, "", result)
    return result


def _of_sweep(config: Config, sweep_dir: Path, folder: Path) -> Config:
    """The config with what a job is told of its sweep."""
    name, report = sweep_dir.resolve().name, config.report
    report = replace(
        report,
        group=report.group or f"{name}-{folder.name}",  # a job's number alone says little
        tags=[*report.tags, name],
        # One terminal has no room for the bars of several runs.
        progress=report.progress and config.launch.parallel == 1,
    )
    return replace(config, out=str(folder), report=report)


def _from_origin(config: Config, job: Job, folder: Path) -> Config:
    """The config of a job that has not begun in a sweep that goes on: it begins where the others
    began. One that has begun knows that by itself."""
    origin = sweepfolder.origin_of(folder)
    if not job.resume or origin is None or runfolder.holds_run(folder):
        return config
    return replace(config, resume=value_in(origin))


@contextmanager
def _own_part(job: Job, config: Config) -> Iterator[None]:
    """Run on a part of the machine that no other job of the sweep uses meanwhile."""
    # Imported here: a config that is refused need not wait for torch.
    from mach.rank import available_cores, confined, device_kind, gpu_names

    gpus = gpu_names() if device_kind(config) == "cuda" else []
    with (
        lease(
            job.sweep_dir,
            config.launch.parallel,
            available_cores(),
            gpus,
            min(1 if config.launch.name == "inprocess" else config.components, len(gpus)),
            config.launch.queue_s,
        ) as part,
        confined(part.cores, part.gpus),
    ):
        yield


def _counted(job: Job) -> dict[str, str]:
    return sweepfolder.counted(job.overrides)
