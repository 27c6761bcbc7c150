"""Train one deep network as a chain of components that never wait for each other."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mach.api import fit, load

__all__ = ["fit", "load"]


def __getattr__(name: str) -> Any:
    # Not imported at once: a rank imports mach twice, and `mach --help` is waited for.
    if name in __all__:
        from mach import api

        return getattr(api, name)
    raise AttributeError(f"module 'mach' has no attribute {name!r}")
