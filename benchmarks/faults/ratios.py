"""What follows from the measurements of a section: ratios within a round, and what was lost?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_QUIET = 1.1
"""Most that the undisturbed runs of a quiet machine differ by, from one round to another."""


def is_quiet(section: dict[str, Any]) -> bool:
    """Whether the undisturbed runs of all rounds were about as fast as each other."""
    for rates in zip(*(undisturbed(one, "rate") for one in section["rounds"]), strict=True):
        if max(rates) > _QUIET * min(rates):
            return False
    return True


def kept(section: dict[str, Any], of: str) -> dict[tuple[int, int], list[float]]:
    """Steps/s of a survivor while another is dead or slow, by victim and survivor.

    Args:
        of: before (its own), or undisturbed (its own in all of that run of the same round).
    """
    found: dict[tuple[int, int], list[float]] = {}
    for victim, k, own, calm in survivors(section):
        other = own["before"] if of == "before" else calm["rate"]
        found.setdefault((victim, k), []).append(own["during"] / other)
    return found


def survivors(section: dict[str, Any]) -> Iterator[tuple[int, int, Any, Any]]:
    """Victim, survivor, what was measured of it, and in the undisturbed run."""
    for one in section["rounds"]:
        for run in one["victims"]:
            pairs = zip(run["components"], one["undisturbed"], strict=True)
            for k, (own, calm) in enumerate(pairs):
                if k != run["victim"]:
                    yield run["victim"], k, own, calm


def victims(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every run in which a component was disturbed."""
    for one in section["rounds"]:
        yield from one["victims"]


def undisturbed(one: dict[str, Any], key: str) -> list[float]:
    """A number of each component in the undisturbed run of a round."""
    return [component[key] for component in one["undisturbed"]]


def of_no_latency(section: dict[str, Any], variant: str) -> dict[str, list[float]]:
    """Of each latency but none: speed over that without latency in the same round."""
    found: dict[str, list[float]] = {}
    for one in section["rounds"]:
        for latency in one[variant]:
            if latency != "0":
                ratio = slowest(one[variant][latency]) / slowest(one[variant]["0"])
                found.setdefault(latency, []).append(ratio)
    return found


def slowest(measured: dict[str, Any]) -> float:
    """Microbatches/s of a chain: its slowest component's."""
    return min(float(one["microbatches_per_s"]) for one in measured["components"])


def points_lost(pair: dict[str, Any]) -> float:
    """Top-exit accuracy that a death cost, in points."""
    return float(pair["undisturbed"]["accuracy"] - pair["killed"]["accuracy"]) * 100


def grown(section: dict[str, Any], key: str) -> Iterator[float]:
    """By how much, of every process that is compared with itself or with another life of it.

    Args:
        key: private_mib, fds or threads.
    """
    for kind in ("lasting", "lives"):
        for changes in section[kind].values():
            if changes[key] is not None:
                yield changes[key][1] - changes[key][0]
    for growths in section["within"].values():
        yield from growths[key]


def later_s(section: dict[str, Any]) -> list[float]:
    """How much later than a gang the supervised launcher began, pair by pair."""
    pairs = section["rounds"]
    return [one["supervised"]["start_s"] - one["gang"]["start_s"] for one in pairs]
