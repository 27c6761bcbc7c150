"""What does the death of a component cost the accuracy of the whole run?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from running import started, supervised
from settings import COMPONENTS, mnist, overrides

DEADLINE_S = 1200.0


def measure(
    path: str, steps: int, seeds: int, tell: Callable[[str], None]
) -> list[dict[str, dict[str, Any]]]:
    """For each seed an undisturbed run, and one with a component killed at the middle.

    Another victim for each seed, and the other of the two first.
    """
    found = []
    for seed in range(seeds):
        pair: dict[str, dict[str, Any]] = {}
        for name in ("undisturbed", "killed")[:: -1 if seed % 2 else 1]:
            victim = (seed + 1) % COMPONENTS if name == "killed" else None
            pair[name] = train(path, steps, seed, victim)
            tell(f"seed {seed}, {name}: {pair[name]['accuracy'] * 100:.2f} %")
        found.append(pair)
    return found


def train(path: str, steps: int, seed: int, victim: int | None) -> dict[str, Any]:
    """Train to the end. Returns what the run says of itself."""
    values = mnist(path, steps, seed)
    if victim is not None:
        values |= {"faults": "kill", "faults.component": victim, "faults.step": steps // 2}
    with started(supervised(overrides(values))) as run:
        run.wait(DEADLINE_S)
        result = json.loads((run.folder / "result.json").read_text())
    if victim is not None and result["restarts"] != 1:
        raise RuntimeError(f"expected one restart, got {result['restarts']}")
    return {
        "victim": victim,
        "accuracy": result["chain"][-1]["accuracy"],
        "loss": result["chain"][-1]["loss"],
        "wall_s": result["wall_s"],
        "free": result["free"],
    }
