"""What is the result of a run, put together from what its components report?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mach.config import Config
from mach.provenance import commit


@dataclass(frozen=True)
class Outcome:
    """What one component reports at the end."""

    component: int
    scores: dict[int, dict[str, float]]
    """Final test results by origin: 0 is the chain, j >= 1 the window that begins at j."""
    staleness_mean: float
    """Age of the gradients that it learned from, in optimizer steps, over the whole run."""
    staleness_max: int
    busy_fraction: float
    wall_s: float
    """From the first action to the last flush: training, with the evaluations on its way."""
    total_s: float
    """With the final evaluation."""
    steps: int
    """Optimizer steps it took in this time: under `free` those of its last life."""

    @staticmethod
    def unknown(component: int, scores: dict[int, dict[str, float]]) -> Outcome:
        """Of a component that never reported: it is gone."""
        return Outcome(component, scores, math.nan, 0, math.nan, 0.0, 0.0, 0)

    @staticmethod
    def from_json(text: str | bytes) -> Outcome:
        """What `to_json` wrote."""
        values = json.loads(text)
        values["scores"] = {int(origin): scores for origin, scores in values["scores"].items()}
        return Outcome(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Cost:
    """Parameters, and FLOPs per sample, of a part of the network."""

    params: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.flops + other.flops)


@dataclass(frozen=True)
class Costs:
    """Inference cost of every part, by component."""

    bodies: list[Cost]
    heads: list[Cost]
    students: dict[int, Cost]

    def model(self, first: int, last: int) -> Cost:
        """Cost of the chain up to `last` (first 0), or of the window first..last."""
        total = self.heads[last]
        for k in range(first, last + 1):
            total = total + self.bodies[k]
        return total + self.students[first] if first > 0 else total


def result_of(
    config: Config,
    costs: Costs,
    outcomes: list[Outcome],
    *,
    first_step: int = 0,
    restarts: int = 0,
) -> dict[str, Any]:
    """The content of `result.json` (design section 6).

    Args:
        config: the run's.
        costs: inference cost of the parts.
        outcomes: one of each component, in order.
        first_step: the step this process group went on from.
        restarts: how often the group was started again.
    """
    wall_s = max(outcome.wall_s for outcome in outcomes)
    microbatches = config.microbatches
    trained = microbatches - first_step * config.accumulate
    # Of an exit that needs a component which is gone and has never saved anything.
    metrics = next((scores for o in outcomes for scores in o.scores.values()), {})
    nothing = dict.fromkeys(metrics, math.nan)
    return {
        "components": config.components,
        "schedule": config.schedule,
        "delay": config.delay,
        "accumulate": config.accumulate,
        "seed": config.seed,
        "method": config.method,
        "steps": config.steps,
        "first_step": first_step,
        "microbatches": microbatches,
        "samples": microbatches * config.microbatch_size,
        "wall_s": wall_s,
        "total_s": max(outcome.total_s for outcome in outcomes),
        "split": config.eval.split,
        "samples_per_s": trained * config.microbatch_size / wall_s if wall_s > 0 else None,
        "chain": [
            {"exit": k, **_known(outcome.scores.get(0, nothing)), **vars(costs.model(0, k))}
            for k, outcome in enumerate(outcomes)
        ],
        "windows": [
            {"first": j, "last": i, **_known(outcomes[i].scores[j]), **vars(costs.model(j, i))}
            for j in range(1, len(outcomes))
            for i in range(j, len(outcomes))
            if j in outcomes[i].scores
        ],
        "staleness_steps": [
            {"component": o.component, **_known({"mean": o.staleness_mean}), "max": o.staleness_max}
            for o in outcomes
        ],
        "busy_fraction": [
            {"component": o.component, **_known({"value": o.busy_fraction})} for o in outcomes
        ],
        "cut": [_share(config, costs, k) for k in range(len(outcomes))],
        "restarts": restarts,
        "git": commit(),
        "torch": torch.__version__,
    }


def _share(config: Config, costs: Costs, k: int) -> dict[str, Any]:
    """What component k is made of: its blocks, numbered through the network, and its parts."""
    blocks = config.bodies()[k]
    parts = {"body": costs.bodies[k], "head": costs.heads[k]}
    if k in costs.students:
        parts["student"] = costs.students[k]
    return {
        "component": k,
        "first_block": blocks.start,
        "last_block": blocks.stop - 1,
        **{name: vars(cost) for name, cost in parts.items()},
    }


def _known(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no name for the loss of, say, a student that diverged: it becomes null."""
    return {key: value if math.isfinite(value) else None for key, value in scores.items()}
