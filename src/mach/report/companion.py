"""How are slow reports made without costing the training anything?

    component    log ─▶ component-<k>.jsonl                     end, or death
    companion               └▶ follow ─▶ wandb, TensorBoard ..    finish

Each component has a companion: a process that reads its log as anybody could and hands each line to
the slow sinks. Threads would not do: wandb takes 0.7 ms of Python for a line of 100 metrics, in
which a training loop in the same interpreter stands still. Here the training pays for its own line
in the file and nothing else, whatever becomes of the companion. The pipe between them says only
what is not in the log, and its end is the end of the component, also by kill -9.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mach.introduce import COMPONENT, RUN_DIR
from mach.report.artifact import Artifact

_log = logging.getLogger(__name__)

_GRACE_S = 5.0
"""A companion gives up by itself; longer than this after that, and it is ended."""
TEMPORARY = "mach-relay"
"""How the name of a companion's temporary folder begins; its process id follows."""


class Companion:
    """The companion of one component.

    Args:
        log: the component's jsonl; what is in it by now has been reported before.
        sinks: arguments of each sink, by its name (see mach.report.relay).
        timeout_s: longest wait for it in `close`.
    """

    def __init__(self, log: Path, sinks: Mapping[str, Mapping[str, Any]], timeout_s: float) -> None:
        self._log = log
        self._timeout_s = timeout_s
        # It is no rank, and whoever looks for ranks should not find it.
        environment = {k: v for k, v in os.environ.items() if k not in (RUN_DIR, COMPONENT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mach.report.relay", f"--log={log}"],
            stdin=subprocess.PIPE,
            env=environment,
            process_group=0,  # Ctrl-C is for the run; this one ends after it
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        start = {
            "sinks": sinks,
            "offset": log.stat().st_size,
            "cores": _cores(),
            "timeout_s": timeout_s,
        }
        self._tell(start)
        os.set_blocking(self._pipe.fileno(), False)

    def log(self, record: dict[str, Any]) -> None:
        """Nothing to do: the companion reads it in the file."""

    def saved(self, artifact: Artifact) -> None:
        """Tell of files; never waits, never raises."""
        self._tell({"saved": asdict(artifact) | {"folder": str(artifact.folder)}})

    def close(self, failed: bool = False) -> None:
        """Wait until all is reported, or given up.

        Args:
            failed: the training ended with an error.
        """
        self._tell({"end": failed})
        with suppress(OSError):
            self._pipe.close()
        try:
            code = self._process.wait(self._timeout_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        if code:
            self._tidy()
            how = f"signal {-code}" if code < 0 else f"code {code}"
            _log.warning(
                "%s: what reports it to wandb or TensorBoard ended with %s before it was done; the "
                "log itself is complete.",
                self._log,
                how,
            )

    def _tidy(self) -> None:
        """Remove what it would have removed itself."""
        with suppress(OSError):
            temporary = Path(tempfile.gettempdir())
            for folder in temporary.glob(f"{TEMPORARY}-{self._process.pid}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _tell(self, message: Mapping[str, Any]) -> None:
        # One that does not read, or is gone, is found in `close`.
        with suppress(OSError, ValueError):
            self._pipe.write(json.dumps(message).encode() + b"\n")
            self._pipe.flush()


def _cores() -> list[int]:
    """Those of whoever started this component, which may be bound to a single one of them."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    with suppress(OSError):
        return sorted(os.sched_getaffinity(os.getppid()))
    return []
