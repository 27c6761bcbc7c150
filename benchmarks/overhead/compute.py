"""What does a component compute, and how long does each part take by itself?"""

from __future__ import annotations

import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pair import Peer
from torch.nn import functional as F
from variants import Settings, Variant, synthetic

from mach.config import Config
from mach.data import Batches
from mach.optim import Optimizer
from mach.trainer import Assembly


class Alone:
    """A component's modules, one fixed microbatch, and a clock for each part."""

    def __init__(self, config: Config, k: int, device: torch.device) -> None:
        dataset = synthetic()
        assembly = Assembly(config, dataset.task)
        self.top = k == config.components - 1
        self.component, _ = assembly.component(k, device)
        self.body, self.head = self.component.body, self.component.head
        modules = [self.body, self.head] if self.top else [self.body]
        named = torch.nn.ModuleList(modules).named_parameters()
        self.optimizer = Optimizer(named, config.optim, steps=1_000_000)
        self.x, self.y = Batches(dataset, 0, config.microbatch_size, device).train(0)
        shape = assembly.payloads()[0].shape
        self.inputs = self.x if k == 0 else torch.randn(shape).requires_grad_()
        self.gradient = torch.randn(shape) / config.microbatch_size
        self.times_ms: dict[str, list[float]] = defaultdict(list)

    def run(self, seconds: float, accumulate: int) -> dict[str, Any]:
        """Compute for so long, with a step after every `accumulate` microbatches (0: none)."""
        self.times_ms.clear()
        count, started = 0, time.monotonic()
        cpu_s, faults = time.thread_time(), page_faults()
        while count == 0 or (accumulate and count % accumulate) or _since(started) < seconds:
            self.microbatch()
            count += 1
            if accumulate and count % accumulate == 0:
                with self._timed("step"):
                    self.optimizer.step(0)
        return {
            "seconds": _since(started),
            "microbatches": count,
            "parts_ms": self.medians(),
            "main_cpu_ms": (time.thread_time() - cpu_s) * 1e3 / count,
            "page_faults": (page_faults() - faults) / count,
        }

    def microbatch(self) -> None:
        """Forward and backward, adding to the gradients."""
        with self._timed("forward"):
            h = self.body(self.inputs)
        with self._timed("backward"):
            if self.top:
                F.cross_entropy(self.head(h), self.y).backward()  # type: ignore[no-untyped-call]
            else:
                torch.autograd.backward([h], [self.gradient])

    def other_parts(self, seconds: float) -> dict[str, float]:
        """What replay and students add, amid ordinary microbatches."""
        self.times_ms.clear()
        started = time.monotonic()
        while not self.times_ms or _since(started) < seconds:
            self.microbatch()
            with self._timed("look"), torch.no_grad():
                self.body(self.inputs)
            with self._timed("stash copy"):  # as mach.component.stash: once per version
                copies = [parameter.detach().clone() for parameter in self.body.parameters()]
            del copies
            if self.component.student is not None:
                with self._timed("distil"):
                    self.component.distil(self.x, self.inputs.detach(), self.y)
        return self.medians()

    def medians(self) -> dict[str, float]:
        """Of every part, in ms. A student steps every M-th time only, so its mean counts."""
        return {
            part: (statistics.mean if part == "distil" else statistics.median)(times)
            for part, times in self.times_ms.items()
        }

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.times_ms[part].append((time.perf_counter() - started) * 1e3)


def run_parts(peer: Peer, key: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    """Time of every part of this component's work, both cores busy."""
    alone = Alone(settings.config(variant), peer.rank, peer.device)
    alone.run(settings.ideal_s / 4, variant.accumulate)
    peer.barrier()
    found = alone.run(settings.ideal_s / 2, variant.accumulate)["parts_ms"]
    others = alone.other_parts(settings.ideal_s / 2)
    return {"parts_ms": {**others, **found}}


def page_faults() -> int:
    """Pages this process was given so far: memory that was returned to the kernel comes back so."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _since(started: float) -> float:
    return time.monotonic() - started
