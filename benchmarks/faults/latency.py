"""What does latency cost each schedule, when every edge of the chain crosses a slow link?

Two machines on one (network namespaces) with one link between them; the components take turns:

    # machine    left   right  left   right
    # component    0 ---- 1 ---- 2 ---- 3        each edge crosses the link
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from running import RANK, Process, started
from settings import (
    COMPONENTS,
    Settings,
    at_latency,
    enough_credits,
    enough_delay,
    overrides,
    turns,
)
from timeline import Lines, Window, rate, share, training_since

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from netns import WIRE, Machine, two_machines, why_not

VARIANTS = ("free", "delayed", "sync", "1F1B")
PIPELINE = [sys.executable, str(Path(__file__).with_name("pipeline.py"))]


def impossible(settings: Settings) -> str | None:
    """Why there can be no such machines here; None where there can."""
    return why_not(max(settings.latencies_ms))


def measure_round(
    settings: Settings, turn: int, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Every variant at every latency once: by variant, by latency."""
    found: dict[str, dict[str, Any]] = {variant: {} for variant in VARIANTS}
    for place in turns(len(settings.latencies_ms), turn):
        latency_ms = settings.latencies_ms[place]
        for other in turns(len(VARIANTS), turn):
            variant = VARIANTS[other]
            found[variant][f"{latency_ms:g}"] = measure(settings, variant, latency_ms)
            tell(f"{variant} at {latency_ms:g} ms")
    return found


def measure(settings: Settings, variant: str, latency_ms: float) -> dict[str, Any]:
    """Microbatches per second of one variant at one latency."""
    with (
        two_machines(latency_ms) as machines,
        started(_ranks(settings, variant, latency_ms, machines)) as run,
    ):
        run.until(lambda: training_since(run.logs) is not None)
        since_s = training_since(run.logs)
        assert since_s is not None
        begin_s = since_s + settings.settle_s
        window = Window(begin_s, begin_s + settings.latency_s)
        # To the first line beyond: a step may take a second, and its part counts.
        run.until(lambda: all(lines[-1].time_s >= window.end_s for lines in run.logs))
    return {
        "delay": enough_delay(latency_ms, settings.pace_ms),
        "credits": enough_credits(latency_ms, settings.pace_ms),
        "components": [_measured(lines, window, settings) for lines in run.logs],
    }


def _measured(lines: Lines, window: Window, settings: Settings) -> dict[str, float]:
    steps_per_s = rate(lines, window)
    assert steps_per_s is not None
    return {
        "microbatches_per_s": steps_per_s * settings.accumulate,
        "imagined": share(lines, window, "imagined", settings.accumulate),
        "alone": share(lines, window, "alone", settings.accumulate),
    }


def _ranks(
    settings: Settings, variant: str, latency_ms: float, machines: Sequence[Machine]
) -> Callable[[Path], Sequence[Process]]:
    """One process for each component, as torchrun would start them on the two machines."""
    # The two machines share a file system but no ports: any that is free here is free there.
    port = _free_port()

    def processes(folder: Path) -> list[Process]:
        if variant == "1F1B":
            folder.mkdir()
            command = [*PIPELINE, str(folder), json.dumps(asdict(settings))]
        else:
            values = overrides(at_latency(settings, variant, latency_ms))
            command = [*RANK, *values, f"out={folder}"]
        return [
            Process([*machines[k % 2].inside, *command], _environment(k, machines[0], port))
            for k in range(COMPONENTS)
        ]

    return processes


def _environment(k: int, first: Machine, port: int) -> dict[str, str]:
    return {
        "RANK": str(k),
        "WORLD_SIZE": str(COMPONENTS),
        "LOCAL_RANK": str(k // 2),
        "LOCAL_WORLD_SIZE": str(COMPONENTS // 2),
        "MASTER_ADDR": first.address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": WIRE,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
