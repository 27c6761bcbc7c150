"""How does wandb see a run without the training ever waiting for wandb?

One wandb run per component, all in one group. Everything of wandb happens on a thread of its own
behind a queue: the import (0.5 s and more), the start (0.6 s; up to START_TIMEOUT_S where the
server does not answer), each line (0.4 ms), the end. What goes wrong there is said once and ends
the sink, never the training; the component's jsonl has everything.

    training thread    log ─▶ queue ─▶                    close(deadline)
    sink thread             import init  log log log ..   finish
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
"""Longest wait for the wandb server when a run starts; wandb's own default is 90. Well below
CLOSE_TIMEOUT_S, so that even the shortest run can still turn offline."""
CLOSE_TIMEOUT_S = 30.0
"""Longest wait for what is still to be uploaded when a run ends."""
CAPACITY = 10_000
"""Lines that may wait in the queue, some megabytes; beyond it lines are dropped and counted."""


class WandbSink:
    """The wandb run of one component.

    Args:
        mode: online or offline.
        group: name of the run; the component's wandb run is called `<group>-<component>`.
        config: what the run was started with, shown beside it.
        run_dir: run folder; wandb's files go to `<run_dir>/wandb`.
        resume: go on with this component's earlier wandb run, if there is one.
    """

    def __init__(
        self,
        mode: str,
        project: str,
        group: str,
        component: int,
        config: dict[str, Any],
        run_dir: Path,
        resume: bool,
        capacity: int = CAPACITY,
    ) -> None:
        self.dropped = 0
        """Lines that never reached wandb."""
        self._capacity = capacity
        self._component = component
        self._arguments: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "group": group,
            "name": f"{group}-{component}",
            "id": run_id(group, component, run_dir),
            "job_type": "component",
            "dir": str(run_dir),
            "config": config,
            "resume": "allow" if resume else None,
            # Whatever else this process does with wandb keeps a run of its own.
            "reinit": "create_new",
        }
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dead = False
        self._given_up = False
        self._failed = False
        self._thread = threading.Thread(target=self._live, name="mach-wandb", daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Queue one record; never waits, never raises."""
        if self._dead or self._queue.qsize() >= self._capacity:
            self.dropped += 1
            return
        self._queue.put(dict(record))

    def close(self, failed: bool = False, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Finish the run; give it up after `timeout_s` seconds.

        Args:
            failed: the training ended with an error; wandb then marks the run as failed.
        """
        self._failed = failed
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._given_up = True
            _log.warning(
                "wandb: run %s was not finished within %g s and is given up. The component's jsonl "
                "is complete; upload what wandb has with: wandb sync %s",
                self._arguments["name"],
                timeout_s,
                Path(self._arguments["dir"]) / "wandb" / "*",
            )
            _stop_service()
            self._thread.join(1.0)
        elif self.dropped and not self._dead:
            _log.warning(
                "wandb: %d lines of run %s were dropped because the queue was full. The "
                "component's jsonl has them; log less often with report.every.",
                self.dropped,
                self._arguments["name"],
            )

    # --- the sink thread --------------------------------------------------------------------

    def _live(self) -> None:
        try:
            run = self._start()
            while (record := self._queue.get()) is not None:
                run.log(_view(record))
            run.finish(exit_code=int(self._failed))
        except BaseException as error:  # wandb also raises SystemExit; nobody is above this thread
            self._dead = True
            if not self._given_up:
                _log.warning(
                    "wandb: run %s ends here, the training goes on: %s: %s",
                    self._arguments["name"],
                    type(error).__name__,
                    _one_line(error),
                )
        if self._given_up:
            _forget_service()

    def _start(self) -> Any:
        # wandb counts its own use and sends that at exit, offline too (0.31.0): a DNS lookup, or
        # 12 s of waiting at the end of the process where nothing answers. Off, unless asked for.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Not only the run is to be silent: without this, "Loaded credentials .." is printed.
        wandb.setup(wandb.Settings(mode=self._arguments["mode"], silent=True))
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=START_TIMEOUT_S,
            # One machine, one set of curves of its load.
            x_disable_stats=self._component > 0,
        )
        try:
            run = wandb.init(settings=settings, **self._arguments)
        except Exception as error:
            if self._arguments["mode"] == "offline" or self._given_up:
                raise
            # Logged in, but on a machine without a way out: common on clusters.
            _log.warning(
                "wandb: run %s cannot go online (%s); it is kept in %s for `wandb sync`.",
                self._arguments["name"],
                _one_line(error),
                Path(self._arguments["dir"]) / "wandb",
            )
            # The service still holds the id of the run that did not start ("run ID .. is in use").
            wandb.teardown()
            self._arguments["mode"] = "offline"
            run = wandb.init(settings=settings, **self._arguments)
        # wandb's own step restarts at 0 when an offline run is resumed; ours does not.
        run.define_metric("optimizer_step")
        run.define_metric("*", step_metric="optimizer_step")
        return run


def run_id(group: str, component: int, run_dir: Path) -> str:
    """The same for every life of a component, different for two folders of one name."""
    place = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", group)[:40]  # 64 signs at most, none of /\#?%:
    return f"{readable}-{component}-{place}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _view(record: dict[str, Any]) -> dict[str, Any]:
    """A record as wandb is to draw it: over our step, without what this component does not have."""
    view = {key: value for key, value in record.items() if key != "step" and value is not None}
    return view | {"optimizer_step": record["step"]}


def _stop_service() -> None:
    """End the process wandb works in (a child named wandb-core; found on Linux only).

    Otherwise wandb waits for it when the interpreter exits: 90 s with 0.31.0 and a server that
    accepts connections and never answers.
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent ..; the name may hold spaces and brackets
            pid, _, rest = stat.read_text().partition(" (")
            name, _, rest = rest.rpartition(") ")
            if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                os.kill(int(pid), signal.SIGTERM)


def _forget_service() -> None:
    """Take back wandb's exit hook, which would complain on the terminal about what we stopped."""
    with suppress(BaseException):
        import wandb

        wandb.teardown(exit_code=1)
