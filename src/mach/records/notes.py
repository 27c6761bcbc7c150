"""What was wrong with what was read, said once and counted?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Note:
    """One kind of problem in one place."""

    where: str
    """The file or folder."""
    problem: str
    """What is wrong, and what was done about it."""
    count: int

    def __str__(self) -> str:
        times = f" ({self.count:,} times)" if self.count > 1 else ""
        return f"{self.where}: {self.problem}{times}"


class Notes:
    """Problems in the order they were met, the same one in the same place counted."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, where: Path | str, problem: str, count: int = 1) -> None:
        """Count a problem; a `count` of 0 is none."""
        if count:
            key = (str(where), problem)
            self._counts[key] = self._counts.get(key, 0) + count

    def __iter__(self) -> Iterator[Note]:
        for (where, problem), count in self._counts.items():
            yield Note(where, problem, count)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def total(self) -> int:
        """How often anything was wrong."""
        return sum(self._counts.values())
