"""The companion process of one component: what does it do from its start to its end?

    python -m mach.report.relay --log=runs/<name>/component-<k>.jsonl

Started by mach.report.companion, which speaks to it on stdin, a JSON object per line: first what to
report to, then what was saved, last that the component has ended. It reports what is logged, and
ends soon after the component, however that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mach.report.artifact import Artifact
from mach.report.background import BackgroundSink
from mach.report.companion import TEMPORARY
from mach.report.jsonl import Follower
from mach.report.tensorboard_sink import TensorBoardSink
from mach.report.wandb_sink import WandbSink

LOOK_S = 0.5
"""Time between two looks at the log."""
NICE = 19
"""Training comes first where there are not enough cores for both."""

SINKS: dict[str, type[BackgroundSink]] = {"wandb": WandbSink, "tensorboard": TensorBoardSink}


def main() -> None:
    """Follow the log to the end of its component."""
    parser = argparse.ArgumentParser(prog="python -m mach.report.relay")
    parser.add_argument("--log", type=Path, required=True)
    log = parser.parse_args().log
    messages = _Messages(sys.stdin.fileno())
    start = messages.first()
    if start is None:  # the component has died at once
        return
    _step_back(start["cores"])
    timeout_s = start["timeout_s"]
    # wandb makes folders as it is imported, and removes them at an end that _leave spares.
    tempfile.tempdir = tempfile.mkdtemp(prefix=f"{TEMPORARY}-{os.getpid()}-")
    sinks = [SINKS[name](**values, timeout_s=timeout_s) for name, values in start["sinks"].items()]
    follower = Follower(log, start["offset"], again=False)  # a next life has its own companion
    while not messages.over:
        for message in messages.read(LOOK_S):
            _keep(message, sinks)
        _hand_on(follower, sinks)
    deadline = time.monotonic() + timeout_s
    for sink in sinks:
        sink.close(messages.failed, max(0.0, deadline - time.monotonic()))
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    _leave()


def _step_back(cores: list[int]) -> None:
    """Run on any of the run's cores, when nobody else wants to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICE)
    if cores:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)


def _hand_on(follower: Follower, sinks: list[BackgroundSink]) -> None:
    for record in follower.stream():
        if "step" in record:
            for sink in sinks:
                sink.log(record)


def _keep(message: dict[str, Any], sinks: list[BackgroundSink]) -> None:
    if "saved" in message:
        values = message["saved"]
        artifact = Artifact(values["kind"], values["step"], Path(values["folder"]))
        for sink in sinks:
            if isinstance(sink, WandbSink):
                sink.saved(artifact)


def _leave() -> None:
    """End at once: libraries that were given up would hold up the interpreter's own shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Messages:
    """What the component says, line by line, until it ends."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""
        self._early: list[dict[str, Any]] = []
        self.over = False
        self.failed = True
        """Unless it said otherwise at its end."""

    def first(self) -> dict[str, Any] | None:
        """Wait for the first message; None where there is none."""
        while not (self._early or self.over):
            self._early = self.read(None)
        return self._early.pop(0) if self._early else None

    def read(self, timeout_s: float | None) -> list[dict[str, Any]]:
        """Messages that came; waits `timeout_s` seconds for one (None: for ever)."""
        if self._early:
            early, self._early = self._early, []
            return early
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        new = os.read(self._file, 65536)
        self.over = not new
        *lines, self._rest = (self._rest + new).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self.failed = message.get("end", self.failed)
        return messages


if __name__ == "__main__":
    main()
