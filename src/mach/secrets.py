"""What must never stand in what is handed around?

Values of the environment that are keys to something, values under names that say so, and what
stands before the @ of an address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "•••"

_NAME = re.compile(
    r"(^|\.)((\w*_)?(api_?key|password|passwd|secret|credentials?)"
    r"|((access|api|auth|bearer|hf|id|identity|wandb)_)?token)$",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(\w://)[^/\s@]+@")
_SHORTEST = 8
"""A shorter value is more likely a word that stands on the page by itself."""


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Values that must not be shown, the longest first."""
    found = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST and re.search(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", name.upper())
    }
    return sorted(found, key=len, reverse=True)


def without(text: str, secrets: list[str]) -> str:
    """The text with every secret covered."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)


def covered(key: str, value: Any) -> Any:
    """A value of a config under its dotted key, with every secret in it covered."""
    if value is not None and _NAME.search(key):
        return HIDDEN
    if isinstance(value, dict):
        return {name: covered(str(name), item) for name, item in value.items()}
    if isinstance(value, list):
        return [covered("", item) for item in value]
    return without(value, []) if isinstance(value, str) else value


def value_of(key: str, value: Any) -> str:
    """How a value of a config is shown under its dotted key."""
    return _shown(covered(key, value))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
