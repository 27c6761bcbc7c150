"""How is something fetched from the network, without waiting for ever and without a trace in here?

A library that downloads may have no deadline of its own, and may start threads that outlive it; the
launcher must fork with none. So it is called in a process of its own (see `download`), and that one
is ended when its time is up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mach.errors import FetchError

_PROGRAM = Path(__file__).with_name("download.py")


def fetch(function: str, *arguments: str, timeout_s: float) -> None:
    """Call a function of `download` in a process of its own.

    Raises:
        FetchError: what it raised, or that it took too long; its text continues a sentence.
    """
    # -P: the modules beside the program are not to be found under their short names.
    command = [sys.executable, "-P", str(_PROGRAM), function, *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"it was not there after {timeout_s:g} s") from error
    if done.returncode == 0:
        return
    last = (done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1]
    try:
        said = json.loads(last)["said"]
    except (ValueError, KeyError, TypeError):
        said = f"its process ended with code {done.returncode}"
    raise FetchError(said)
