"""What is trained, in which variants, and what is kept of a run?

Each run is a whole chain in one process (the oracle), whose numbers are those of a run of
processes, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mach.channels import Sender
from mach.config import Config
from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.trainer import Oracle
from mach.trainer.oracle import Quiet

COMPONENTS = 4


@dataclass(frozen=True)
class Network:
    """One task."""

    about: str
    data: str
    """digits, npz or text; the last two need a file."""
    values: Mapping[str, Any]
    steps: int
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of the data."""


NETWORKS = {
    "digits": Network(
        "MLP of width 128, 4 blocks, digits",
        "digits",
        {"model": {"name": "mlp", "width": 128}},
        50,
    ),
    "mnist": Network(
        "MLP of width 128, 4 blocks, MNIST",
        "npz",
        {"model": {"name": "mlp", "width": 128}, "eval": {"samples": 2000}},
        100,
    ),
    "resnet": Network(
        "ResNet-14 of width 8, MNIST",
        "npz",
        {"model": {"name": "resnet", "layers": 14, "width": 8}, "microbatch_size": 16},
        60,
    ),
    "gpt": Network(
        "GPT of 4 blocks, width 64, Tiny Shakespeare",
        "text",
        {"model": {"name": "gpt", "width": 64, "heads": 2}, "optim": {"muon_lr": 0.02}},
        50,
        {"context": 64, "test_samples": 256},
    ),
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "bfloat16 wire": {"transport": {"wire_dtype": "bfloat16"}},
    "int8 wire": {"transport": {"wire_dtype": "int8"}},
    "bf16 autocast": {"optim": {"precision": "bf16"}},
    "bf16 autocast, int8 wire": {
        "optim": {"precision": "bf16"},
        "transport": {"wire_dtype": "int8"},
    },
    "checkpointing": {"model": {"checkpointing": True}},
    "compile": {"model": {"compile": True}},
}
"""compile computes the same in another order: how far it ends from float32 says what the slightest
rounding does to so short a run."""


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


def train(
    name: str, file: str | None, seeds: list[int], quick: bool, before: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Train every variant of a network from every seed, in turns.

    Args:
        before: runs that have been measured; they are not repeated.

    Yields:
        What is known after each run.
    """
    network = NETWORKS[name]
    steps = 8 if quick else network.steps
    runs = [run for run in before if run["steps"] == steps]
    for seed in seeds:
        for variant in VARIANTS:
            if not any((run["variant"], run["seed"]) == (variant, seed) for run in runs):
                found = _run(_config(network, variant, file, seed, steps))
                runs.append({"variant": variant, "seed": seed, "steps": steps, **found})
                yield {"about": network.about, "steps": steps, "runs": runs}


def _config(network: Network, variant: str, file: str | None, seed: int, steps: int) -> Config:
    values: dict[str, Any] = {
        "components": COMPONENTS,
        "delay": 1,
        "accumulate": 4,
        "steps": steps,
        "seed": seed,
        "student": {"enabled": False},
        "report": {"every": 1},
        "data": {"name": network.data, **({"path": file} if file else {}), **network.more},
        **network.values,
    }
    for part, change in VARIANTS[variant].items():
        values[part] = {**values.get(part, {}), **change}
    return from_mapping(values)


def _run(config: Config) -> dict[str, Any]:
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
