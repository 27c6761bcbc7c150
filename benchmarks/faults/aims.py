"""Is what was measured good enough?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean, median
from typing import Any

from cells import Row
from growth import is_falling
from ratios import grown, is_quiet, kept, later_s, of_no_latency, points_lost, survivors, victims

_LEAST, _PAUSE_MS, _BACK_S, _LATER_S, _POINTS = 0.95, 200.0, 5.0, 2.0, 0.5
"""Steps/s kept; longest pause beside a microbatch; time to come back; later than a gang's start;
accuracy."""
_MOST_MIB, _MOST_COUNT = 5.0, 2.0
"""What a process may differ by, late from early, and still not have grown: with a death every 20 s
even a little that is lost at each would be more."""


def aims(name: str, section: dict[str, Any]) -> list[Row]:
    """What a section says of its aims: what, measured, aim, met."""
    return list(_AIMS[name](section))


def _aim(
    what: str, value: float, digits: int, sign: str, bound: float, trusted: bool = True
) -> Row:
    holds = value >= bound if sign == "≥" else value <= bound
    met = ("yes" if holds else "**no**") if trusted else "machine not quiet"
    return [what, f"{value:.{digits}f}", f"{sign} {bound:g}", met]


def _yes(what: str, value: str, aim: str, holds: bool) -> Row:
    return [what, value, aim, "yes" if holds else "**no**"]


def _deaths_aims(section: dict[str, Any]) -> Iterator[Row]:
    yield from _kept(section, "one killed")
    pauses = [one["pause_ms"] for _, _, one, _ in survivors(section)]
    bound = _PAUSE_MS + section["settings"]["pace_ms"]
    trusted = is_quiet(section)
    what = "one killed: longest pause of any other, ms (200 and a microbatch)"
    yield _aim(what, max(pauses), 0, "≤", bound, trusted)
    ages = [one["return"]["age_s"] for one in victims(section)]
    what = "one killed: s from the start of its new process until it trains, connected; longest"
    yield _aim(what, max(ages), 1, "≤", _BACK_S, trusted)


def _slow_aims(section: dict[str, Any]) -> Iterator[Row]:
    factor = section["settings"]["factor"]
    yield from _kept(section, f"one {factor:g} times slower")


def _kept(section: dict[str, Any], what: str) -> Iterator[Row]:
    trusted = is_quiet(section)
    for kind, words in (("before", "before"), ("undisturbed", "in the undisturbed run")):
        worst = min(median(ratios) for ratios in kept(section, kind).values())
        text = f"{what}: steps/s of the others, of their own {words}; the worst pair's median"
        yield _aim(text, worst, 3, "≥", _LEAST, trusted)


def _latency_aims(section: dict[str, Any]) -> Iterator[Row]:
    for variant in ("free", "delayed"):
        ratios = of_no_latency(section, variant)
        worst = min(ratios, key=lambda latency: median(ratios[latency]))
        what = f"latency, {variant}: steps/s, of those at 0 ms; worst ({worst} ms)"
        yield _aim(what, median(ratios[worst]), 3, "≥", _LEAST)


def _start_aims(section: dict[str, Any]) -> Iterator[Row]:
    what = "supervised start, s later than a gang's; median of the pairs"
    yield _aim(what, median(later_s(section)), 1, "≤", _LATER_S)


def _accuracy_aims(section: dict[str, Any]) -> Iterator[Row]:
    lost = [points_lost(pair) for pair in section["seeds"]]
    what = f"one killed: top-exit accuracy lost on MNIST, points; worst of {len(lost)} seeds"
    yield _aim(what, max(lost), 2, "≤", _POINTS)
    yield _aim("the same, mean of the seeds", mean(lost), 2, "≤", _POINTS)


def _soak_aims(section: dict[str, Any]) -> Iterator[Row]:
    for key, words, most in (
        ("private_mib", "MiB of memory", _MOST_MIB),
        ("fds", "file descriptors", _MOST_COUNT),
        ("threads", "threads", _MOST_COUNT),
    ):
        changes = list(grown(section, key))
        if changes:
            yield _aim(f"soak: growth of any process, {words}", max(changes), 1, "≤", most)
    kills, deaths, returns = (section[key] for key in ("kills", "deaths", "returns"))
    lost = len(section["lost"])
    holds = lost == 0 and kills == deaths == returns and section["left_behind"] == 0
    text = f"{lost} of {deaths} deaths"
    yield _yes("soak: components lost", text, "0", holds)
    falling = sum(is_falling(losses) for losses in section["losses"])
    all_of_them = len(section["losses"])
    text = f"{falling} of {all_of_them}"
    yield _yes("soak: components whose loss fell to the end", text, "all", falling == all_of_them)


_AIMS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "deaths": _deaths_aims,
    "slow": _slow_aims,
    "latency": _latency_aims,
    "start": _start_aims,
    "accuracy": _accuracy_aims,
    "soak": _soak_aims,
}
