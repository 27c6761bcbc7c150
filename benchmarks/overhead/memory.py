"""How much memory does a component take, against what it must hold; and does it stay at that?"""

from __future__ import annotations

import ctypes
import gc
import os
from dataclasses import replace
from typing import Any

import torch
from member import Member, join
from pair import Peer, Report
from torch import Tensor, nn
from variants import Settings, Variant, order

from mach.channels.base import frame_bytes
from mach.config import Config
from mach.schedule import Action, Backward, Forward, Step

MIB = 1 << 20


def memory(peer: Peer, report: Report, variant: Variant, settings: Settings) -> None:
    """Report the growth of this process over a run, beside the sum of what it must hold.

    The baseline is this process after a run of a tiny network: imports, channels, threads and the
    libraries' own buffers are in it.
    """
    train(peer, "tiny", variant, replace(settings, width=16, depth=2, microbatch_size=4))
    gc.collect()
    _trim()
    baseline = rss()
    found = train(peer, "real", variant, settings)
    grown = found["peak_rss"] - baseline
    report(
        {
            "baseline_mib": baseline / MIB,
            "grown_mib": grown / MIB,
            "expected_mib": {name: size / MIB for name, size in found["expected"].items()},
            "ratio": grown / sum(found["expected"].values()),
        }
    )


def constancy(
    peer: Peer, report: Report, variant: Variant, settings: Settings, at: list[int]
) -> None:
    """Report the resident memory after each number of microbatches in `at`."""
    total = replace(settings, warm_up=0, measured=max(at))
    found = train(peer, "long", variant, total, sample_at=at)
    report({"rss_mib": {str(b): size / MIB for b, size in found["samples"].items()}})


def train(
    peer: Peer,
    key: str,
    variant: Variant,
    settings: Settings,
    sample_at: list[int] | None = None,
) -> dict[str, Any]:
    """Train as a rank of `mach train` does, looking at the resident memory after every action."""
    config = settings.config(variant)
    program = order(config, peer.rank, settings.warm_up)
    member = join(peer, key, config, program)
    trainer = member.trainer
    peak, samples = 0, {}
    peer.barrier()
    while (action := trainer.next) is not None:
        trainer.advance()
        if sample_at is None:
            peak = max(peak, rss())
        elif isinstance(action, Backward) and action.microbatch + 1 in sample_at:
            samples[action.microbatch + 1] = rss()
    member.channels.close_up()
    return {"peak_rss": peak, "samples": samples, "expected": expected(config, member, program)}


def expected(config: Config, member: Member, program: list[Action]) -> dict[str, float]:
    """Bytes of everything that has to be held at the same time, by what it is."""
    component = member.component
    weights = [p for module in component.modules().values() for p in module.parameters()]
    x, _ = member.batches.train(0)
    bottom = member.channels.from_child is None
    inputs = x if bottom else torch.randn(member.chain[0].up.payload.shape).requires_grad_()
    graph, student_graph = _Saved(weights), _Saved(weights)
    with graph:
        component.head(component.body(inputs))
    if component.student is not None:
        with student_graph:
            guess = component.student.network(x)
            if config.student.task_weight > 0:
                component.head(component.body(guess))
    graphs, versions = in_flight(program, stash=config.replay == "stash")
    return {
        "weights": sum(p.nbytes for p in weights),
        "gradients": sum(p.nbytes for p in weights),
        "optimizer": sum(t.nbytes for o in member.optimizers.values() for t in o.state().values()),
        "stashed versions": versions * sum(p.nbytes for p in component.body.parameters()),
        "activations": graphs * graph.nbytes,
        "student's activations": student_graph.nbytes,
        "frames": sum(
            edge.credits * frame_bytes(edge.payload)
            for link in member.chain
            for edge in (link.up, link.down)
            if edge is not None
        ),
    }


def in_flight(program: list[Action], *, stash: bool) -> tuple[int, int]:
    """Most graphs, and most copies of the weights, that are held at a time."""
    graphs: dict[int, int | None] = {}  # microbatch -> version of the copy it runs on
    most_graphs = most_copies = version = 0
    copied = False  # the present version
    for action in program:
        match action:
            case Forward(b, staleness):
                if stash or staleness == 0:
                    graphs[b] = version if staleness else None
                    copied = copied or staleness > 0
            case Backward(b):
                graphs.setdefault(b, None)  # recomputed
            case Step():
                version, copied = version + 1, False
        copies = {v for v in graphs.values() if v is not None} | ({version} if copied else set())
        most_graphs, most_copies = max(most_graphs, len(graphs)), max(most_copies, len(copies))
        if isinstance(action, Backward):
            graphs.pop(action.microbatch)
    return most_graphs, most_copies


class _Saved:
    """Bytes that autograd saves for backward, each storage once, weights apart."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in weights}
        self._storages: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved)

    @property
    def nbytes(self) -> int:
        return sum(self._storages.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def rss() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - ten times as fast as Path
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    ctypes.CDLL(None).malloc_trim(0)
