"""Why does Muon bear late gradients?

python benchmarks/tolerance/main.py              what is missing: hours on one core; --jobs 2: half
python benchmarks/tolerance/main.py --ways muon sgd --delays 0 4
python benchmarks/tolerance/main.py --quick      a few steps: does it work?
python benchmarks/tolerance/main.py --markdown   print the README's tables again

A run that has ended is kept at once in runs.jsonl: whoever starts this again goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

# mnist1d is made, rates are chosen and runs are kept as there.
sys.path.append(str(Path(__file__).parents[1] / "accuracy"))

from data import mnist1d_file
from stored import append, read
from summary import markdown
from trials import Run, Spec, choose, missing, run_of, tests_of
from ways import WAYS

RUNS = Path(__file__).parent / "runs.jsonl"
DELAYS, STEPS, QUICK_STEPS = (0, 4, 8), 500, 40
_console = Console(stderr=True)


def main() -> None:
    """Run what is missing, or show what is there."""
    options = _options()
    if options.markdown:
        print(markdown(read(options.out or RUNS)))
        return
    with tempfile.TemporaryDirectory(prefix="mach-tolerance-") as folder:
        out: Path = options.out or (Path(folder) / "runs.jsonl" if options.quick else RUNS)
        measure(options, out)
        Console().print(Markdown(markdown(read(out))))


def measure(options: argparse.Namespace, out: Path) -> None:
    """Choose a rate for every way at every delay, then train with it."""
    path = mnist1d_file(options.cache.expanduser())
    steps = QUICK_STEPS if options.quick else STEPS
    places = [(way, delay) for delay in options.delays for way in options.ways]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:

        def train(wanted: Iterable[Spec]) -> None:
            running = [pool.submit(run_of, spec, path) for spec in missing(wanted, read(out))]
            for done in as_completed(running):
                _keep(done.result(), out)

        while tries := [s for place in places for s in choose(*place, steps, read(out))[1]]:
            train(tries)
        train([s for place in places for s in tests_of(*place, steps, read(out))])


def _keep(run: Run, out: Path) -> None:
    append(out, run)
    what = f"{run['way']} at {run['rate']:g}, delay {run['delay']}, seed {run['seed']}"
    value = "diverged" if run["value"] is None else f"{100 * run['value']:.2f} %"
    _console.print(f"{run['split']}: {what}: {value}", highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add: Callable[..., object] = parser.add_argument
    add("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    add("--delays", type=int, nargs="+", default=list(DELAYS))
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--cache", type=Path, default=Path("~/.cache/mach"), help="folder for mnist1d")
    add("--out", type=Path, help=f"default {RUNS.name} beside this file")
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps; nothing is kept")
    add("--markdown", action="store_true", help="print the tables of --out as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
