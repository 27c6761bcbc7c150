"""What does a person who watches runs see? One row for each component, or one for each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mach.report.numbers import duration, fixed
from mach.report.state import RunState, number

_STYLES = {
    "training": "green",
    "done": "bold green",
    "starting": "cyan",
    "silent": "yellow",
    "stopped": "yellow",
    "unread": "yellow",
    "down": "red",
    "gone": "red",
    "refused": "red",
}
_CURVE = 16
_SCORES = (
    ("accuracy", "eval %", 100.0),
    ("bits_per_byte", "bits/byte", 1.0),
    ("bits_per_token", "bits/token", 1.0),
)


@dataclass(frozen=True)
class Column:
    """A column, and when it gives way: the highest rank first, where the terminal is narrow."""

    title: str
    width: int
    rank: int
    cell: Callable[[RunState, int], RenderableType]
    left: bool = False


def _latest(key: str, digits: int | None = None, scale: float = 1.0) -> Callable[..., str]:
    def cell(run: RunState, k: int) -> str:
        value = number(run.components[k].latest.get(key))
        return fixed(None if value is None else scale * value, digits)

    return cell


def _steps(run: RunState, k: int) -> str:
    step = run.components[k].step
    if run.steps is None:
        return f"{step:,}"
    return f"{step:,}/{run.steps:,} {100 * step // max(1, run.steps):3d}%"


def _state(run: RunState, k: int) -> Text:
    return styled(run.state(k))


def styled(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_STYLES.get(state, ""))


def _waits(run: RunState, k: int) -> str:
    latest = run.components[k].latest
    child, parent = (number(latest.get(f"wait_{who}_ms")) for who in ("child", "parent"))
    return f"{fixed(child, 0)}/{fixed(parent, 0)}"


def _exit(run: RunState, k: int) -> str:
    return exit_score(run.components[k].latest)[1]


def exit_score(values: Mapping[str, Any], prefix: str | None = None) -> tuple[str, str]:
    """What an exit is measured in, and the value; `-` for none.

    Args:
        values: with keys as in a log, or in `result.json`.
        prefix: of the keys; None: an evaluation's in a log, of the exit or of the window.
    """
    for before in ("eval_", "eval_window_") if prefix is None else (prefix,):
        for key, title, scale in _SCORES:
            value = number(values.get(before + key))
            if value is not None:
                return title, fixed(scale * value, 2 if scale > 1 else 3)
    return "eval", "-"


_COLUMNS = (
    Column("component", 9, 0, lambda run, k: str(k)),
    Column("state", 8, 0, _state, left=True),
    Column("step", 16, 0, _steps),
    Column("loss", 7, 0, _latest("loss", 3)),
    Column("", _CURVE, 5, lambda run, k: run.components[k].loss.drawn(_CURVE), left=True),
    Column("student", 7, 2, _latest("student_loss", 3)),
    Column("stale", 5, 3, _latest("staleness_steps")),
    Column("waits ms", 11, 6, _waits),
    Column("busy %", 6, 4, _latest("busy_fraction", 0, 100.0)),
    Column("/s", 7, 1, _latest("samples_per_s")),
    Column("deaths", 6, 7, lambda run, k: str(run.components[k].deaths)),
    Column("eval", 10, 2, _exit),
)


def components_table(run: RunState, width: int, curves: bool = True) -> Table:
    """One row for each component.

    Args:
        width: of the terminal, in characters; columns that do not fit are left out.
        curves: whether it can show the characters a curve is drawn with.
    """
    titles = (exit_score(one.latest)[0] for one in run.components)
    title = next((title for title in titles if title != "eval"), "eval")
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    columns = [c for c in _fitting(_COLUMNS, width) if curves or c.title]
    for column in columns:
        table.add_column(
            title if column.title == "eval" else column.title,
            width=column.width,
            justify="left" if column.left else "right",
            no_wrap=True,
        )
    for k in range(len(run.components)):
        table.add_row(*[column.cell(run, k) for column in columns])
    return table


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    kept = list(columns)
    while sum(column.width + 2 for column in kept) > width and any(c.rank for c in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def run_screen(
    run: RunState,
    about: str,
    state: str,
    width: int,
    curves: bool = True,
    notes: Sequence[str] = (),
) -> Group:
    """A whole run: what it is, its components, and what happened to them.

    Args:
        about: what it is, in a line.
        state: of the whole run.
        notes: what could not be read.
    """
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append_text(styled(state))  # first: a long path must not push it out
    eta_s = run.eta_s()
    if state == "training" and eta_s is not None:
        head.append(f", {duration(eta_s)} to go")
    head.append(f"  {run.run_dir}", style="bold")
    head.append(f"  {about}")
    parts: list[RenderableType] = [head, components_table(run, width, curves)]
    parts += [_line(text, "dim") for text in run.events]
    if run.damaged:
        parts.append(_line(f"{run.damaged:,} damaged lines were left out", "yellow"))
    parts += [_line(text, "yellow") for text in notes]
    return Group(*parts)


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


@dataclass(frozen=True)
class Row:
    """One run among several."""

    name: str
    state: str
    step: str = "-"
    loss: str = "-"
    score: tuple[str, str] = ("eval", "-")
    """As `exit_score` gives it."""
    rate: str = "-"
    eta: str = "-"
    deaths: str = "-"


def runs_table(rows: Sequence[Row]) -> Table:
    """One row for each run; the score is that of its top exit, with what it is measured in where
    that is not the same for all."""
    measures = {row.score[0] for row in rows} - {"eval"} or {"eval"}
    title = next(iter(measures)) if len(measures) == 1 else "eval"
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("run", overflow="ellipsis", no_wrap=True)
    table.add_column("state", width=8, no_wrap=True)
    for name in ("step", "loss", title, "/s", "to go", "deaths"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        measure, value = row.score
        if title == "eval" != measure:
            value = f"{value} {measure.removeprefix('eval ')}"
        cells = (row.step, row.loss, value, row.rate, row.eta, row.deaths)
        table.add_row(Text(row.name), styled(row.state), *cells)
    return table
