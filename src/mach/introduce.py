"""How does a person find a rank in `ps`?

By its environment (MACH_RUN_DIR, MACH_COMPONENT) and its command line. Both are fixed when a
program starts, and torchrun gives every rank the same command; so a rank starts itself once more,
before it has imported anything slow. The processes of `mach train` are forked, and share the
command line of their nursery, which has the run folder; `top` and `ps -o comm` show who is who:
mach-nursery, mach-agent-<k>, mach-<k>.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

RUN_DIR, COMPONENT = "MACH_RUN_DIR", "MACH_COMPONENT"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `python -m mach.train`, and the config overrides beside them."""
    parser = argparse.ArgumentParser(prog="python -m mach.train", allow_abbrev=False)
    parser.add_argument("--run", type=Path, help="run folder; set by itself or by mach train")
    parser.add_argument("--component", type=int, help="component; set by itself")
    by_us = "; set by mach train"
    parser.add_argument("--composed", action="store_true", help="the run has its config" + by_us)
    parser.add_argument("--store", help="HOST:PORT/RUN, of a supervised component" + by_us)
    parser.add_argument("--control", type=int, help="open file, of a nursery" + by_us)
    parser.add_argument("--reports", help="open files, likewise")
    parser.add_argument("--groups", help="components of each agent, likewise")
    return parser.parse_known_args(argv)


def introduce(argv: list[str]) -> None:
    """Start this rank again under its own name. Returns at once where that has been done."""
    options, overrides = parse(argv)
    if options.control is not None:
        call_myself("mach-nursery")
        return
    component = os.environ.get("RANK")
    if component is None or options.component is not None:
        return
    run_dir = options.run or _asked_for(overrides) or _agreed_on()
    name = [f"--run={run_dir}", f"--component={component}"]
    command = [sys.executable, "-m", "mach.train", *name, *overrides]
    environment = {**os.environ, RUN_DIR: str(run_dir), COMPONENT: component}
    os.execve(sys.executable, command, environment)


def die_with(parent: int, by: signal.Signals) -> None:
    """Let the kernel signal this process when its parent dies, even by kill -9 (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    set_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, by)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def call_myself(name: str) -> None:
    """The name that `top` and `ps -o comm` show, of 15 letters at most (Linux only).

    For a process that was forked, and whose command line is another's.
    """
    if sys.platform.startswith("linux"):
        set_name = 15
        ctypes.CDLL(None).prctl(set_name, name.encode())


def default_run_dir(started: datetime) -> Path:
    """`runs/<date>_<time with microseconds>`: two runs of one second must not share a folder."""
    return Path("runs") / started.strftime("%Y-%m-%d_%H-%M-%S-%f")


def _asked_for(overrides: list[str]) -> Path | None:
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "out" and value not in ("", "null"):
            return Path(value.strip("'\""))
    return None


def _agreed_on() -> Path:
    """A name that all ranks of one torchrun agree on without talking: when torchrun was started."""
    try:
        boot_s = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime")
        )
        # Field 22 of proc(5)'s stat: start in clock ticks after boot. The name may hold spaces.
        after_name = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2]
        ticks = int(after_name.split()[19])
    except OSError:  # no /proc: the ranks will hear rank 0's choice from the store
        return default_run_dir(datetime.now())
    return default_run_dir(datetime.fromtimestamp(boot_s + ticks / os.sysconf("SC_CLK_TCK")))
