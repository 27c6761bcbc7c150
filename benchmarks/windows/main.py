"""What is a window worth for its cost, as the run leaves it, consolidated, and trained alone?

python benchmarks/windows/main.py               mnist1d, 3 seeds: an hour and more; --jobs 2: half
python benchmarks/windows/main.py --task mnist --mnist FILE.npz
python benchmarks/windows/main.py --task gpt --text FILE
python benchmarks/windows/main.py --steps 1000  a third of the samples of experiment=mnist1d
python benchmarks/windows/main.py --quick       a few steps: does it work?
python benchmarks/windows/main.py --markdown    print the README's tables again
python benchmarks/windows/main.py --plot        draw again

A seed that has ended is kept at once in result.json: whoever starts this again goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from summary import Row, markdown
from tasks import TASKS

sys.path.append(str(Path(__file__).parents[1] / "accuracy"))  # where mnist1d is made

HERE = Path(__file__).parent
RESULT, QUICK_STEPS = HERE / "result.json", 30
_console = Console(stderr=True)


def main() -> None:
    """Measure what is missing, or show what is there."""
    options = _options()
    out: Path = options.out or RESULT
    if options.markdown:
        print(markdown(_read(out)))
        return
    if not options.plot:
        with tempfile.TemporaryDirectory() as made:
            measure(options, out, options.folder or Path(made))
        _console.print(Markdown(markdown(_read(out))))
    if not options.quick:
        from plot import draw

        draw(_read(out), out.parent)


def measure(options: argparse.Namespace, out: Path, folder: Path) -> None:
    """Every seed that is not in the file yet, each kept when it has ended.

    Args:
        folder: for data and run folders.
    """
    from data import mnist1d_file
    from measure import experiment, seed_of

    path = options.path or mnist1d_file(folder)
    asked = QUICK_STEPS if options.quick else options.steps
    steps = asked or experiment(options.task, path).steps
    rows = _up_to_date(_read(out)) if out.exists() and not options.quick else []
    known = {(row["task"], row["steps"], row["seed"]) for row in rows}
    seeds = range(1 if options.quick else options.seeds)
    missing = [seed for seed in seeds if (options.task, steps, seed) not in known]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        running = [
            pool.submit(seed_of, options.task, seed, steps, path, folder) for seed in missing
        ]
        failed = []
        for done in as_completed(running):
            if error := done.exception():
                failed.append(error)  # the others are kept all the same
                continue
            rows.append(done.result())
            rows.sort(key=lambda row: (list(TASKS).index(row["task"]), row["steps"], row["seed"]))
            if not options.quick or options.out:
                out.write_text(json.dumps(rows, indent=1) + "\n")
    if failed:
        raise failed[0]
    if options.quick and not options.out:
        print(json.dumps(rows, indent=1))
        sys.exit()


def _up_to_date(rows: list[Row]) -> list[Row]:
    """Without those of a task that is another by now."""

    def is_so(row: Row) -> bool:
        task = TASKS[row["task"]]
        # The first rows were made when nobody could say how to consolidate.
        made = row["words"], row["validation"], row.get("consolidation", {})
        return made == (list(task.words), task.validation, task.consolidation)

    return [row for row in rows if is_so(row)]


def _read(path: Path) -> list[Row]:
    return list(json.loads(path.read_text()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="mnist1d")
    parser.add_argument("--steps", type=int, help="of the chain; default: the experiment's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    parser.add_argument("--mnist", help="file with x_train, y_train, x_test, y_test")
    parser.add_argument("--text", help="any text")
    parser.add_argument("--folder", type=Path, help="for data and run folders, which then stay")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} beside this program")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    flag = TASKS[options.task].file
    options.path = getattr(options, flag) if flag else None
    if flag and not (options.path or options.markdown or options.plot):
        parser.error(f"--task {options.task} needs --{flag} FILE")
    return options


if __name__ == "__main__":
    main()
