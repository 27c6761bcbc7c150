"""How is a number written so that it can be read at a glance?"""

from __future__ import annotations


def short(count: float | None) -> str:
    """A count in three digits: 1,234,567 is 1.23 M."""
    if count is None:
        return "-"
    for unit in ("", " k", " M", " G", " T"):
        if count < 999.5 or unit == " T":
            break
        count /= 1000
    digits = 0 if not unit or count >= 100 else 1 if count >= 10 else 2
    return f"{count:,.{digits}f}{unit}"


def fixed(value: float | None, digits: int | None = None) -> str:
    """A number with so many digits; without, as many as it needs, one at most."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value == round(value) or value >= 1000 else 1
    return f"{value:,.{digits}f}"


def several(number: int, thing: str) -> str:
    """So many things: 1 value, 2 values."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3,725 is 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
