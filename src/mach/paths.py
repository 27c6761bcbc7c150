"""What is said of a path that the system refuses?

It may be too long, or lie in a folder that nobody else may look into: of such a one Python raises
an error, where of one that is not there it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mach.errors import MachError

_SHOWN = 300
"""Characters; what is too long for a name may be a text."""


@contextmanager
def looked_at(who: str, kind: type[MachError], then: str = "") -> Iterator[None]:
    """Turn what Python raises of a path into one sentence.

    Args:
        who: what was given.
        kind: of the error that is raised instead.
        then: what the user can do.
    """
    shown = who if len(who) <= _SHOWN else f"{who[:_SHOWN]}.."
    try:
        yield
    except OSError as error:
        said = f"{shown}: expected a path that can be looked at; {error.strerror or error}. {then}"
        raise kind(said.rstrip()) from error
    except RuntimeError as error:  # of expanduser
        raise kind(
            f"{shown}: expected a path; got a ~ that is nobody's home. Write ./ before a name that "
            "begins so."
        ) from error
