"""What is measured, on which network?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mach.config import Config
from mach.configfile import from_mapping
from mach.data import Dataset
from mach.data.dataset import labelled
from mach.schedule import Action, Backward, Forward, Step, actions

FEATURES, CLASSES, SAMPLES = 64, 10, 4096


@dataclass(frozen=True)
class Settings:
    """The network and how long each measurement takes."""

    depth: int = 8
    width: int = 512
    microbatch_size: int = 256
    optimizer: str = "sgd"
    warm_up: int = 8
    """Microbatches before the pipeline is flushed and the measured ones begin."""
    measured: int = 40
    """Microbatches from there to the next flush. Both must be multiples of every M."""
    ideal_s: float = 4.0
    """Seconds of each measurement without messages."""

    def config(self, variant: Variant) -> Config:
        """Of one run of a variant, as `mach train` would have it."""
        return from_mapping(
            {
                "components": 2,
                "accumulate": variant.accumulate,
                "microbatch_size": self.microbatch_size,
                "steps": (self.warm_up + self.measured) // variant.accumulate,
                "model": {"name": "mlp", "depth": self.depth, "width": self.width},
                # No cosine: the run is too short for one, and a step costs the same at any rate.
                "optim": {"name": self.optimizer, "lr": 0.01, "cosine": False},
                "transport": {"name": "gloo", "timeout_s": 60.0, "start_timeout_s": 60.0},
                **variant.overrides,
            }
        )


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    kind: str
    """mach, torch (torch.distributed.pipelining), ideal (no messages) or parts (no row: a forward,
    a backward, a step by themselves, for the predictions)."""
    accumulate: int = 4
    """M: microbatches per optimizer step; of `ideal`, 0 takes no steps."""
    overrides: dict[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    """Schedule class of torch.distributed.pipelining."""


_NO_STUDENT = {"student": {"enabled": False}}


def _mach(
    name: str, accumulate: int, student: bool = False, mu: float = 1.0, **overrides: Any
) -> Variant:
    students = _student(mu) if student else _NO_STUDENT
    return Variant(name, "mach", accumulate, {**students, **overrides})


def _student(mu: float) -> dict[str, Any]:
    return {"student": {"enabled": True, "task_weight": mu}}


IDEAL, IDEAL_ALONE = "ideal", "ideal, other core idle"
IDEAL_STEPS, STOCK = "ideal with steps, M = 4", "1F1B, M = 4"
"""What the aims of speed compare ours with, beside `IDEAL`."""
OURS, LATER = "delayed, stash, M = 4", "delay 2, stash, M = 4"
"""At the default delay, which is 1, and with one microbatch more of slack between neighbours."""
VARIANTS = [
    Variant(IDEAL, "ideal", 0),
    Variant(IDEAL_STEPS, "ideal", 4),
    Variant("ideal with steps, M = 8", "ideal", 8),
    Variant(IDEAL_ALONE, "ideal", 0),
    Variant(STOCK, "torch", 4, _NO_STUDENT, "Schedule1F1B"),
    Variant("1F1B, M = 8", "torch", 8, _NO_STUDENT, "Schedule1F1B"),
    Variant("GPipe, M = 4", "torch", 4, _NO_STUDENT, "ScheduleGPipe"),
    Variant("GPipe, M = 8", "torch", 8, _NO_STUDENT, "ScheduleGPipe"),
    _mach("sync, M = 4", 4, schedule="sync"),
    _mach("sync, M = 8", 8, schedule="sync"),
    _mach(OURS, 4, replay="stash"),
    _mach(LATER, 4, replay="stash", delay=2),
    _mach("delayed, stash, M = 8", 8, replay="stash"),
    _mach("delayed, recompute, M = 4", 4),
    _mach("delayed, recompute, M = 8", 8),
    _mach("delayed, stash, student, M = 4", 4, student=True, replay="stash"),
    _mach("delayed, recompute, student, M = 4", 4, student=True),
    _mach("delayed, stash, student (mu = 0), M = 4", 4, student=True, mu=0.0, replay="stash"),
    Variant("parts", "parts", 4, _student(1.0)),
    Variant("parts, mu = 0", "parts", 4, _student(0.0)),
]
_DECISIVE = (IDEAL, IDEAL_STEPS, STOCK, OURS, LATER)
DECISIVE = [variant for variant in VARIANTS if variant.name in _DECISIVE]


def synthetic() -> Dataset:
    """Random vectors with random labels: nothing here depends on what is learned."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.standard_normal((SAMPLES, FEATURES), dtype=np.float32),
        "y_train": rng.integers(CLASSES, size=SAMPLES),
        "x_test": rng.standard_normal((16, FEATURES), dtype=np.float32),
        "y_test": rng.integers(CLASSES, size=16),
    }
    return labelled("synthetic data", arrays, CLASSES)


def order(config: Config, component: int, warm_up: int, pipeline: str = "") -> list[Action]:
    """What a component does: `warm_up` microbatches, a flush, and the measured ones."""
    if pipeline == "ScheduleGPipe":
        return _gpipe(config.accumulate, config.steps)
    return list(
        actions(
            "sync" if pipeline else config.schedule,
            config.components,
            component,
            config.effective_delay,
            config.accumulate,
            config.steps,
            [warm_up // config.accumulate],
        )
    )


def _gpipe(accumulate: int, steps: int) -> list[Action]:
    out: list[Action] = []
    for step in range(steps):
        microbatches = range(step * accumulate, (step + 1) * accumulate)
        out += [Forward(b) for b in microbatches]
        out += [Backward(b) for b in microbatches]
        out.append(Step(step + 1))
    return out
