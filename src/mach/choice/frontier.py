"""Which models are on the Pareto frontier, and which one meets a wish?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from mach.config import ModelsConfig
from mach.config.window import Name
from mach.errors import ConfigError


@dataclass(frozen=True)
class Latency:
    """Of one call, in milliseconds."""

    batch: int
    threads: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Candidate:
    """One model of a run."""

    first: int
    last: int
    metric: str
    """accuracy, bits_per_byte or bits_per_token."""
    value: float | None
    """None: not known, as when a component is gone, or diverged."""
    loss: float | None
    params: int
    flops: int
    """Of a sample."""
    bytes: int
    """On disk, as safetensors."""
    latencies: tuple[Latency, ...] = ()
    """The first is of one sample with one thread."""
    consolidated: bool = False
    """Whether it is what `mach consolidate` has made of the window."""

    @property
    def quality(self) -> float:
        """Larger is better; of an unknown value the least."""
        if self.value is None or not isfinite(self.value):
            return float("-inf")
        return self.value if self.metric == "accuracy" else -self.value

    def cost(self, kind: str) -> float:
        """flops, params or latency."""
        if kind == "latency":
            return self.latencies[0].median_ms
        return float(getattr(self, kind))

    @property
    def name(self) -> Name:
        """What it is called."""
        return Name(self.first, self.last, self.consolidated)


def frontier(candidates: Sequence[Candidate], cost: str) -> list[bool]:
    """Whether each is on the frontier: no other is at least as good and at most as costly, and in
    one of both strictly better."""

    def beats(a: Candidate, b: Candidate) -> bool:
        better = a.quality >= b.quality and a.cost(cost) <= b.cost(cost)
        return better and (a.quality > b.quality or a.cost(cost) < b.cost(cost))

    known = [c for c in candidates if isfinite(c.quality)]
    return [isfinite(c.quality) and not any(beats(o, c) for o in known) for c in candidates]


def wishes(config: ModelsConfig) -> bool:
    """Whether one model is to be chosen."""
    keys = ("max_latency_ms", "max_params", "max_flops", "min_accuracy", "max_bits_per_byte")
    return any(getattr(config, key) is not None for key in keys)


def choose(candidates: Sequence[Candidate], config: ModelsConfig) -> Candidate:
    """The best model within the limits; the cheapest where a quality is asked for.

    Raises:
        ConfigError: none is; says which limit is the nearest to be met.
    """
    limits = _limits(candidates, config)
    fit = [c for c in candidates if all(value(c) <= most for _, value, most in limits)]
    if not fit:
        nearest = [f"{name}: {abs(min(map(value, candidates))):.6g}" for name, value, _ in limits]
        raise ConfigError(
            f"mach models: expected a model within the limits; none of {len(candidates)} is. The "
            f"best of each taken alone: {', '.join(nearest)}. Loosen one."
        )
    if config.min_accuracy is not None or config.max_bits_per_byte is not None:
        return min(fit, key=lambda c: (c.cost(config.cost), -c.quality))
    return max(fit, key=lambda c: (c.quality, -c.cost(config.cost)))


def _limits(candidates: Sequence[Candidate], config: ModelsConfig) -> list[tuple[str, Any, float]]:
    """Name, value of a model and the most it may be, of each limit that is set."""
    metric = candidates[0].metric
    found: list[tuple[str, Any, float]] = []
    if config.min_accuracy is not None:
        _same_metric("min_accuracy", "accuracy", metric)
        found.append(("min_accuracy", lambda c: -c.quality, -config.min_accuracy))
    if config.max_bits_per_byte is not None:
        _same_metric("max_bits_per_byte", "bits_per_byte", metric)
        found.append(("max_bits_per_byte", lambda c: -c.quality, config.max_bits_per_byte))
    most_of = {"max_latency_ms": "latency", "max_params": "params", "max_flops": "flops"}
    for key, kind in most_of.items():
        most = getattr(config, key)
        if most is not None:
            found.append((key, lambda c, kind=kind: c.cost(kind), most))
    return found


def _same_metric(key: str, wanted: str, metric: str) -> None:
    if metric != wanted:
        other = "min_accuracy" if metric == "accuracy" else "max_bits_per_byte"
        hint = f" Set {other}." if metric != "bits_per_token" else ""
        raise ConfigError(
            f"{key}: expected a run whose models have {wanted}; these have {metric}.{hint}"
        )
