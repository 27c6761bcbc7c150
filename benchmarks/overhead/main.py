"""What do messages, delay, replay and students cost, beside the computation and beside 1F1B?

python benchmarks/overhead/main.py [--quick] [--rounds N] [--out FILE.json]
python benchmarks/overhead/main.py --markdown [--out FILE.json]    print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memory import constancy, memory
from pair import run_pair
from rich.console import Console
from rich.markdown import Markdown
from startup import startup
from summary import markdown
from throughput import throughput
from variants import DECISIVE, OURS, VARIANTS, Settings, Variant

from mach.provenance import environment
from wire import wire

SECTIONS = ("aims", "throughput", "wire", "memory", "constancy", "startup")
QUICK = Settings(width=256, microbatch_size=64, warm_up=8, measured=32, ideal_s=0.6)
TINY = Settings(depth=2, width=32, microbatch_size=8)
RESULT = Path(__file__).parent / "result.json"
_console = Console(stderr=True)


def main() -> None:
    """Measure, or print again what was measured."""
    options = _options()
    if options.markdown:
        print(markdown(json.loads((options.out or RESULT).read_text())))
        return
    settings = QUICK if options.quick else Settings()
    chosen = {"width": options.width, "microbatch_size": options.microbatch_size}
    settings = replace(settings, **{key: value for key, value in chosen.items() if value})
    rounds = options.rounds or (2 if options.quick else 5)
    result: dict[str, Any] = {"settings": asdict(settings), "environments": {}}
    out = options.out or (None if options.quick else RESULT)
    if out is not None and out.exists():
        before = json.loads(out.read_text())
        if before["settings"] == result["settings"]:  # sections may be measured one at a time
            result = before
    for section in options.sections:
        here, began_s = environment(), time.monotonic()
        result[section] = _MEASURE[section](settings, rounds, options.quick)
        result["environments"][section] = here
        _console.print(f"{section}: {time.monotonic() - began_s:.0f} s")
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, 150)  # the tables are wide
    console.print(Markdown(markdown(result)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network; numbers are rough")
    parser.add_argument("--rounds", type=int, help="times that every variant takes its turn")
    parser.add_argument("--out", type=Path, help=f"default {RESULT.name} beside this file")
    parser.add_argument("--markdown", action="store_true", help="print --out as Markdown")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--width", type=int, help="of the residual stream")
    parser.add_argument("--microbatch-size", type=int)
    return parser.parse_args()


# --- sections -----------------------------------------------------------------------------------


def _aims(settings: Settings, rounds: int, quick: bool) -> list[dict[str, Any]]:
    # Few variants close to each other, many times: a machine that drifts is the same for all.
    return _rounds(settings, DECISIVE, rounds if quick else 3 * rounds + 1)


def _throughput(settings: Settings, rounds: int, quick: bool) -> list[dict[str, Any]]:
    return _rounds(settings, VARIANTS, rounds)


def _rounds(settings: Settings, variants: list[Variant], rounds: int) -> list[dict[str, Any]]:
    # Another order in every round: none always comes after the same.
    turns = [(7 * number) % len(variants) for number in range(rounds)]
    plan = [variants[turn:] + variants[:turn] for turn in turns]
    total, done = rounds * len(variants), 0

    def told(rank: int, item: Any) -> None:
        nonlocal done
        done += rank == 0
        if rank == 0:
            _console.print(f"round {item[0] + 1}: {item[1]} ({done} of {total})", highlight=False)

    both = run_pair(throughput, (settings, plan), told=told)
    out: list[dict[str, Any]] = [{} for _ in range(rounds)]
    for first, second in zip(*both, strict=True):
        out[first[0]][first[1]] = [first[2], second[2]]
    return out


def _wire(settings: Settings, rounds: int, quick: bool) -> list[dict[str, Any]]:
    count = 200 if quick else 1000
    return [run_pair(wire, (settings, count))[0][0] for _ in range(rounds)]


def _memory(settings: Settings, rounds: int, quick: bool) -> dict[str, Any]:
    short = replace(settings, warm_up=8, measured=24)
    names = [OURS, "delayed, recompute, student, M = 4"]
    if not quick:
        names += ["sync, M = 4", "delayed, recompute, M = 4", "delayed, stash, student, M = 4"]
    return {
        name: [items[0] for items in run_pair(memory, (_variant(name), short))] for name in names
    }


def _constancy(settings: Settings, rounds: int, quick: bool) -> dict[str, Any]:
    at = [400, 2000] if quick else [2000, 4000, 6000, 8000, 10_000]
    names = ("delayed, recompute, student, M = 4", "delayed, stash, student, M = 4")
    return {
        name: [
            items[0] for items in run_pair(constancy, (_variant(name), TINY, at), silence_s=300.0)
        ]
        for name in names
    }


def _startup(settings: Settings, rounds: int, quick: bool) -> dict[str, Any]:
    count = 1 if quick else min(rounds, 5)
    found: dict[str, Any] = {}
    for _ in range(count):
        for wandb in ("off", "offline"):
            for first_time in (False, True):
                name = f"report.wandb={wandb}" + ", data unpacked anew" * first_time
                times = startup([f"report.wandb={wandb}"], first_time=first_time)
                found.setdefault(name, []).append(times)
    return found


_MEASURE = {
    "aims": _aims,
    "throughput": _throughput,
    "wire": _wire,
    "memory": _memory,
    "constancy": _constancy,
    "startup": _startup,
}


def _variant(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


# --- environment --------------------------------------------------------------------------------


if __name__ == "__main__":
    main()
