"""How much does a deep body hold between forward and backward, with checkpointing and without?"""

from __future__ import annotations

import resource
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from mach.component import Recomputing
from mach.config import ResNetConfig
from mach.metrics import Task
from mach.models import build_body
from mach.models.resnet import ResNet
from mach.shapes import TensorSpec


def memory(quick: bool) -> dict[str, Any]:
    """Measure a ResNet-110 both ways, each in a process of its own: peaks do not come down."""
    layers, batch = (20, 16) if quick else (110, 16)
    rows = []
    for checkpointing in (False, True):
        here, there = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_measure, args=(there, layers, batch, checkpointing)
        )
        process.start()
        rows.append(here.recv())
        process.join()
    return {"about": f"ResNet-{layers}, width 16, images 3 x 32 x 32, batch {batch}", "rows": rows}


def _measure(out: Connection, layers: int, batch: int, checkpointing: bool) -> None:
    torch.set_num_threads(1)
    family = ResNet(ResNetConfig(layers=layers), Task(TensorSpec((3, 32, 32)), 10, "accuracy"), 2)
    body: torch.nn.Module = build_body(family, range((layers - 2) // 2), 0)
    if checkpointing:
        body = Recomputing(body)
    x = torch.randn(batch, 3, 32, 32)
    body(x[:2]).sum().backward()  # what torch itself takes at its first forward and backward
    before = _peak_mib()
    own = {p.untyped_storage().data_ptr() for p in body.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        h = body(x)
    h.sum().backward()
    out.send(
        {
            "checkpointing": checkpointing,
            "saved_mib": sum(kept.values()) / 2**20,
            "grown_mib": _peak_mib() - before,
        }
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
