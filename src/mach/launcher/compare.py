"""What does `mach compare` do? Prints in what runs differ."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mach.errors import RunFolderError


def main(arguments: list[str]) -> int:
    """Run `mach compare` on these arguments. Returns the exit code.

    Raises:
        RunFolderError: there are no two runs to compare.
    """
    parser = argparse.ArgumentParser(
        prog="mach compare",
        description="Print in what runs differ: what differs of their configs, and their results, "
        "with the difference to the first. What cannot be read is left out and told.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="run folder, or folder of runs: of a sweep all its jobs",
    )
    paths = parser.parse_args(arguments).paths

    from rich.console import Console

    from mach.records import Notes
    from mach.report.compare import gather, show

    notes = Notes()
    runs = gather(paths, notes)
    if len(runs) > 1:
        show(runs, Console())
    for note in notes:
        print(f"mach: {note}", file=sys.stderr)
    if len(runs) > 1:
        return 0
    named = " ".join(map(str, paths))
    found = f"{runs[0].folder} alone" if runs else "none"
    raise RunFolderError(f"compare {named}: expected two runs or more; found {found}")
