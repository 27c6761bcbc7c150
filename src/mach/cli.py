"""What can a person ask of `mach`?"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from importlib.metadata import version

_HELP = """train: run a chain; takes Hydra overrides. plan: print what that will cost; takes the
same. generate: let the chain or a window of a
language model write; takes run=.. prompt=.. and more. compare: print in what runs differ; takes
their folders"""


def main() -> None:
    """Entry point of the `mach` command."""
    if sys.argv[1:2] == ["-sc"]:
        sys.exit(_complete(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="mach",
        description="Train one deep network as a chain of components that never wait.",
        epilog="mach train --help explains every option.",
    )
    parser.add_argument("--version", action="version", version=f"mach {version('mach')}")
    parser.add_argument("verb", choices=list(_VERBS), help=_HELP)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="passed on to the verb")
    options = parser.parse_args(sys.argv[1:2])
    sys.exit(_VERBS[options.verb](sys.argv[2:]))


def _complete(arguments: list[str]) -> int:
    from mach.launcher.completion import complete

    return complete(arguments, list(_VERBS))


def _train(arguments: list[str]) -> int:
    if arguments[:1] == ["-sc"]:
        return _complete(arguments[1:])
    from mach.launcher.app import main as train

    sys.argv = ["mach train", *arguments]  # Hydra reads its command line from here
    return train()


def _plan(arguments: list[str]) -> int:
    from mach.launcher.plan import main as plan

    return plan(arguments)


def _generate(arguments: list[str]) -> int:
    from mach.config import GenerateConfig
    from mach.configfile import from_arguments
    from mach.errors import MachError

    unset = (None, "???")
    keys = [f"{f.name}={'..' if f.default in unset else f.default}" for f in fields(GenerateConfig)]
    parser = argparse.ArgumentParser(
        prog="mach generate",
        usage=f"%(prog)s {' '.join(keys)}",
        description="Let the chain or a window of a language model go on with a prompt.",
        epilog="Each key is explained in src/mach/config/generate.py. An example: "
        "mach generate run=runs/mine window=1..3 prompt='To be, or' tokens=100",
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="run and prompt are needed")
    try:
        config = from_arguments(GenerateConfig, parser.parse_args(arguments).words)
        from mach.generate import generate  # imports torch: what is refused above need not wait

        return generate(config)
    except MachError as error:
        print(f"mach: {error}", file=sys.stderr)
        return error.exit_code


def _compare(arguments: list[str]) -> int:
    from mach.launcher.compare import main as compare

    return compare(arguments)


_VERBS = {"train": _train, "plan": _plan, "generate": _generate, "compare": _compare}
