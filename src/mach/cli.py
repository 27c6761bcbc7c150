"""What can a person ask of `mach`?"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import MISSING
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

_HELP = """train: run a chain; takes Hydra overrides. plan: print what that will cost; takes the
same. generate: let the chain or a window of a
language model write; takes run=.. prompt=.. and more. compare: print in what runs differ; takes
their folders. models: list what a run has, with what it costs, and choose. consolidate: train a
window together, taught by the chain. cascade: ask a small one first. export: write one of them as
files that need no mach. predict: ask it about samples in a file. serve: let it answer over HTTP.
report: draw runs and sweeps on one page; takes their folders. watch: show a run, or all below a
folder, while they run. dashboard: wandb's workspace for them. `mach VERB --help` says more"""

Arguments = TypeVar("Arguments")


def main() -> None:
    """Entry point of the `mach` command."""
    _open_closed_streams()
    _escape_what_has_no_bytes()
    try:
        Path.cwd()
    except FileNotFoundError:
        print("mach: the working directory is gone. Change to one that is there", file=sys.stderr)
        sys.exit(2)
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
    sys.exit(answer(options.verb, sys.argv[2:]))


def answer(verb: str, arguments: list[str]) -> int:
    """Run a verb. Returns the exit code; what ends it early is said in one line."""
    from mach.errors import MachError
    from mach.outofmemory import OF_A_MODEL, OF_A_RUN, told

    try:
        with told(OF_A_RUN if verb in ("train", "plan") else OF_A_MODEL):
            code = _VERBS[verb](arguments)
        sys.stdout.flush()
        return code
    except MachError as error:
        print(f"mach: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads, such as head, has enough
        # Python's own last flush must not meet the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("mach: stopped by Ctrl-C", file=sys.stderr)
        return 130


def _open_closed_streams() -> None:
    """Give streams that whoever started us has closed (`>&-`) a file that keeps nothing: what is
    opened next would take their numbers, and torch's agent redirects them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
                os.close(file)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, "w" if number else "r", closefd=False)
            setattr(sys, name, stream)


def _escape_what_has_no_bytes() -> None:
    """A terminal may have fewer characters than a language model writes, or than a name has: such
    a one is written as \\u20ac, as it is in what we say of mistakes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


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

    def act(config: GenerateConfig) -> int:
        from mach.generate import generate

        return generate(config)

    return _ask(
        "generate",
        arguments,
        GenerateConfig,
        act,
        "Let the chain or a window of a language model go on with a prompt.",
        "mach generate runs/mine window=1..3 prompt='To be, or' tokens=100",
    )


def _compare(arguments: list[str]) -> int:
    from mach.launcher.compare import main as compare

    return compare(arguments)


def _report(arguments: list[str]) -> int:
    from mach.page.main import main as report

    return report(arguments)


def _export(arguments: list[str]) -> int:
    from mach.config import ExportConfig

    def act(config: ExportConfig) -> int:
        from mach.export.export import export
        from mach.report.publish import publish

        folder = export(config)
        publish(folder, config)
        print(folder)
        return 0

    return _ask(
        "export",
        arguments,
        ExportConfig,
        act,
        "Write the chain or a window of a run as files that need no mach.",
        "mach export runs/mine window=1..3 format=onnx",
    )


def _consolidate(arguments: list[str]) -> int:
    from mach.config import ConsolidateConfig

    def act(config: ConsolidateConfig) -> int:
        from mach.consolidation.consolidate import consolidate

        print(consolidate(config, lambda line: print(line, flush=True)).path)
        return 0

    return _ask(
        "consolidate",
        arguments,
        ConsolidateConfig,
        act,
        "Train student, bodies and head of a window together, taught by the whole chain, and keep "
        "the result beside the run's own.",
        "mach consolidate runs/mine window=2..3 steps=1000",
    )


def _cascade(arguments: list[str]) -> int:
    from mach.config import CascadeConfig

    def act(config: CascadeConfig) -> int:
        from mach.report.cascade import tell

        return tell(config)

    return _ask(
        "cascade",
        arguments,
        CascadeConfig,
        act,
        "Ask a small model of a run first and a large one where it is not sure: find the "
        "threshold, and tell accuracy and mean cost.",
        "mach cascade runs/mine small=consolidated/2..2 --accuracy 0.97",
    )


def _models(arguments: list[str]) -> int:
    from mach.config import ModelsConfig

    def act(config: ModelsConfig) -> int:
        from mach.report.models import tell  # imports torch

        return tell(config)

    return _ask(
        "models",
        arguments,
        ModelsConfig,
        act,
        "List the exits and windows of a run with what they cost, mark the Pareto frontier, and "
        "choose one within limits.",
        "mach models runs/mine --min-accuracy 0.98 --max-latency-ms 1",
    )


def _predict(arguments: list[str]) -> int:
    from mach.config import PredictConfig

    def act(config: PredictConfig) -> int:
        from mach.asking.predict import predict

        return predict(config)

    return _ask(
        "predict",
        arguments,
        PredictConfig,
        act,
        "Write what a model says of each sample, as CSV or JSON lines.",
        "mach predict runs/mine --input test.npz window=1..3",
    )


def _serve(arguments: list[str]) -> int:
    from mach.config import ServeConfig

    def act(config: ServeConfig) -> int:
        from mach.serve.server import serve

        return serve(config)

    return _ask(
        "serve",
        arguments,
        ServeConfig,
        act,
        "Answer over HTTP with a model: /predict, a page to try it at /, and /docs.",
        "mach serve runs/mine window=1..3 port=8000",
    )


def _ask(
    verb: str,
    arguments: list[str],
    kind: type[Arguments],
    act: Callable[[Arguments], int],
    description: str,
    example: str,
) -> int:
    """Run a verb whose arguments are the fields of a dataclass.

    Its first field may be given as a word alone, and each as key=value, --key value or --key=value.
    """
    from mach.config.describe import options
    from mach.configfile import from_arguments

    known = [option.key for option in options(kind)]
    first = known[0]
    parser = argparse.ArgumentParser(
        prog=f"mach {verb}",
        usage=f"%(prog)s {first.upper()} [key=value | --key value ..]",
        description=description,
        epilog=f"An example: {example}",
        allow_abbrev=False,
    )
    for option in options(kind):
        if option.key != first:
            default = "needed" if option.default is MISSING else f"default: {option.default}"
            text = f"{option.text} ({default})".replace("%", "%%")
            flag = f"--{option.key.replace('_', '-')}"
            parser.add_argument(flag, dest=option.key, metavar="..", help=text)
    parser.add_argument("words", nargs="*", metavar="key=value", help=f"{first} is needed")
    given = vars(parser.parse_intermixed_args(arguments))
    words = list[str](given.pop("words"))
    keys = [word.partition("=")[0] if "=" in word else "" for word in words]
    alone = [i for i, key in enumerate(keys) if key not in known]
    if alone and first not in keys:
        words[alone[0]] = f"{first}={words[alone[0]]}"
    words += [f"{name}={value}" for name, value in given.items() if value is not None]
    return act(from_arguments(kind, words))


def _watch(arguments: list[str]) -> int:
    from mach.report.watch import main as watch

    return watch(arguments)


def _dashboard(arguments: list[str]) -> int:
    from mach.report.dashboard import main as dashboard

    return dashboard(arguments)


_VERBS = {
    "train": _train,
    "plan": _plan,
    "generate": _generate,
    "compare": _compare,
    "models": _models,
    "consolidate": _consolidate,
    "cascade": _cascade,
    "export": _export,
    "predict": _predict,
    "serve": _serve,
    "report": _report,
    "watch": _watch,
    "dashboard": _dashboard,
}
