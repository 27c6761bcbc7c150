"""What is said where memory runs out?

torch and numpy say it each in their own way, and some of them with an error that has many meanings.
torch is not imported: who has no use for it, as much of `mach`, asks here, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mach.errors import OutOfMemoryError

OF_A_RUN = (
    "Set a smaller microbatch_size, model.checkpointing=true, replay=recompute or more components, "
    "or take a smaller model; mach plan tells what each needs."
)
"""What to do about it, where a run is trained."""

OF_A_MODEL = "Take less at once, with a smaller batch, or a smaller model."
"""What to do about it elsewhere."""

_RAN_OUT = re.compile(
    r"out of memory|can't allocate memory|bad_alloc|ALLOC_FAILED"
    r"|Storage size calculation overflowed"
)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?([KMGT]iB|bytes)", re.IGNORECASE)
_GIB = {"bytes": 2**-30, "KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 2.0**10}


@contextmanager
def told(advice: str) -> Iterator[None]:
    """Memory that runs out in here ends it with one sentence.

    Args:
        advice: what to do about it.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if not isinstance(error, MemoryError) and not _RAN_OUT.search(said):
            raise
        where = " of the GPU" if "CUDA" in said else ""
        raise OutOfMemoryError(
            f"memory{where}: expected room for {_asked(said)}; it has run out. {advice}"
        ) from error


def _asked(said: str) -> str:
    found = _ASKED.search(said)
    if found is None:
        return "more"
    return f"{float(found[1]) * _GIB[found[2]]:,.3g} GiB more"
