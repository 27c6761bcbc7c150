"""What does a method cost in accuracy, beside back-propagation on the same network?

python benchmarks/accuracy/main.py                     mnist1d: all methods and delays, 3 seeds
python benchmarks/accuracy/main.py --task mnist --mnist FILE.npz
python benchmarks/accuracy/main.py --task gpt --text FILE
python benchmarks/accuracy/main.py --task resnet --fashion FILE.npz
python benchmarks/accuracy/main.py --tune [--task ..]  first: choose on the validation split
python benchmarks/accuracy/main.py --quick             a short table, in some minutes
python benchmarks/accuracy/main.py --markdown          print the README's tables again
python benchmarks/accuracy/main.py --plot              draw and write result.csv again

A run that has ended is kept at once in cells.jsonl: whoever starts this again goes on. --methods,
--delays, --seeds, --components ask for a part of the table; --jobs N for N runs side by side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from data import mnist1d_file
from grid import (
    ALONE,
    LEADING,
    TASKS,
    TUNED_DELAY,
    Cell,
    Changes,
    alone_cells,
    kept_under,
    longer_cells,
    method_cells,
    order,
    without_students,
)
from rich.console import Console
from rich.markdown import Markdown
from stored import Row, append, missing, read
from tables import csv_of, markdown, told
from tuning import (
    CONFIRMING_SEEDS,
    Grid,
    Score,
    confirm,
    grid_of,
    search,
    tuning_cells,
    validated,
)

from mach.config import Config
from mach.errors import ConfigError, MachError
from mach.launcher.compose import compose, conf_dir

HERE = Path(__file__).parent
CELLS, CHOSEN, CSV = HERE / "cells.jsonl", HERE / "chosen.json", HERE / "result.csv"
QUICK_STEPS, QUICK_DELAYS = 200, (0, 4)
_console = Console(stderr=True)

Chooser = Callable[[Grid, Score], tuple[Changes, list[Changes]]]
"""The best so far, and what has to be tried."""


def main() -> None:
    """Run what is missing, or show what is there."""
    options = _options()
    if options.markdown:
        print(markdown(read(options.out or CELLS)))
        return
    if options.plot:
        from plot import draw  # matplotlib is of the extra `bench`

        rows = read(options.out or CELLS)
        CSV.write_text(csv_of(rows))
        draw(rows, HERE)
        return
    with tempfile.TemporaryDirectory(prefix="mach-accuracy-") as folder:
        if options.quick:
            options.out = options.out or Path(folder) / "cells.jsonl"
        try:
            bench = Bench(options, options.out or CELLS)
            bench.tune() if options.tune else bench.table()
        except MachError as error:  # a user's mistake: the data, most likely
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        console = Console()
        console.width = max(console.width, 140)  # the tables are wide
        console.print(Markdown(markdown(read(bench.out))))


class Bench:
    """A part of the table, and where it is kept."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.out = out
        self._options, self._name = options, options.task
        self._steps = QUICK_STEPS if options.quick else options.steps
        self._cache = str(options.cache.expanduser())
        self._path = options.path or mnist1d_file(options.cache.expanduser())

    def table(self) -> None:
        """Every method, and the networks that are trained alone."""
        options, task = self._options, TASKS[self._name]
        asked = options.methods or [*self._methods(), ALONE]
        methods = [method for method in asked if method != ALONE]
        delays = options.delays or (QUICK_DELAYS if options.quick else None)
        seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
        cells = method_cells(
            self._name, methods, seeds, self._undelayed(methods), self._chosen(), delays
        )
        if options.no_students:
            cells = without_students(cells)
        whole = not options.quick and options.steps is None
        if task.longer and whole and "mach" in methods:
            steps = compose([f"experiment={task.experiment}", f"data.path={self._path}"]).steps
            chosen = self._chosen().get("mach", ())
            cells += longer_cells(self._name, steps, seeds, chosen, delays)
        lengths = options.components or ([task.components] if options.quick else None)
        cells = [cell for cell in cells if lengths is None or cell.components in lengths]
        if task.sizes and not options.quick and ALONE in asked:
            from sizes import sizes

            found = sizes(self._name, self._path, self._cache)
            cells += alone_cells(self._name, found, seeds, self._chosen().get("backprop", ()))
        self._run(cells)

    def tune(self) -> None:
        """Choose each method's values on the validation split, one after the other."""
        seeds = self._options.seeds or [0]
        for components in self._options.components or (TASKS[self._name].components,):
            for method in self._options.methods or ("backprop", "mach"):
                best = self._settle(method, components, seeds, search)
                more = sorted({*seeds, *CONFIRMING_SEEDS})
                best = self._settle(method, components, more, partial(confirm, best=best))
                self._keep(kept_under(self._name, method, components), best)

    def _settle(
        self, method: str, components: int, seeds: Sequence[int], choose: Chooser
    ) -> Changes:
        """Run what has to be tried until there is a choice."""
        task = TASKS[self._name]
        usual = TUNED_DELAY if TUNED_DELAY in task.delays else task.delays[-1]
        late = usual if self._options.tuned_delay is None else self._options.tuned_delay
        delay = 0 if self._undelayed([method]) else late
        grid = grid_of(self._name, self._delayed(method))
        while True:
            where = (self._name, method, components, delay)
            best, tries = choose(grid, validated(read(self.out), *where, self._steps, seeds, grid))
            if not tries:
                return best
            cells = tuning_cells(*where, seeds, tries)
            if self._run(without_students(cells) if self._options.no_students else cells):
                raise SystemExit(f"{method} cannot be tuned: {self._name} refuses it")

    def _methods(self) -> list[str]:
        if self._options.quick:
            return list(LEADING)
        return order({path.stem for path in (conf_dir() / "method").glob("*.yaml")})

    def _undelayed(self, methods: Sequence[str]) -> set[str]:
        """Those that the delay changes nothing of."""
        found = {method: self._delayed(method) for method in methods}
        return {method for method, config in found.items() if config and not config.effective_delay}

    def _delayed(self, method: str) -> Config | None:
        """A method at a delay of 1; None where that is refused (told when it is its turn)."""
        words = [f"experiment={TASKS[self._name].experiment}", f"method={method}", "delay=1"]
        try:
            return compose([*words, f"data.path={self._path}"])
        except ConfigError:
            return None

    def _chosen(self) -> dict[str, Changes]:
        """What `tune` has chosen for this task, by what it is `kept_under`."""
        if self._options.untuned or self._options.quick or not CHOSEN.exists():
            return {}
        found = json.loads(CHOSEN.read_text()).get(self._name, {})
        return {method: tuple(changes) for method, changes in found.items()}

    def _keep(self, of: str, best: Changes) -> None:
        known = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
        known.setdefault(self._name, {})[of] = list(best)
        if not self._options.out:
            CHOSEN.write_text(json.dumps(known, indent=1) + "\n")
        _console.print(f"{self._name}, {of}: {' '.join(best)}", highlight=False)

    def _run(self, cells: list[Cell]) -> int:
        """Run those that are not there yet, each kept as soon as it has ended. Returns how many
        were refused."""
        refused = 0
        waiting = missing(cells, read(self.out), self._steps)
        _console.print(f"{len(cells)} cells, {len(waiting)} of them to run", highlight=False)
        for done, (cell, outcome) in enumerate(self._outcomes(waiting), 1):
            if isinstance(outcome, ConfigError):
                _console.print(f"{cell.method} refused: {outcome}", highlight=False)
                refused += 1
                continue
            append(self.out, outcome)
            _console.print(f"{done}/{len(waiting)} {told(outcome)}", highlight=False)
        return refused

    def _outcomes(self, cells: list[Cell]) -> Iterator[tuple[Cell, Row | ConfigError]]:
        work = [(cell, self._path, self._cache, self._steps) for cell in cells]
        if self._options.jobs == 1:
            yield from ((arguments[0], attempt(*arguments)) for arguments in work)
            return
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._options.jobs, spawn)
        try:
            running = {pool.submit(attempt, *arguments): arguments[0] for arguments in work}
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def attempt(cell: Cell, path: str, cache: str, steps: int | None) -> Row | ConfigError:
    """Train a cell; a method that does not fit the task is refused, and the table goes on."""
    from training import train  # torch, in the process that needs it

    try:
        return train(cell, path, cache, steps)
    except ConfigError as error:
        return error


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Where cells.jsonl, chosen.json, result.csv and the figures are: beside this file.",
    )
    add: Callable[..., object] = parser.add_argument
    add("--task", choices=list(TASKS), default="mnist1d")
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed; nothing is kept")
    add("--tune", action="store_true", help="choose on the validation split, and keep the choice")
    add("--untuned", action="store_true", help="with the values of conf/, whatever was chosen")
    add("--tuned-delay", type=int, help="at which late methods are tuned")
    add("--methods", nargs="+", help=f"default: all of conf/method, and {ALONE}")
    add("--delays", type=int, nargs="+", help="default: the task's")
    add("--components", type=int, nargs="+", help="default: the task's")
    add("--seeds", type=int, nargs="+", help="default: 0 1 2")
    add("--no-students", action="store_true", help="the same chains in half the time, no windows")
    add("--steps", type=int, help="fewer than the experiment's")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--mnist1d", help="file with x_train, ..; default: made by the package mnist1d, once")
    add("--mnist", help="file with x_train, y_train, x_test, y_test")
    add("--fashion", help="the same of Fashion-MNIST, for resnet")
    add("--text", help="any text, for gpt")
    add("--cache", type=Path, default=Path("~/.cache/mach"), help="folder for unpacked data")
    add("--out", type=Path, help=f"default {CELLS.name} beside this file")
    add("--markdown", action="store_true", help="print the tables of --out as Markdown")
    add("--plot", action="store_true", help="draw what is in --out, and write it as CSV")
    options = parser.parse_args()
    files = {"mnist": options.mnist, "gpt": options.text, "resnet": options.fashion}
    options.path = files.get(options.task, options.mnist1d)
    if not (options.path or options.task == "mnist1d" or options.markdown or options.plot):
        needs = {"gpt": "--text", "resnet": "--fashion"}.get(options.task, f"--{options.task}")
        parser.error(f"--task {options.task} needs {needs} FILE")
    return options


if __name__ == "__main__":
    main()
