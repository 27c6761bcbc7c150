"""Which model of a run does `window=` mean?

j..i                 the window that begins with student j, or as 0..i the chain
consolidated/j..i    what `mach consolidate` has made of it
"""

from __future__ import annotations

from dataclasses import dataclass

from mach.errors import ConfigError

CONSOLIDATED = "consolidated"
"""Also the folder of a run that has them."""


@dataclass(frozen=True)
class Name:
    """Of one model of a run."""

    first: int
    last: int
    consolidated: bool = False

    def __str__(self) -> str:
        """What `window=` says for it."""
        window = f"{self.first}..{self.last}"
        return f"{CONSOLIDATED}/{window}" if self.consolidated else window

    @property
    def title(self) -> str:
        """`window 1..3`, `chain 0..3` or `consolidated 1..3`."""
        kind = CONSOLIDATED if self.consolidated else "window" if self.first else "chain"
        return f"{kind} {self.first}..{self.last}"


def name_of(window: str | None, top: int = 0) -> Name:
    """The model that is named.

    Args:
        window: as above. None: the whole chain.
        top: the run's last component.

    Raises:
        ConfigError: it is written otherwise.
    """
    if window is None:
        return Name(0, top)
    kind, slash, own = window.rpartition("/")
    first, dots, last = own.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal()) or kind != CONSOLIDATED * len(slash):
        raise ConfigError(
            "window: expected j..i, two numbers of components, as in 1..3, or "
            f"{CONSOLIDATED}/j..i; got {window!r}"
        )
    return Name(int(first), int(last), consolidated=bool(slash))
