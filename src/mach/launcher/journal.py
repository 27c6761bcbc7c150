"""What happened to the components of a supervised run? Told at once, and kept."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from mach.launcher.reports import Event
from mach.say import say

_KEPT_ONLY = ("finished", "refused")
"""Nothing to act on, or told by the error that ends the run."""


class Journal:
    """`events.jsonl`, one object a line, and a line each on stderr."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tell(self, event: Event) -> None:
        """Keep an event, and show it where somebody may want to act on it."""
        line = {
            "time": time.time(),
            "component": event.component,
            "event": event.kind,
            "text": event.text,
        }
        with suppress(OSError), self._path.open("a") as file:  # a full disk does not end the run
            file.write(json.dumps(line) + "\n")
        if event.kind not in _KEPT_ONLY:
            say(event.text)
