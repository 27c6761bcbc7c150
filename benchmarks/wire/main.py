"""What do rounded messages, bf16, compiling and checkpointing cost and save?

python benchmarks/wire/main.py [--quick] [--networks ..] [--seeds S ..] [--out FILE.json]
python benchmarks/wire/main.py --networks mnist resnet gpt --mnist FILE --fashion FILE --text FILE
python benchmarks/wire/main.py --networks resnet --fashion FILE --jobs 2 --seeds 6..99 --variants ..
python benchmarks/wire/main.py --networks memory compile
python benchmarks/wire/main.py --markdown                  print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from memory import memory
from rich.console import Console
from rich.markdown import Markdown
from speed import speed
from summary import markdown
from variants import NETWORKS, VARIANTS, Asked, train

from mach.provenance import environment

RESULT = Path(__file__).parent / "result.json"
_console = Console(stderr=True)


def main() -> None:
    """Measure, or print again what was measured."""
    options = _options()
    out = options.out or (None if options.quick else RESULT)
    if options.markdown:
        print(markdown(json.loads((out or RESULT).read_text())))
        return
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    if out is not None and out.exists():
        result = json.loads(out.read_text())  # networks may be measured one at a time
    for name in options.networks:
        before = {} if options.again else result.get(name, {})
        earlier = before.get("measured", []) if name in NETWORKS else []
        here, began_s = environment(), time.monotonic()
        for found in _measure(name, options, before.get("runs", [])):
            this = {"environment": here, "seconds": round(time.monotonic() - began_s)}
            result[name] = {"measured": [*earlier, this], **found}
            if out is not None:
                out.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, 140)  # the tables are wide
    console.print(Markdown(markdown(result)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; does it work?")
    choices = [*NETWORKS, "memory", "compile"]
    parser.add_argument("--networks", nargs="+", choices=choices, default=["digits"])
    parser.add_argument(
        "--seeds", type=_seeds, nargs="+", default=[[0, 1, 2]], help="as in 0 1 2, or 6..99"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--again", action="store_true", help="also what --out has already")
    parser.add_argument("--mnist", help="file with x_train, y_train, x_test, y_test")
    parser.add_argument("--fashion", help="the same of Fashion-MNIST, for resnet")
    parser.add_argument("--text", help="any text, for gpt")
    parser.add_argument("--out", type=Path, help=f"default {RESULT.name} beside this file")
    parser.add_argument("--markdown", action="store_true", help="print --out as Markdown")
    options = parser.parse_args()
    options.seeds = [seed for several in options.seeds for seed in several]
    for name in options.networks:
        needs = NETWORKS[name].file if name in NETWORKS else ""
        if needs and vars(options)[needs] is None:
            parser.error(f"{name} needs --{needs} FILE")
    return options


def _seeds(text: str) -> Sequence[int]:
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def _measure(
    name: str, options: argparse.Namespace, before: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What is known after each run; runs of `before` are kept."""
    if name == "memory":
        yield memory(quick=options.quick)
    elif name == "compile":
        yield speed(quick=options.quick)
    else:
        file = vars(options).get(NETWORKS[name].file)
        seeds = [0] if options.quick else options.seeds
        asked = Asked(name, file, seeds, options.variants, options.quick, options.jobs)
        for found in train(asked, before):
            last = found["runs"][-1]
            _tell(f"{name}, {last['variant']}, seed {last['seed']}: loss {last['loss']:.4f}")
            yield found


def _tell(what: str) -> None:
    _console.print(what, highlight=False)


if __name__ == "__main__":
    main()
