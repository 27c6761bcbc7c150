"""Is a compiled body faster, where it is large enough for it to matter?"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import nn

from mach.component import Component
from mach.config import GptConfig, ResNetConfig
from mach.metrics import Task
from mach.models import Family, build_body
from mach.models.gpt import Gpt
from mach.models.resnet import ResNet
from mach.shapes import TensorSpec


class _Keep:
    def step(self, index: int) -> torch.Tensor:
        return torch.zeros(())


def speed(quick: bool) -> dict[str, Any]:
    """Forward and backward of one microbatch, compiled and not, in turns."""
    text = Task(TensorSpec((128,), torch.int64), 256, "bits_per_byte")
    image = Task(TensorSpec((3, 32, 32)), 10, "accuracy")
    width = 32 if quick else 256
    families: dict[str, tuple[Family, TensorSpec]] = {
        f"4 GPT blocks, width {width}, 8 x 128 tokens": (
            Gpt(GptConfig(width=width), text, 8),
            TensorSpec((8, 128, width)),
        ),
        "4 ResNet blocks, 16 channels, 16 images of 32 x 32": (
            ResNet(ResNetConfig(layers=56), image, 16),
            TensorSpec((16, 16, 32, 32)),
        ),
    }
    rounds = 2 if quick else 15
    return {"rows": [_pair(n, *of, rounds) for n, of in families.items()]}


def _pair(name: str, family: Family, spec: TensorSpec, rounds: int) -> dict[str, Any]:
    x, y = torch.randn(spec.shape), torch.zeros(spec.shape[0], dtype=torch.int64)
    components, start_s = [], 0.0
    for compiled in (False, True):
        body = build_body(family, range(1, 5), 0)
        head = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
        component = Component(body, head, _Keep(), feedback=1.0, compiled=compiled)
        began_s = time.perf_counter()
        component.rehearse(x, x, y)
        start_s = time.perf_counter() - began_s
        components.append(component)
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for component, taken in zip(components, times, strict=True):
            began_s = time.perf_counter()
            h = component.forward(0, x, None, y)
            component.backward(0, h)
            taken.append((time.perf_counter() - began_s) * 1e3)
    plain, faster = times
    ratios = [a / b for a, b in zip(plain, faster, strict=True)]
    return {
        "name": name,
        "plain_ms": median(plain),
        "compiled_ms": median(faster),
        "faster": [min(ratios), median(ratios), max(ratios)],
        "start_s": start_s,
    }
