"""`mach report PATH ..`: which page is made of what lies there, and where does it go?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mach.errors import ConfigError
from mach.extras import missing
from mach.records.find import find_runs, is_run
from mach.report.numbers import several

_NEEDED = ("matplotlib", "jinja2")


def main(arguments: list[str]) -> int:
    """Run `mach report`. Returns the exit code.

    Raises:
        MachError: see `report`.
    """
    parser = argparse.ArgumentParser(
        prog="mach report",
        description="Draw a run, a sweep, or several runs on one page that needs no network: "
        "report.html, with its pictures as PNG beside it.",
        epilog="Needs pip install 'mach[report]'. An example: mach report runs/mine",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="run folder, or a folder with runs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the page goes; default: PATH/report, for several paths ./report",
    )
    options = parser.parse_args(arguments)
    _check_installed()
    print(f"Report: {report(options.paths, options.out)}")
    return 0


def report(paths: list[Path], out: Path | None = None) -> Path:
    """Write the page of what lies at these paths. Returns the HTML file.

    Raises:
        MachError: nothing there can be shown, or the page cannot be written.
    """
    from mach.page import run, sweep
    from mach.page.write import write
    from mach.records import export, read_run
    from mach.records.sweep import read_sweep

    folder = out or (paths[0] / "report" if len(paths) == 1 else Path("report"))
    if len(paths) == 1 and is_run(paths[0]):
        record = read_run(find_runs(paths[0])[0])
        page = run.page_of(record)
        file = write(page, folder)
        export(record.folder, folder / "trace.json", record.notes)
    else:
        page = sweep.page_of(read_sweep(paths))
        file = write(page, folder)
    if page.problems:
        _tell(page.problems)
    return file


def _tell(problems: list[str]) -> None:
    count = several(len(problems), "thing")
    print(f"mach: {count} could not be read, the page says which: {problems[0]}", file=sys.stderr)


def _check_installed() -> None:
    if lacking := missing(*_NEEDED):
        raise ConfigError(
            f"mach report: expected {' and '.join(_NEEDED)}, with which the page is made; "
            f"{' and '.join(lacking)} is not installed. Install it: pip install 'mach[report]'"
        )
