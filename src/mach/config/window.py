"""Which part of a run does `window=j..i` mean?"""

from __future__ import annotations

from mach.errors import ConfigError


def bounds(window: str | None) -> tuple[int, int | None]:
    """First and last component; None is the top.

    Args:
        window: j..i. None: the whole chain.

    Raises:
        ConfigError: it is written otherwise.
    """
    if window is None:
        return 0, None
    first, dots, last = window.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal()):
        raise ConfigError(
            f"window: expected j..i, two numbers of components, as in 1..3; got {window!r}"
        )
    return int(first), int(last)
