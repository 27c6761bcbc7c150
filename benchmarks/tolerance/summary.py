"""What do the runs say? From the lines to the README's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from alignment import LAG
from trials import Run
from ways import WAYS

Row = Sequence[str]
DASH, HEARD, SPLITS = "–", ("cosines", "moved"), ("validation", "test")


def markdown(runs: Sequence[Run]) -> str:
    """Every table that there are runs for."""
    tests = [run for run in runs if run["split"] == "test"]
    delays = sorted({run["delay"] for run in tests})

    def table(cell: Callable[[Sequence[Run], str, int], str], delays: Sequence[int]) -> str:
        head = ["", *(_late(tests, delay) for delay in delays)]
        rows = [[way.about, *(cell(tests, name, d) for d in delays)] for name, way in WAYS.items()]
        rule = ["---", *["---:"] * len(delays)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))

    blocks = [
        "## Result",
        "Accuracy of the top exit, % on the test split, mean (least .. most) of the seeds; and the "
        "rate that was chosen.",
        table(_accuracy, delays),
        "Points lost against the same way to step without a delay, seed by seed: mean (standard "
        "error).",
        table(_lost, delays[1:]),
        "Cosine between late and exact gradient of the matrices of the bottom component, mean of a "
        f"run and of the seeds; in brackets how far these matrices go in {LAG} steps, in parts of "
        "their norm.",
        table(_drift, delays),
        "## Environment",
        _environment(runs),
    ]
    return "\n\n".join(blocks)


def _late(runs: Sequence[Run], delay: int) -> str:
    known = (run["staleness"] for run in runs if run["delay"] == delay)
    steps = max((s for s in known if s is not None), default=0.0)
    return f"delay {delay} (staleness {steps:.0f})" if delay else "no delay"


def _of(runs: Sequence[Run], way: str, delay: int) -> list[Run]:
    return [run for run in runs if run["way"] == way and run["delay"] == delay]


def _accuracy(runs: Sequence[Run], way: str, delay: int) -> str:
    mine = _of(runs, way, delay)
    values = [100 * run["value"] for run in mine if run["value"] is not None]
    if len(values) < len(mine) or not values:
        return f"{len(mine) - len(values)} diverged" if mine else DASH
    return f"{mean(values):.2f} ({min(values):.2f} .. {max(values):.2f}); {mine[0]['rate']:g}"


def _lost(runs: Sequence[Run], way: str, delay: int) -> str:
    exact, late = ({r["seed"]: r["value"] for r in _of(runs, way, d)} for d in (0, delay))
    pairs = [(exact[seed], late[seed]) for seed in exact.keys() & late.keys()]
    lost = [100 * (one - other) for one, other in pairs if None not in (one, other)]
    if len(lost) < 2:
        return DASH
    return f"{mean(lost):+.2f} ({stdev(lost) / len(lost) ** 0.5:.2f})"


def _drift(runs: Sequence[Run], way: str, delay: int) -> str:
    mine = _of(runs, way, delay)
    cosines, moved = ([of_all[0] for r in mine for of_all in r[what]] for what in HEARD)
    return f"{mean(cosines):.3f} ({mean(moved):.3f})" if cosines else DASH


def _environment(runs: Sequence[Run]) -> str:
    """What the runs were made with, and how many chose the rates."""
    seeds = {split: sorted({r["seed"] for r in runs if r["split"] == split}) for split in SPLITS}
    commits = ", ".join(sorted({str(run["commit"])[:12] for run in runs}))
    versions = ", ".join(sorted({run["torch"] for run in runs}))
    steps = ", ".join(sorted({str(run["steps"]) for run in runs}))
    tries = sum(run["split"] == "validation" for run in runs)
    dates = [run["date"] for run in runs] or [DASH]
    return "\n".join(
        [
            f"- {steps} steps; torch {versions}; one thread; commit {commits}; {max(dates)}",
            f"- Rates from {tries} runs on the validation split (seeds "
            f"{_listed(seeds['validation'])}); the tables from seeds {_listed(seeds['test'])}",
        ]
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or DASH
