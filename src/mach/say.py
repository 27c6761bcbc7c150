"""How does a process of a run say something that nobody has to hear?"""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """Write a line to stderr, where that can be done.

    What a rank prints is kept in the run folder: on a full disk it is lost, which is no reason to
    stop training. Nor is a stream that is closed, or that a signal found in the middle of a line.
    """
    with suppress(OSError, ValueError, RuntimeError):
        print(f"mach: {text}", file=sys.stderr, flush=True)


def let_go() -> None:
    """Write what is still kept back, as before a process ends without Python's own end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):
            stream.flush()
