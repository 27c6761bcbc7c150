"""What can a person ask of `mach`?"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version


def main() -> None:
    """Entry point of the `mach` command."""
    parser = argparse.ArgumentParser(
        prog="mach",
        description="Train one deep network as a chain of components that never wait.",
        epilog="mach train --help shows every option and its default.",
    )
    parser.add_argument("--version", action="version", version=f"mach {version('mach')}")
    parser.add_argument("verb", choices=["train"], help="train: run a chain; takes Hydra overrides")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="passed on to the verb")
    options = parser.parse_args(sys.argv[1:2])
    sys.exit(_VERBS[options.verb](sys.argv[2:]))


def _train(arguments: list[str]) -> int:
    from mach.launcher.app import main as train

    sys.argv = ["mach train", *arguments]  # Hydra reads its command line from here
    return train()


_VERBS = {"train": _train}
