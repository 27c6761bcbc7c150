"""Which optional packages are not installed?"""

from __future__ import annotations

from importlib.util import find_spec


def missing(*packages: str) -> list[str]:
    """Those of some packages that cannot be imported.

    A mere folder of that name is none: Python takes one with data in it, as in `datasets/` where
    the command was typed, for a package without any code.
    """
    found = {package: find_spec(package) for package in packages}
    return [package for package, spec in found.items() if spec is None or spec.origin is None]
