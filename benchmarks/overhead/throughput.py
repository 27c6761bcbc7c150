"""How many samples a second does each variant train, in a process that runs them in turn?

    # w, n: optimizer steps of the warm-up, and of the whole run
    #
    #     0 ...... w | w+1 ........... n-1  n |
    #        warm-up ^      interior          ^ flush
    #                flush

The interior is the steady state: from the end of step w + 1 to the end of step n - 1. The segment
between the two flushes has the pipeline's filling and draining as well.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from compute import Alone, page_faults, run_parts
from member import join
from pair import Peer, Report
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from variants import IDEAL_ALONE, Settings, Variant, order, synthetic

from mach.channels import Channels
from mach.data import Batches
from mach.optim import Optimizer
from mach.schedule import Flush, Step
from mach.trainer import Assembly


def throughput(peer: Peer, report: Report, settings: Settings, rounds: list[list[Variant]]) -> None:
    """Run every variant of every round and report what was measured."""
    torch_group = dist.PrefixStore("torch", peer.store)
    dist.init_process_group(
        "gloo", store=torch_group, rank=peer.rank, world_size=2, timeout=timedelta(seconds=60)
    )
    run = {"ideal": run_ideal, "parts": run_parts, "mach": run_mach, "torch": run_torch}
    for number, variants in enumerate(rounds):
        for place, variant in enumerate(variants):
            gc.collect()
            result = run[variant.kind](peer, f"{number}/{place}", variant, settings)
            report((number, variant.name, result))
    peer.barrier()
    dist.destroy_process_group()


# --- the kinds ----------------------------------------------------------------------------------


def run_ideal(peer: Peer, key: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    """Forward and backward of this component, and its steps, with nobody to talk to."""
    alone = Alone(settings.config(_any_step(variant)), peer.rank, peer.device)
    if variant.name != IDEAL_ALONE:
        alone.run(settings.ideal_s / 4, variant.accumulate)
        peer.barrier()
        return alone.run(settings.ideal_s, variant.accumulate)
    result: dict[str, Any] = {}
    for rank in (0, 1):
        peer.barrier()
        if rank == peer.rank:
            alone.run(settings.ideal_s / 4, variant.accumulate)
            result = alone.run(settings.ideal_s, variant.accumulate)
    peer.barrier()
    return result


def run_mach(peer: Peer, key: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    """What a rank of `mach train` does, without files and evaluations."""
    config = settings.config(variant)
    member = join(peer, key, config, order(config, peer.rank, settings.warm_up))
    trainer = member.trainer
    clock = Clock(settings, config.accumulate, member.channels)
    peer.barrier()
    while (action := trainer.next) is not None:
        trainer.advance()
        if isinstance(action, Step):
            clock.stepped(action.step)
        elif isinstance(action, Flush):
            clock.flushed(action.step)
    member.channels.close_up()
    return clock.result()


def run_torch(peer: Peer, key: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    """The same blocks, head, loss, optimizer and data under torch.distributed.pipelining."""
    config, k = settings.config(variant), peer.rank
    dataset = synthetic()
    assembly = Assembly(config, dataset.task)
    component, _ = assembly.component(k, peer.device)
    top = k == config.components - 1
    module = torch.nn.Sequential(component.body, component.head) if top else component.body
    optimizer = Optimizer(module.named_parameters(), config.optim, steps=config.steps)
    count = config.accumulate
    # Dividing the loss spares torch a pass over all gradients at the end of each step.
    kwargs: dict[str, Any] = {
        "loss_fn": lambda logits, y: F.cross_entropy(logits, y) / count,
        "scale_grads": False,
    }
    stage = PipelineStage(module, k, config.components, peer.device)
    kind = {"ScheduleGPipe": ScheduleGPipe, "Schedule1F1B": Schedule1F1B}[variant.pipeline]
    schedule = kind(stage, count, **kwargs)
    # One draw of M microbatches has the samples of M draws of one.
    batches = Batches(dataset, config.seed, count * config.microbatch_size, peer.device)
    clock = Clock(settings, count)
    peer.barrier()
    for step in range(config.steps):
        x, y = batches.train(step)
        if top:
            schedule.step(target=y, return_outputs=False)
        else:
            schedule.step(x)
        optimizer.step(step)
        clock.stepped(step + 1)
        if step + 1 in (settings.warm_up // count, config.steps):
            clock.flushed(step + 1)
    return clock.result()


def _any_step(variant: Variant) -> Variant:
    return variant if variant.accumulate else Variant(variant.name, variant.kind, 4)


# --- time ---------------------------------------------------------------------------------------


@dataclass
class Clock:
    """When did steps and flushes end, and what was used between the two flushes?

    All processes of a machine share `time.monotonic`, so the ends may be compared.
    """

    settings: Settings
    accumulate: int
    channels: Channels = field(default_factory=Channels)
    steps: dict[int, float] = field(default_factory=dict)
    flushes: list[float] = field(default_factory=list)
    used: list[dict[str, float]] = field(default_factory=list)

    def stepped(self, step: int) -> None:
        self.steps[step] = time.monotonic()

    def flushed(self, step: int) -> None:
        self.flushes.append(time.monotonic())
        self.used.append(self._usage())

    def result(self) -> dict[str, Any]:
        first = self.settings.warm_up // self.accumulate + 1
        last = (self.settings.warm_up + self.settings.measured) // self.accumulate - 1
        before, after = self.used
        change = {name: after[name] - before[name] for name in before}
        other_s = change["process_cpu_s"] - change["main_cpu_s"]
        count = self.settings.measured
        return {
            "interior_s": self.steps[last] - self.steps[first],
            "interior_microbatches": (last - first) * self.accumulate,
            "flushes": self.flushes,
            "segment_microbatches": count,
            "wait_ms": change["wait_s"] * 1e3 / count,
            "main_cpu_ms": change["main_cpu_s"] * 1e3 / count,
            "other_threads_cpu_ms": other_s * 1e3 / count,
            "page_faults": change["faults"] / count,
        }

    def _usage(self) -> dict[str, float]:
        ends = (
            self.channels.from_child,
            self.channels.to_child,
            self.channels.from_parent,
            self.channels.to_parent,
        )
        return {
            "wait_s": sum(end.wait_s for end in ends if end is not None),
            "main_cpu_s": time.thread_time(),
            "process_cpu_s": time.process_time(),
            "faults": float(page_faults()),
        }
