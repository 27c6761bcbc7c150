"""How long does a person wait from `mach train` to the first logged step?"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPONENTS = 4
DEADLINE_S = 90.0


def startup(overrides: list[str], *, first_time: bool) -> dict[str, float]:
    """Seconds from the command to step 1 in the logs of the first and of the top component.

    Args:
        overrides: of the run.
        first_time: with an empty cache of unpacked data.

    Raises:
        RuntimeError: the run failed, or logged nothing before the deadline.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            *(sys.executable, "-c", "import mach.cli; mach.cli.main()", "train"),
            *(f"components={COMPONENTS}", "steps=20", f"out={out}", *overrides),
            *([f"data.cache={folder}/cache"] if first_time else []),
        ]
        output = Path(folder) / "output"
        cpu_s = _children_cpu_s()
        with output.open("wb") as sink:
            started = time.monotonic()
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                found = _watch(process, out, started)
                code = process.wait(max(1.0, started + DEADLINE_S - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)
        if code != 0 or len(found) < 2:
            raise RuntimeError(f"mach train ended with {code}:\n{output.read_text()[-2000:]}")
        whole_s = time.monotonic() - started
        return {**found, "end": whole_s, "cpu": _children_cpu_s() - cpu_s}


def _children_cpu_s() -> float:
    """CPU time of all processes that were started here and have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen[bytes], out: Path, started: float) -> dict[str, float]:
    logs = {
        "first component": out / "component-0.jsonl",
        "top component": out / f"component-{COMPONENTS - 1}.jsonl",
    }
    found: dict[str, float] = {}
    while len(found) < len(logs) and time.monotonic() - started < DEADLINE_S:
        ended = process.poll() is not None
        for name, log in logs.items():
            if name not in found and log.exists() and b"\n" in log.read_bytes():
                found[name] = time.monotonic() - started
        if ended:
            break
        time.sleep(0.01)
    return found
