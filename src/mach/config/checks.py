"""Which values are refused, and what is said then?"""

from __future__ import annotations

from mach.errors import ConfigError

_MOST_SEED = 2**63 - 1
"""What eight bytes with a sign hold; torch takes no more than eight."""
LONGEST_S = 366 * 86400.0
"""A year. Beyond some hundred of them the system's own clocks overflow."""


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


def check_seed(key: str, value: int) -> None:
    within(key, value, 0, _MOST_SEED)


def check_deadline(key: str, value_s: float) -> None:
    """Refuse seconds that nobody can wait."""
    if not 0 < value_s <= LONGEST_S:  # also refuses nan
        raise ConfigError(
            f"{key}: expected seconds above 0, at most {LONGEST_S:.0f}; got {value_s:g}"
        )


def check_named(key: str, value: str | None) -> None:
    """Refuse an empty name, which would be the working directory."""
    if value is not None and not value.strip():
        raise ConfigError(
            f"{key}: expected a folder; got an empty name, as of a variable of the shell that is "
            f"not set. Say {key}=FOLDER, or leave {key} out."
        )
