"""Which runs make the table? A cell is one run, and cells are data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

Changes = tuple[str, ...]
"""Overrides of `mach train`, beside those that a cell's other fields stand for."""

METHOD, LONGER, ALONE, TUNING = "method", "longer", "alone", "tuning"
"""What a cell is for: a method's place in the table, `mach` with more samples than all others, a
network that is trained alone beside an exit or a window of its size, or a choice, which is made on
the validation split."""


@dataclass(frozen=True)
class Task:
    """A network and its data: an experiment of `conf/`, with what the table wants to know of it."""

    about: str
    experiment: str
    components: int
    delays: tuple[int, ...]
    far: tuple[int, ...] = ()
    """Longer delays, for `LEADING` alone."""
    other_components: tuple[int, ...] = ()
    """Chains of other lengths, for `LEADING`."""
    methods: tuple[str, ...] | None = None
    """None: all of conf/method."""
    every: int = 300
    """Optimizer steps between two evaluations: how finely it is known when something is reached."""
    validation: int = 0
    """Training samples kept back for choosing."""
    longer: tuple[tuple[int, float], ...] = ()
    """Delays, and with how many times its samples `mach` is to be as good as back-propagation."""
    sizes: bool = False
    """Whether networks of the size of each exit and window are trained alone."""


LEADING = ("backprop", "mach", "dgl")
"""What every task is trained with, and what comes first."""
_MATTER = (*LEADING, "features_replay", "ddg")

TASKS = {
    "mnist1d": Task(
        "mnist1d, 32,000 samples; residual MLP of width 128, one block a component",
        "mnist1d",
        components=4,
        delays=(0, 1, 2, 4, 8),
        far=(16,),
        other_components=(2, 8),
        validation=4000,
        sizes=True,
    ),
    "mnist": Task(
        "MNIST; residual MLP of width 128, one block a component",
        "mnist",
        components=4,
        delays=(0, 1, 4, 8),
        far=(16,),
        methods=_MATTER,
        validation=4000,
    ),
    "gpt": Task(
        "Tiny Shakespeare; GPT of 4 blocks, width 128, context 128, one block a component",
        "gpt-shakespeare",
        components=4,
        delays=(0, 1, 4),
        methods=_MATTER,
        every=50,
        validation=500,
        longer=((1, 1.05), (4, 1.2)),
    ),
    "resnet": Task(
        "10,000 images of Fashion-MNIST; ResNet-20 of width 8 with GroupNorm, a stage a component",
        "resnet-fashion",
        components=3,
        delays=(1,),
        methods=LEADING,
        every=50,
        validation=2000,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    method: str
    components: int
    delay: int
    seed: int
    kind: str = METHOD
    changes: Changes = ()


def kept_under(name: str, method: str, components: int) -> str:
    """What a choice is kept under: of a chain of another length than the task's one of its own."""
    return method if components == TASKS[name].components else f"{method}, {components} components"


def order(methods: Collection[str]) -> list[str]:
    """The leading ones first."""
    return [*(m for m in LEADING if m in methods), *sorted(set(methods) - set(LEADING))]


def method_cells(
    name: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    undelayed: Collection[str],
    chosen: Mapping[str, Changes],
    delays: Sequence[int] | None = None,
) -> list[Cell]:
    """Every method of a task at every delay, then chains of other lengths; seed by seed.

    Args:
        name: the task's.
        methods: those that exist.
        seeds: of each cell.
        undelayed: methods to which the delay is nothing: they are run once.
        chosen: what was chosen for a method on the validation split, by what it is `kept_under`;
            where a chain of another length has none of its own, that of the task's.
        delays: fewer of the task's.
    """
    task = TASKS[name]
    wanted = [m for m in methods if task.methods is None or m in task.methods]

    def cells(method: str, components: int, late: Sequence[int], seed: int) -> list[Cell]:
        at = task.delays[:1] if method in undelayed else late
        changes = chosen.get(kept_under(name, method, components), chosen.get(method, ()))
        return [Cell(name, method, components, d, seed, changes=changes) for d in at]

    late = [d for d in task.delays if delays is None or d in delays]
    far = [d for d in task.far if delays is None or d in delays]

    def usual(method: str, seed: int) -> list[Cell]:
        return cells(method, task.components, late + far * (method in LEADING), seed)

    return [
        *(cell for seed in seeds for method in wanted for cell in usual(method, seed)),
        *(
            cell
            for seed in seeds
            for components in task.other_components
            for m in wanted
            if m in LEADING
            for cell in cells(m, components, late, seed)
        ),
    ]


TUNED_DELAY = 4
"""At which late methods are tuned."""
NO_STUDENTS = "student=none"


def without_students(cells: Sequence[Cell]) -> list[Cell]:
    """The same chains: a student changes no number of the chain, and costs half of the time."""
    return [replace(cell, changes=(*cell.changes, NO_STUDENTS)) for cell in cells]


def longer_cells(
    name: str,
    steps: int,
    seeds: Sequence[int],
    chosen: Changes,
    delays: Sequence[int] | None = None,
) -> list[Cell]:
    """`mach` with more samples, of which only the top exit is asked for.

    Args:
        steps: the experiment's.
        chosen: what was chosen for `mach`.
        delays: fewer of the task's.
    """
    task = TASKS[name]
    return [
        Cell(
            name,
            "mach",
            task.components,
            delay,
            seed,
            LONGER,
            (*chosen, f"steps={round(times * steps)}", NO_STUDENTS),
        )
        for seed in seeds
        for delay, times in task.longer
        if delays is None or delay in delays
    ]


def alone_cells(
    name: str, sizes: Sequence[tuple[int, int]], seeds: Sequence[int], chosen: Changes
) -> list[Cell]:
    """Networks that are trained alone by back-propagation.

    Args:
        sizes: blocks and width of each.
        chosen: what was chosen for back-propagation.
    """
    return [
        Cell(name, "backprop", blocks, 0, seed, ALONE, (*chosen, f"model.width={width}"))
        for seed in seeds
        for blocks, width in dict.fromkeys(sizes)
    ]


def overrides(cell: Cell, path: str, steps: int | None = None) -> list[str]:
    """The words of `mach train` for a cell.

    Args:
        path: the task's data.
        steps: fewer than the experiment's.
    """
    task = TASKS[cell.task]
    words = [
        f"experiment={task.experiment}",
        f"method={cell.method}",
        f"components={cell.components}",
        f"delay={cell.delay}",
        f"seed={cell.seed}",
        f"data.path={path}",
        f"eval.every={task.every}",
        *cell.changes,
    ]
    if steps is not None:
        words += [f"steps={steps}", f"eval.every={max(1, min(task.every, steps // 4))}"]
    if cell.kind == TUNING:
        words += [f"data.validation={task.validation}", "eval.split=validation"]
    return words
