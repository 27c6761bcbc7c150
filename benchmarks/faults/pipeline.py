"""One rank of torch's own 1F1B, on the same network, which sleeps as mach's components do.

Started by latency.py with torchrun's environment: pipeline.py FOLDER SETTINGS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from settings import Settings, at_latency, overrides
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional as F

from mach.data import Batches, open_dataset
from mach.launcher.compose import compose
from mach.optim import Optimizer
from mach.trainer import Assembly

TIMEOUT = timedelta(seconds=60)


def main() -> None:
    """Train until killed, and log every step."""
    folder, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    k = int(os.environ["RANK"])
    torch.set_num_threads(1)
    config = compose(overrides(at_latency(settings, "sync", 0.0)))
    dataset = open_dataset(config.data)
    assembly = Assembly(config, dataset.task)
    device = torch.device("cpu")
    component, _ = assembly.component(k, device)
    top = k == config.components - 1
    module = torch.nn.Sequential(component.body, component.head) if top else component.body
    optimizer = Optimizer(module.named_parameters(), config.optim, steps=config.steps)
    count = config.accumulate
    batches = Batches(dataset, config.seed, count * config.microbatch_size, device)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    stage = PipelineStage(module, k, config.components, device)
    schedule = Schedule1F1B(
        stage,
        count,
        loss_fn=lambda logits, y: F.cross_entropy(logits, y) / count,
        scale_grads=False,
    )
    for function, share in (("forward_one_chunk", 1 / 3), ("backward_one_chunk", 2 / 3)):
        setattr(stage, function, paced(getattr(stage, function), share * settings.pace_ms / 1e3))
    with (folder / f"component-{k}.jsonl").open("w", buffering=1) as log:
        for step in range(config.steps):
            x, y = batches.train(step)
            if top:
                schedule.step(target=y, return_outputs=False)
            else:
                schedule.step(x)
            optimizer.step(step)
            log.write(json.dumps({"time": time.time(), "step": step + 1}) + "\n")


def paced(function: Callable[..., Any], least_s: float) -> Callable[..., Any]:
    """The function, taking at least so long, as mach.trainer.faults has it."""

    def slower(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        result = function(*arguments, **options)
        time.sleep(max(0.0, began + least_s - time.monotonic()))
        return result

    return slower


if __name__ == "__main__":
    main()
