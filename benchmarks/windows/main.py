"""What is a window worth for its cost, as the run leaves it, consolidated, and trained alone?

python benchmarks/windows/main.py               mnist1d, 3 seeds: an hour and more; --jobs 2: half
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
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from summary import markdown

sys.path.append(str(Path(__file__).parents[1] / "accuracy"))  # where mnist1d is made

HERE = Path(__file__).parent
RESULT, FRONTIER = HERE / "result.json", HERE / "frontier.png"
STEPS, QUICK_STEPS = 3000, 30
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

        draw(_read(out), FRONTIER if out == RESULT else out.with_suffix(".png"))


def measure(options: argparse.Namespace, out: Path, folder: Path) -> None:
    """Every seed that is not in the file yet, each kept when it has ended.

    Args:
        folder: for data and run folders.
    """
    from data import mnist1d_file
    from measure import seed_of

    steps = QUICK_STEPS if options.quick else options.steps
    path = mnist1d_file(folder)
    rows = _read(out) if out.exists() and not options.quick else []
    known = {(row["steps"], row["seed"]) for row in rows}
    seeds = range(1 if options.quick else options.seeds)
    missing = [seed for seed in seeds if (steps, seed) not in known]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(seed_of, seed, steps, path, folder) for seed in missing]
        for done in as_completed(running):
            rows.append(done.result())
            rows.sort(key=lambda row: (row["steps"], row["seed"]))
            if not options.quick or options.out:
                out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.quick and not options.out:
        print(json.dumps(rows, indent=1))
        sys.exit()


def _read(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the chain, 64 samples each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    parser.add_argument("--folder", type=Path, help="for data and run folders, which then stay")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} beside this program")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
