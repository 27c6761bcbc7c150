"""Where does a run's store listen, and which run in it is ours?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.errors import ConfigError


@dataclass(frozen=True)
class StoreAddress:
    """Where a supervisor's store listens, and which run in it is ours."""

    host: str
    port: int
    run: str

    @staticmethod
    def parse(text: str) -> StoreAddress:
        """Read HOST:PORT/RUN."""
        place, _, run = text.partition("/")
        host, _, port = place.rpartition(":")
        if not (host and port.isdecimal() and run):
            raise ConfigError(f"--store: expected HOST:PORT/RUN; got {text!r}")
        return StoreAddress(host, int(port), run)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.run}"
