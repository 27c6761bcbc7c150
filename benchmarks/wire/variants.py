"""What is trained, in which variants, and what is kept of a run?

Each run is a whole chain in one process (the oracle), whose numbers are those of a run of
processes, bit by bit.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from mach.channels import Sender
from mach.config import Config
from mach.data import open_dataset
from mach.launcher.compose import compose
from mach.trainer import Oracle
from mach.trainer.oracle import Quiet

Overrides = tuple[str, ...]
"""Of `mach train`."""

_WIRES = ("float32", "bfloat16 wire", "int8 wire", "compile")
VARIANTS: dict[str, Overrides] = {
    "float32": (),
    "bfloat16 wire": ("transport.wire_dtype=bfloat16",),
    "int8 wire": ("transport.wire_dtype=int8",),
    "bf16 autocast": ("optim.precision=bf16",),
    "bf16 autocast, int8 wire": ("optim.precision=bf16", "transport.wire_dtype=int8"),
    "checkpointing": ("model.checkpointing=true",),
    "compile": ("model.compile=true",),
}
"""compile computes the same in another order: how far it ends from float32 says what the slightest
rounding does to so short a run."""


@dataclass(frozen=True)
class Network:
    """One task."""

    about: str
    file: str
    """Which option names the data's: mnist, fashion or text; empty for none."""
    overrides: Overrides
    steps: int
    variants: Sequence[str] = tuple(VARIANTS)


_SMALL = ("components=4", "delay=1", "accumulate=4", "model.width=128")
NETWORKS = {
    "digits": Network("MLP of width 128, 4 blocks, digits", "", _SMALL, 50),
    "mnist": Network(
        "MLP of width 128, 4 blocks, MNIST",
        "mnist",
        (*_SMALL, "data=npz", "eval.samples=2000"),
        100,
    ),
    "resnet": Network(
        "ResNet-20 of width 8, 3 components, 10,000 images of Fashion-MNIST",
        "fashion",
        ("experiment=resnet-fashion",),
        300,
        _WIRES,
    ),
    "gpt": Network(
        "GPT of 4 blocks, width 128, context 128, Tiny Shakespeare",
        "text",
        ("experiment=gpt-shakespeare",),
        300,
        _WIRES,
    ),
}


class Ear(Quiet):
    """Hears the losses of a component, and what it has sent by its last step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.sender: Sender | None = None
        self.bytes_sent, self.ended_s = 0, 0.0

    def logged(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.losses.append(record["loss"])

    def flushed(self, step: int, last: bool) -> None:
        if last:  # the evaluation is still to come
            self.ended_s = time.perf_counter()
            self.bytes_sent = self.sender.bytes_sent if self.sender is not None else 0


@dataclass(frozen=True)
class Asked:
    """Which runs of a network."""

    network: str
    file: str | None
    seeds: Sequence[int]
    variants: Sequence[str] | None
    """None: all that the network has."""
    quick: bool
    jobs: int
    """Runs side by side, on one thread each."""


def train(asked: Asked, before: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train variants of a network from every seed, in turns.

    Args:
        before: runs that have been measured; they are not repeated.

    Yields:
        What is known after each run, the newest last.
    """
    network = NETWORKS[asked.network]
    steps = 8 if asked.quick else network.steps
    runs = [run for run in before if run["steps"] == steps]
    known = {(run["variant"], run["seed"]) for run in runs}
    variants = [one for one in network.variants if one in (asked.variants or network.variants)]
    missing = [(v, seed) for seed in asked.seeds for v in variants if (v, seed) not in known]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, context, torch.set_num_threads, (1,)) as pool:
        running = {
            pool.submit(_run, asked.network, variant, asked.file, seed, steps): (variant, seed)
            for variant, seed in missing
        }
        for done in as_completed(running):
            variant, seed = running[done]
            runs.append({"variant": variant, "seed": seed, "steps": steps, **done.result()})
            yield {"about": network.about, "steps": steps, "runs": runs}


def _config(network: Network, variant: str, file: str | None, seed: int, steps: int) -> Config:
    usual = (f"seed={seed}", f"steps={steps}", "student.enabled=false", "report.every=1")
    where = (f"data.path={file}",) if file else ()
    return compose([*network.overrides, *usual, *where, *VARIANTS[variant]])


def _run(name: str, variant: str, file: str | None, seed: int, steps: int) -> dict[str, Any]:
    config = _config(NETWORKS[name], variant, file, seed, steps)
    ears = [Ear() for _ in range(config.components)]
    began_s = time.perf_counter()
    oracle = Oracle(config, open_dataset(config.data), list(ears))
    ears[0].sender = oracle.trainers[0].worker.channels.to_parent
    ready_s = time.perf_counter()
    top = oracle.run()["chain"][-1]
    last = ears[-1].losses[-max(1, config.steps // 5) :]
    return {
        "loss": sum(last) / len(last),
        "test_loss": top["loss"],
        "accuracy": top.get("accuracy"),
        "bits_per_byte": top.get("bits_per_byte"),
        "bytes": ears[0].bytes_sent / config.microbatches,
        "step_ms": (max(ear.ended_s for ear in ears) - ready_s) * 1e3 / config.steps,
        "start_s": ready_s - began_s,
    }
