"""A tiny data set and the configs that train on it, for tests of the arithmetic."""

import numpy as np

from mach.config import Config
from mach.configfile import from_mapping
from mach.data import Dataset
from mach.metrics import Task
from mach.shapes import TensorSpec
from mach.trainer import Oracle


def clouds() -> Dataset:
    """Four Gaussian clouds in 10 dimensions: 256 samples to train on, 36 to test."""
    random = np.random.default_rng(0)
    y = random.integers(0, 4, 292)
    x = (random.normal(size=(4, 10))[y] + 0.5 * random.normal(size=(292, 10))).astype("f4")
    return Dataset(
        x_train=x[:256],
        y_train=y[:256],
        x_test=x[256:],
        y_test=y[256:],
        task=Task(TensorSpec((10,)), 4, "accuracy"),
        mean=0.0,
        std=1.0,
        test_samples=36,
        description="clouds",
    )


def make(components: int = 3, **overrides: object) -> Config:
    """A small run; a mapping among the overrides changes single values of its part."""
    values: dict = {
        "components": components,
        "delay": 0,
        "accumulate": 2,
        "steps": 6,
        "microbatch_size": 8,
        "model": {"name": "mlp", "width": 12, "blocks": 1},
        "head": {"weight": 0.0},
        "student": {"enabled": False},
        "optim": {"clip": 0.0},
    }
    for key, value in overrides.items():
        part = values.get(key)
        values[key] = {**part, **value} if isinstance(part, dict) else value
    return from_mapping(values)


def weights(oracle: Oracle, part: str = "body") -> dict:
    """Weights of one part of every component, by `component.name`."""
    return {
        f"{t.worker.index}.{name}": value.clone()
        for t in oracle.trainers
        for name, value in t.worker.component.modules()[part].state_dict().items()
    }
