"""What did a component do at every moment, and when did it wait?

`report.trace` writes `trace-<k>.json` into the run folder: one slice for each action and one within
it for each wait, in Chrome's trace event format (the JSON array), which Perfetto
(https://ui.perfetto.dev) and chrome://tracing open. The format lets a file that was cut short go
without its last bracket, so what a kill -9 leaves can be opened, too.

    trace-1.json   forward 7 ├─────────────────┤ backward 5 ├────────┤ step ├┤
                      wait child ├───┤  distil ├─┤
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mach.config import Config
from mach.report.jsonl import parse
from mach.schedule import Action, Backward, Evaluate, Flush, Forward, Move, Step
from mach.trainer.loop import Hooks
from mach.trainer.step import Worker

_log = logging.getLogger(__name__)

_CAPACITY = 512
"""Slices that are kept before they are written: some kB, a step or a few."""
_END = b"\n]\n"
_TAIL_BYTES = 4096
"""More than any line has."""

_MOVES = {
    Move.GRADIENT: "backward",
    Move.ALONE: "backward alone",
    Move.ACTIVATION: "forward",
    Move.IMAGINE: "forward imagined",
}


class Trace:
    """Writes the trace of one life of a component; a file of an earlier life is gone on with.

    Args:
        component: shown as a process of the trace.
        life: shown as a thread of it.
        steps: optimizer steps to trace, from the first of this life; None traces all.
    """

    def __init__(self, path: Path, component: int, life: int = 0, steps: int | None = None) -> None:
        self._path, self._component, self._life = path, component, life
        self._left = steps
        self._undo = ExitStack()
        self._slices: list[tuple[str, str, int, int, int]] = []
        # What time.perf_counter counts from is this machine's own business.
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._file = _opened(path)
        who = {"pid": component, "tid": life, "ph": "M"}
        clock = {"host": socket.gethostname(), "epoch_ns": self._epoch_ns}
        names = (
            ("process_name", {"name": f"component {component}"}),
            ("process_sort_index", {"sort_index": component}),
            ("thread_name", {"name": f"life {life}"}),
            ("clock", clock),
        )
        self._write([json.dumps({"name": name, **who, "args": args}) for name, args in names])

    def watch(self, worker: Worker, hooks: Hooks | None = None) -> None:
        """Trace what this worker does from now on, and how long `hooks` take to save.

        Its methods are wrapped, and unwrapped when the last step that is to be traced is done: what
        is not traced costs nothing.
        """
        channels, component = worker.channels, worker.component
        self._replace(worker, "run", lambda run: self._actions(worker, run))
        self._replace(component, "distil", lambda distil: self._timed("distil", distil))
        if hooks is not None:
            self._replace(hooks, "flushed", lambda flushed: self._timed("save", flushed))
        for who, source, target in (
            ("child", channels.from_child, channels.to_child),
            ("parent", channels.from_parent, channels.to_parent),
        ):
            for end, method in ((source, "receive"), (target, "send")):
                if end is not None:
                    self._replace(end, method, partial(self._waits, who, end))

    def close(self) -> None:
        """Stop watching and write what is left."""
        self._undo.close()
        if self._file is not None:
            self._flush()
        if self._file is not None:
            self._file.write(_END)
            self._file.close()
            self._file = None

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is timed -------------------------------------------------------------------------

    def _actions(self, worker: Worker, run: Callable[[Action], None]) -> Callable[[Action], None]:
        def traced(action: Action) -> None:
            data_s, began = worker.wait_data_s, time.perf_counter_ns()
            run(action)
            ended = time.perf_counter_ns()
            name, number = _named(action, worker)
            wait = name.startswith("wait")
            self._slices.append((name, "wait" if wait else "work", began, ended - began, number))
            waited = int(1e9 * (worker.wait_data_s - data_s))
            if waited > 0:  # an action begins with its data
                self._slices.append(("wait data", "wait", began, min(waited, ended - began), -1))
            if isinstance(action, Step):
                self._stepped()

        return traced

    def _waits(self, who: str, end: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """Sends and receives wait first, and then copy."""
        name = f"wait {who}"

        def traced(*arguments: Any) -> Any:
            waited_s, began = end.wait_s, time.perf_counter_ns()
            result = function(*arguments)
            waited = int(1e9 * (end.wait_s - waited_s))
            if waited > 0:
                self._slices.append((name, "wait", began, waited, -1))
            return result

        return traced

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*arguments: Any) -> Any:
            began = time.perf_counter_ns()
            result = function(*arguments)
            self._slices.append((name, "work", began, time.perf_counter_ns() - began, -1))
            return result

        return traced

    def _replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        before = vars(owner).get(name)
        setattr(owner, name, wrap(getattr(owner, name)))
        if before is None:
            self._undo.callback(delattr, owner, name)
        else:  # wrapped by somebody else, too
            self._undo.callback(setattr, owner, name, before)

    def _stepped(self) -> None:
        if len(self._slices) >= _CAPACITY:
            self._flush()
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.close()

    # --- the file ------------------------------------------------------------------------------

    def _flush(self) -> None:
        # Written by hand: json.dumps takes five times as long, and training waits for this.
        self._write(
            [
                f'{{"name":"{name}","cat":"{kind}","ph":"X","pid":{self._component},'
                f'"tid":{self._life},"ts":{(self._epoch_ns + began) / 1e3:.1f},'
                f'"dur":{took / 1e3:.1f},"args":{{"number":{number}}}}}'
                for name, kind, began, took, number in self._slices
            ]
        )
        self._slices.clear()

    def _write(self, events: list[str]) -> None:
        if self._file is None or not events:
            return
        start = "[\n" if self._file.tell() == 0 else ",\n"
        try:
            self._file.write((start + ",\n".join(events)).encode())
            self._file.flush()
        except OSError as error:  # a full disk is no reason to stop training
            _log.warning("%s: the trace ends here: %s", self._path, error.strerror)
            self._file = None


@contextmanager
def traced(
    config: Config, run_dir: Path, worker: Worker, hooks: Hooks, life: int = 0
) -> Iterator[None]:
    """Within this, write what `report.trace` asks for of this worker; nothing where it asks not."""
    asked = config.report.trace
    if not asked:
        yield
        return
    steps = None if asked is True else int(asked)
    path = run_dir / f"trace-{worker.index}.json"
    with Trace(path, worker.index, life, steps) as trace:
        trace.watch(worker, hooks)
        yield


def _opened(path: Path) -> Any:
    """The file at its end, without the bracket an earlier life closed it with, or the torn line it
    was killed in."""
    try:
        file = path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        _log.warning("%s: no trace is written: %s", path, error.strerror)
        return None
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    kept = tail.rstrip(b"\n],")
    before, _, last = kept.rpartition(b"\n")
    if parse(last) is None:
        kept = before.rstrip(b",")
    file.truncate(0 if kept in (b"", b"[") else size - len(tail) + len(kept))
    file.seek(0, 2)
    return file


def _named(action: Action, worker: Worker) -> tuple[str, int]:
    """What an action is called, and the number of its microbatch or step; -1: it has none."""
    match action:
        case Forward(microbatch):
            return "forward", microbatch
        case Backward(microbatch):
            return "backward", microbatch
        case Step(step):
            return "step", step
        case Flush(step):
            return "flush", step
        case Evaluate(batch=batch):
            return "evaluate", batch
        case Move.WAIT:
            return ("wait parent" if worker.channels.from_child is None else "wait child"), -1
        case Move():
            return _MOVES[action], -1
