"""Which values are refused, and what is said then?"""

from __future__ import annotations

from mach.errors import ConfigError


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise ConfigError(f"{key}: expected one of {', '.join(allowed)}; got {value!r}")


def at_least(key: str, value: float, low: float) -> None:
    if not value >= low:  # also refuses nan
        raise ConfigError(f"{key}: expected {low} or more; got {value}")


def within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key}: expected {low} to {high}; got {value}")
