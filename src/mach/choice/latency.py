"""How long does a model take to answer, on this machine as it is now?

Models take turns, a few calls each, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median, quantiles

import torch
from torch import nn

from mach.choice.frontier import Latency
from mach.inference import computed_together
from mach.rank import available_cores
from mach.signature import Signature

_ROUNDS = 8
_CALLS = 8
"""Of a model in a round."""
_WARM_UP = 2
_LONGEST_S = 0.1
"""A model that is slow is called less often in a round, but once."""


def latencies(models: Sequence[nn.Module], signature: Signature) -> list[tuple[Latency, ...]]:
    """Of each model: for one sample and for 64, or as many windows of a large vocabulary as are
    computed together; with one thread and with all."""
    before = torch.get_num_threads()
    batches = sorted({1, computed_together(signature.logits)})
    settings = [(batch, threads) for threads in threads_measured() for batch in batches]
    try:
        columns = [_measure(models, signature, *setting) for setting in settings]
    finally:
        torch.set_num_threads(before)
    return [tuple(row) for row in zip(*columns, strict=True)]


def threads_measured() -> list[int]:
    """One, and as many as there are cores."""
    return sorted({1, len(available_cores())})


def _measure(
    models: Sequence[nn.Module], signature: Signature, batch: int, threads: int
) -> list[Latency]:
    torch.set_num_threads(threads)
    x = torch.zeros((batch, *signature.shape), dtype=signature.sample.dtype)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            for _ in range(_WARM_UP):
                model(x)
        for _ in range(_ROUNDS):
            for model, its in zip(models, times, strict=True):
                its += _calls(model, x)
    return [Latency(batch, threads, median(its), _p95(its)) for its in times]


def _calls(model: nn.Module, x: torch.Tensor) -> list[float]:
    """Milliseconds of some calls, one after the other."""
    found: list[float] = []
    end = time.perf_counter() + _LONGEST_S
    while len(found) < _CALLS and (not found or time.perf_counter() < end):
        began = time.perf_counter()
        model(x)
        found.append(1e3 * (time.perf_counter() - began))
    return found


def _p95(times: list[float]) -> float:
    return quantiles(times, n=20, method="inclusive")[-1]
