"""How is a large number written so that it can be read at a glance?"""

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
