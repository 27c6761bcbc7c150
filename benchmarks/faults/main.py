"""What do the others notice when a component dies, is slow, or is far away?

python benchmarks/faults/main.py [--quick] [--sections ..] [--rounds N] [--out FILE.json]
python benchmarks/faults/main.py --sections accuracy --mnist FILE.npz [--steps N]
python benchmarks/faults/main.py --soak [--minutes N] [--mnist FILE.npz]
python benchmarks/faults/main.py --markdown [--out FILE.json]    print the README's tables again
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import disturbed
import latency
import launching
from rich.console import Console
from rich.markdown import Markdown
from settings import QUICK, Settings
from soak import judged, soak
from summary import SECTIONS, markdown

import accuracy
from mach.provenance import environment

DEFAULT = ("deaths", "slow", "latency", "start")
ROUNDS = {"deaths": 6, "slow": 4, "latency": 3, "start": 10}
"""Together about fifty minutes."""
RESULT = Path(__file__).parent / "result.json"
_console = Console(stderr=True)


def main() -> None:
    """Measure, or print again what was measured."""
    options = _options()
    out = options.out or (None if options.quick else RESULT)
    if options.markdown:
        print(markdown(json.loads((out or RESULT).read_text())))
        return
    settings = QUICK if options.quick else Settings()
    if options.pace is not None:
        settings = replace(settings, pace_ms=options.pace)
    result: dict[str, Any] = {}
    if out is not None and out.exists():
        result = json.loads(out.read_text())  # sections may be measured one at a time
    for section in options.sections:
        here, began_s = environment(), time.monotonic()
        found = _MEASURE[section](settings, options, out)
        seconds = time.monotonic() - began_s
        _console.print(f"{section}: {seconds:.0f} s")
        about = {"environment": here, "settings": asdict(settings), "seconds": round(seconds)}
        result[section] = {**about, **found}
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, 150)  # the tables are wide
    console.print(Markdown(markdown(result)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one victim, short; does it work?")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="default: the first four")
    parser.add_argument("--rounds", type=int, help="times that every variant takes its turn")
    parser.add_argument("--out", type=Path, help=f"default {RESULT.name} beside this file")
    parser.add_argument("--markdown", action="store_true", help="print --out as Markdown")
    parser.add_argument("--pace", type=float, help="ms of a microbatch")
    parser.add_argument(
        "--mnist", type=_absolute, help="file with x_train, y_train, x_test, y_test"
    )
    parser.add_argument("--steps", type=int, default=3000, help="of the section accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="of the section accuracy")
    parser.add_argument("--soak", action="store_true", help="the section soak alone")
    parser.add_argument("--minutes", type=float, default=15.0, help="of the section soak")
    options = parser.parse_args()
    options.sections = ("soak",) if options.soak else options.sections or DEFAULT
    if "accuracy" in options.sections and options.mnist is None:
        parser.error("the section accuracy needs --mnist FILE.npz")
    return options


def _absolute(path: str) -> str:
    """A run has a working directory of its own."""
    return str(Path(path).resolve())


# --- sections -----------------------------------------------------------------------------------


def _rounds(
    section: str,
    one: Callable[[Settings, int, Callable[[str], None]], Any],
    settings: Settings,
    options: argparse.Namespace,
) -> dict[str, Any]:
    count = options.rounds or (1 if options.quick else ROUNDS[section])
    rounds = []
    for turn in range(count):
        rounds.append(one(settings, turn, partial(_tell, f"{section}, round {turn + 1}")))
    return {"rounds": rounds}


def _disturbed(kind: str, settings: Settings, turn: int, tell: Callable[[str], None]) -> Any:
    return disturbed.measure_round(settings, kind, turn, tell)


def _deaths(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    return _rounds("deaths", partial(_disturbed, "kill"), settings, options)


def _slow(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    return _rounds("slow", partial(_disturbed, "slow"), settings, options)


def _latency(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    impossible = latency.impossible(settings)
    if impossible is not None:
        raise SystemExit(f"latency: {impossible}")
    return _rounds("latency", latency.measure_round, settings, options)


def _start(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    return _rounds("start", launching.measure_round, settings, options)


def _accuracy(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    tell = partial(_tell, "accuracy")
    seeds = accuracy.measure(options.mnist, options.steps, options.seeds, tell)
    return {"steps": options.steps, "seeds": seeds}


def _soak(settings: Settings, options: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    from plot import draw  # matplotlib is needed for nothing else

    record = soak(settings, options.minutes, options.mnist, partial(_tell, "soak"))
    if out is not None:
        draw(record, out.with_name("soak.png"))
        out.with_name("soak.json").write_text(record.to_json() + "\n")
    return {"minutes": options.minutes, **judged(record)}


_MEASURE = {
    "deaths": _deaths,
    "slow": _slow,
    "latency": _latency,
    "start": _start,
    "accuracy": _accuracy,
    "soak": _soak,
}


def _tell(who: str, what: str) -> None:
    _console.print(f"{who}: {what}", highlight=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and what is being measured ends, too
    main()
