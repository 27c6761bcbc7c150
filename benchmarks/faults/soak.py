"""Does a run last whose components are killed again and again?"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from growth import (
    BIN_S,
    WHAT,
    Change,
    Sample,
    of_lives,
    of_the_lasting,
    roles,
    thinned,
    thirds,
    within_lives,
)
from running import Run, started, supervised
from settings import COMPONENTS, LINKS, Settings, overrides, soaked
from timeline import training_since

KILL_EVERY_S = 20.0
LOOK_S = 1.0
"""Between two looks at the processes."""
_MIB = 2**20


@dataclass
class Record:
    """What was seen of a run, at seconds since its components all trained."""

    samples: list[Sample] = field(default_factory=list)
    kills: list[tuple[float, int]] = field(default_factory=list)
    """When, and which component."""
    losses: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each component."""
    seconds: float = 0.0
    deaths: int = 0
    returns: int = 0
    """As the launcher saw them."""
    lost: list[int] = field(default_factory=list)
    """Components that did not train, fully connected, at the end."""
    steps: list[int] = field(default_factory=list)
    """How far each one came."""
    left_behind: int = 0
    """Processes that outlived the launcher."""

    def to_json(self) -> str:
        """Rows without names, of which there are many."""
        rows = [astuple(one) for one in self.samples]
        return json.dumps({**vars(self), "samples": rows}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Record:
        """What `to_json` wrote."""
        values = json.loads(text)
        values["samples"] = [Sample(*one) for one in values["samples"]]
        return Record(**values)


def soak(
    settings: Settings, minutes: float, mnist: str | None, tell: Callable[[str], None]
) -> Record:
    """Run for so long, with a random component killed every KILL_EVERY_S."""
    record = Record()
    chance = random.Random(0)
    with started(supervised(overrides(soaked(settings, minutes, mnist)))) as run:
        run.until(lambda: training_since(run.logs) is not None)
        began_s, last_s = time.time(), minutes * 60
        next_s, kill_s = 0.0, KILL_EVERY_S
        while (t := time.time() - began_s) < last_s:
            run.read()
            if run.processes[0].poll() is not None:
                raise RuntimeError(f"the run ended too early:\n{run.said()}")
            if t >= next_s:
                record.samples += _look(run, t)
                next_s += LOOK_S
            if kill_s <= t < last_s - KILL_EVERY_S:  # the last one has time to come back, too
                victim = chance.randrange(COMPONENTS)
                if _kill(run, victim):
                    record.kills.append((t, victim))
                    tell(f"{t:.0f} s: killed component {victim}")
                kill_s += KILL_EVERY_S
            time.sleep(LOOK_S / 5)
        run.read()
        record.samples = thinned(record.samples)
        _account(run, record, began_s)
    record.left_behind = len(_of_run(run.folder))
    return record


def _account(run: Run, record: Record, began_s: float) -> None:
    """What the run has come to."""
    now_s = time.time()
    record.seconds = now_s - began_s
    for k, lines in enumerate(run.logs):
        last = lines[-1]
        record.steps.append(last.step)
        if now_s - last.time_s > 5.0 or last.links_up < LINKS[k]:
            record.lost.append(k)
        record.losses.append(
            _means([(one.time_s - began_s, one.loss) for one in lines if one.loss is not None])
        )
    events = [json.loads(line) for line in (run.folder / "events.jsonl").open()]
    record.deaths = sum(event["event"] == "died" for event in events)
    record.returns = sum(event["event"] == "back" for event in events)


def _means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of every BIN_S."""
    bins: dict[int, list[float]] = {}
    for t, loss in points:
        bins.setdefault(int(t / BIN_S), []).append(loss)
    return [(n * BIN_S, round(sum(b) / len(b), 5)) for n, b in sorted(bins.items()) if n >= 0]


# --- processes ------------------------------------------------------------------------------------


def _look(run: Run, t_s: float) -> list[Sample]:
    found = []
    launcher = psutil.Process(run.processes[0].pid)
    for process in [launcher, *launcher.children(recursive=True)]:
        with suppress(psutil.Error):
            role = "launcher" if process == launcher else _role(process)
            if role is None:
                continue
            with process.oneshot():
                age_s = round(time.time() - process.create_time(), 1)
                memory = process.memory_info()
                private_mib = round((memory.rss - memory.shared) / _MIB, 2)
                numbers = (process.num_fds(), process.num_threads())
            found.append(Sample(round(t_s, 1), role, process.pid, age_s, private_mib, *numbers))
    return found


def _role(process: psutil.Process) -> str | None:
    """By its name: all that is forked has the same command line."""
    name = process.name()
    if name == "mach-nursery":
        return "nursery"
    named = re.fullmatch(r"mach-(agent-)?(\d+)", name)
    if named is None:
        return None
    return f"{'agent' if named[1] else 'component'} {named[2]}"


def _kill(run: Run, victim: int) -> bool:
    """As kill -9 does. Whether there was something to kill."""
    for process in psutil.Process(run.processes[0].pid).children(recursive=True):
        with suppress(psutil.Error, KeyError):
            if _role(process) == f"component {victim}":
                process.kill()
                return True
    return False


def _of_run(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("MACH_RUN_DIR") == str(folder):
                found.append(process)
    return found


# --- judging --------------------------------------------------------------------------------------


def judged(record: Record) -> dict[str, Any]:
    """What result.json keeps: the rest is in soak.json."""
    samples = record.samples
    lasting = [r for kind in ("launcher", "nursery", "agent") for r in roles(samples, kind)]
    components = roles(samples, "component")
    return {
        "seconds_seen": record.seconds,
        "kills": len(record.kills),
        "deaths": record.deaths,
        "returns": record.returns,
        "lost": record.lost,
        "left_behind": record.left_behind,
        "steps": record.steps,
        "lasting": {r: {w: _pair(of_the_lasting(samples, r, w)) for w in WHAT} for r in lasting},
        "lives": {r: {w: _pair(of_lives(samples, r, w)) for w in WHAT} for r in components},
        "within": {r: {w: within_lives(samples, r, w) for w in WHAT} for r in components},
        "losses": [thirds(points) for points in record.losses],
    }


def _pair(change: Change | None) -> list[float] | None:
    return None if change is None else [change.first, change.last]
