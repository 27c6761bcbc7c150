"""What did runs leave in their folders? Read as far as it can be read.

Nothing here raises for a file that is damaged, missing or of another version: what is wrong is
left out, counted and worded in `Notes`.
"""

from mach.records.find import find_runs, is_run
from mach.records.log import Log, read_log
from mach.records.notes import Note, Notes
from mach.records.run import Event, RunRecord, read_run
from mach.records.trace import Slices, export, read_traces, traces_of

__all__ = [
    "Event",
    "Log",
    "Note",
    "Notes",
    "RunRecord",
    "Slices",
    "export",
    "find_runs",
    "is_run",
    "read_log",
    "read_run",
    "read_traces",
    "traces_of",
]
