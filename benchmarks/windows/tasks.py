"""On which networks and data are windows measured?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """An experiment of `conf/`, with what is measured of it here."""

    about: str
    experiment: str
    file: str | None = None
    """The option of the benchmark that says where its data is."""
    words: tuple[str, ...] = ()
    """What else `mach train` is told, for the chain and for networks alone."""
    samples: str = "samples"
    """What its samples are called."""
    validation: int = 2000
    """Training samples kept back from everybody."""
    step: int = 1
    """A network's width is a multiple of it."""
    cascades: bool = True
    """Text has no confidence of a sample: `mach cascade` refuses it."""
    consolidation: dict[str, Any] = field(default_factory=dict)
    """What `mach consolidate` is told, where that was better on validation than what it does of
    itself (benchmarks/accuracy/LOG.md)."""


SHIFTED = ("data.augment=crop", "data.padding=2")
"""Images are shifted by up to two pixels."""

TASKS = {
    "mnist1d": Task("mnist1d", "mnist1d"),
    # 2,000 samples of MNIST cannot tell its windows apart; 10,000 are what is usually kept back.
    "mnist": Task("MNIST", "mnist", "mnist", SHIFTED, validation=10_000),
    "mnist-narrow": Task(
        "MNIST, a quarter of the width", "mnist", "mnist", (*SHIFTED, "model.width=32")
    ),
    "gpt": Task(
        "Tiny Shakespeare",
        "gpt-shakespeare",
        "text",
        samples="windows of 128 bytes",
        validation=500,
        step=8,  # two features for each of the 4 heads
        cascades=False,
        consolidation={"weight": 0.9, "temperature": 1.0, "muon_lr": 0.04, "lr": 0.008},
    ),
}
