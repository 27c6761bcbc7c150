"""How are the models of a run shown, so that one of them can be chosen?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mach.choice.frontier import Candidate, choose, frontier, wishes
from mach.choice.models import candidates
from mach.config import ModelsConfig
from mach.errors import CheckpointError
from mach.inference import Run
from mach.report.console import METRICS
from mach.report.numbers import short


def show_models(
    found: Sequence[Candidate],
    on_frontier: Sequence[bool],
    chosen: Candidate | None,
    cost: str,
    split: str,
    console: Console,
) -> None:
    """Print what each model is worth and, where that was measured, how fast it is; at most 80
    columns wide.

    Args:
        on_frontier: whether each is on the Pareto frontier.
        chosen: the one that meets the wishes; None: there were none.
        cost: what the frontier weighs quality against.
        split: of the data, on which quality was measured.
    """
    rows = list(zip(found, on_frontier, strict=True))
    names = [METRICS[found[0].metric], "params", "flops", "on disk"]
    table = _table(f"Models, on the {split} split", names)
    table.caption = f"* on the Pareto frontier: no other is as good and costs less ({cost})"
    for previous, (candidate, best) in zip([None, *found], rows, strict=False):
        cells = [
            _quality(candidate),
            short(candidate.params),
            short(candidate.flops),
            f"{short(candidate.bytes)}B",
        ]
        _add(table, candidate, previous, best, cells, candidate is chosen)
    console.print(table)
    if not found[0].latencies:
        return
    table = _table("Latency, ms", [f"B={one.batch} t={one.threads}" for one in found[0].latencies])
    table.caption = "median and 95th percentile of a call with B samples and t threads"
    for previous, (candidate, best) in zip([None, *found], rows, strict=False):
        cells = [f"{one.median_ms:.3g} {one.p95_ms:5.3g}" for one in candidate.latencies]
        _add(table, candidate, previous, best, cells, candidate is chosen)
    console.print(table)


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(
    table: Table,
    candidate: Candidate,
    previous: Candidate | None,
    best: bool,
    cells: Sequence[str],
    chosen: bool,
) -> None:
    if previous is not None and _kind(previous) != _kind(candidate):
        table.add_section()
    style = "bold" if chosen else None
    table.add_row(f"{'*' if best else ' '} {candidate.name.title}", *cells, style=style)


def as_json(
    found: Sequence[Candidate],
    on_frontier: Sequence[bool],
    chosen: Candidate | None,
    split: str,
) -> dict[str, Any]:
    """The same for programs."""

    def row(candidate: Candidate, best: bool) -> dict[str, Any]:
        values = {key: value for key, value in vars(candidate).items() if key != "latencies"}
        its = [vars(one) for one in candidate.latencies]
        return {**values, "latencies": its, "frontier": best, "chosen": candidate is chosen}

    rows = [row(c, best) for c, best in zip(found, on_frontier, strict=True)]
    own = None if chosen is None else str(chosen.name)
    return {"split": split, "models": rows, "chosen": own}


def _kind(candidate: Candidate) -> str:
    return candidate.name.title.partition(" ")[0]


def _quality(candidate: Candidate) -> str:
    if candidate.value is None:
        return "-"
    if candidate.metric == "accuracy":
        return f"{100 * candidate.value:.2f}"
    return f"{candidate.value:.3f}"


def tell(config: ModelsConfig) -> int:
    """Print what was asked for. Returns the exit code.

    Raises:
        MachError: nothing can be read of the run, or no model is within the limits.
    """
    run = Run(config.run)
    found = candidates(run, latency=config.latency)
    if not found:
        raise CheckpointError(f"run={config.run}: expected a model that can be read; got none.")
    on_frontier = frontier(found, config.cost)
    chosen = choose(found, config) if wishes(config) else None
    split = run.config.eval.split
    if config.format == "json":
        print(json.dumps(as_json(found, on_frontier, chosen, split), indent=1))
        return 0
    show_models(found, on_frontier, chosen, config.cost, split, Console())
    if chosen is not None:
        print(f"Chosen: {chosen.name.title}. mach export {config.run} window={chosen.name}")
    return 0
