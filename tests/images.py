"""Tiny images, and the configs of residual networks that train on them in seconds."""

from __future__ import annotations

import numpy as np

from clouds import make
from mach.config import Config
from mach.data import Dataset
from mach.metrics import Task
from mach.shapes import TensorSpec


def images(*shape: int) -> Dataset:
    """Noisy pictures of four classes: 96 samples to train on, 20 to test."""
    random = np.random.default_rng(0)
    y = random.integers(0, 4, 116)
    x = random.normal(size=(4, *shape))[y] + 0.5 * random.normal(size=(116, *shape))
    x = (40 * x + 128).clip(0, 255).astype("u1")
    return Dataset(
        x_train=x[:96],
        y_train=y[:96],
        x_test=x[96:],
        y_test=y[96:],
        task=Task(TensorSpec(shape), 4, "accuracy"),
        mean=128.0,
        std=50.0,
        test_samples=20,
        description="images",
    )


def make_resnet(components: int = 3, **overrides: object) -> Config:
    """ResNet-14 of 4, 8 and 16 channels; a mapping changes single values of its part."""
    model = {"name": "resnet", "layers": 14, "width": 4, "groups": 2, "blocks": 1}
    return make(
        components,
        **{
            "steps": 5,
            **overrides,
            "model": {**model, **overrides.get("model", {})},
            "student": {"enabled": False, "width": 4, **overrides.get("student", {})},
        },
    )
