"""Where do the values of a run come from: what the experiment has, a choice of the method's own, or
that of another method?

What a method was tried with on the validation split is among its rows. A method that nothing was
tried of may have been run all the same with what was chosen for another one; and one that was tuned
with what the experiment has, beside its own choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grid import METHOD, TUNING
from rows import chain_changes, choice, of
from stored import Row
from tuning import ASKED, GRIDS, GUESSED, MIXED, SLOWED, first_of

CONF, TUNED = "as in `conf/`", "tuned"


class Origins:
    """Of the values of all runs."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """
        Args:
            rows: all there are, those of tuning too.
        """
        self._tried: dict[tuple[str, str], set[frozenset[str]]] = {}
        for row in of(rows, kind=TUNING):
            mine = self._tried.setdefault((row["task"], row["method"]), set())
            mine.add(_changed(row))
        self._run: dict[tuple[str, str], set[frozenset[str]]] = {}
        for row in of(rows, kind=METHOD):
            self._run.setdefault((row["task"], row["method"]), set()).add(_changed(row))

    def was_tuned(self, row: Row) -> bool:
        """Whether anything was tried of a run's method."""
        return (row["task"], row["method"]) in self._tried

    def of(self, row: Row) -> str:
        """`CONF`, `TUNED`, or whose values a run has."""
        here = row["task"], row["method"]
        if not choice(row):
            return CONF
        mine = _changed(row)
        if self.was_tuned(row) and mine in self._tried[here]:
            own = self._run.get(here, set()) - {frozenset()}
            return CONF if not mine and own else TUNED
        lender = next((who for who in self._tried if self._chose(who, row["task"], mine)), None)
        return f"values of `{lender[1]}`" if lender else "values of another method"

    def _chose(self, who: tuple[str, str], task: str, changed: frozenset[str]) -> bool:
        tried, run = self._tried[who], self._run.get(who, set())
        return who[0] == task and changed in tried and changed in run

    def of_all(self, rows: Iterable[Row]) -> str:
        """Of runs with one choice."""
        return ", ".join(sorted({self.of(row) for row in rows}))


def _changed(row: Row) -> frozenset[str]:
    """What differs from what the experiment has anyway."""
    begin = {**GRIDS[row["task"]], **SLOWED, **ASKED, **GUESSED, **MIXED}
    given = chain_changes(row)
    return frozenset(given) - frozenset(first_of(begin))
