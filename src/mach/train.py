"""One rank of a run: config, rank, component, channels, trainer, checkpoint, report.

mach train [overrides]                                   starts a group of these
torchrun --nproc-per-node=K -m mach.train [overrides]    starts a group, too
"""

import sys

from mach.introduce import introduce, parse

if __name__ == "__main__":
    introduce(sys.argv[1:])  # may start this program again, before the slow imports below

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from mach import checkpoint, runfolder
from mach.channels import connect, links
from mach.component import Component
from mach.config import Config
from mach.configfile import fingerprint, from_yaml, load, to_yaml
from mach.data import Batches, open_dataset
from mach.errors import ConfigError, MachError, PeerLostError
from mach.launcher.compose import compose
from mach.launcher.preflight import preflight, resume_point
from mach.optim import Optimizer
from mach.rank import Rank, join, occupy, transport
from mach.report.reporter import Reporter
from mach.report.reporter import build as build_reporter
from mach.results import Outcome, result_of
from mach.trainer import Assembly, Trainer, Worker, program

_START_TIMEOUT_S = 300.0
_GRACE_S = 5.0


def train(rank: Rank, config: Config, run_dir: Path) -> None:
    """Train component `rank.index` from the first step to the last and report."""
    k = rank.index
    device = occupy(rank, config)
    dataset = open_dataset(config.data)
    assembly = Assembly(config, dataset.task)
    component, optimizers = assembly.component(k, device)
    start = resume_point(config, run_dir)
    if start is not None:
        checkpoint.load(start, k, component, optimizers)
    first_step = start.step if start is not None else 0
    with build_reporter(config, run_dir, k, first_step) as reporter:
        channels = connect(
            links(assembly.payloads(), config.credits, config.feedback),
            k,
            rank.store,
            device,
            transport(rank, config),
            config.transport,
            identity={"run": rank.run_id, "config": fingerprint(config)},
            incarnation=rank.restarts,
        )
        batches = Batches(dataset, config.seed, config.microbatch_size, device)
        worker = Worker(k, component, channels, batches, device)
        hooks = RankHooks(config, run_dir, rank, component, optimizers, reporter, first_step)
        actions = program(config, k, batches, first_step)
        outcome = Trainer(config, worker, optimizers, dataset.task, actions, hooks).run()
        channels.close_up()
    _publish(rank, config, run_dir, assembly, outcome, first_step)


class RankHooks:
    """Writes a rank's log lines and checkpoints."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        rank: Rank,
        component: Component,
        optimizers: dict[str, Optimizer],
        reporter: Reporter,
        first_step: int,
    ) -> None:
        self._config, self._run_dir, self._rank = config, run_dir, rank
        self._component, self._optimizers = component, optimizers
        self._reporter, self._first_step = reporter, first_step

    def logged(self, record: dict[str, Any]) -> None:
        """Hand a line to the report."""
        self._reporter.log(record)

    def flushed(self, step: int, last: bool) -> None:
        """Save, where a checkpoint is due and not the one we began from."""
        every = self._config.checkpoint.every
        if step == self._first_step or not (last or (every and step % every == 0)):
            return
        k = self._rank.index
        files = checkpoint.save(self._run_dir, step, k, self._component, self._optimizers)
        checkpoint.complete(self._run_dir, step, k, files, self._config, self._rank.store)


def _publish(
    rank: Rank,
    config: Config,
    run_dir: Path,
    assembly: Assembly,
    outcome: Outcome,
    first_step: int,
) -> None:
    """Report what this component found; the last one in writes the run's result."""
    rank.store.set(f"outcome/{rank.index}", json.dumps(asdict(outcome)))
    if rank.store.add("outcome/count", 1) < rank.size:
        return
    outcomes = []
    for k in range(rank.size):
        values = json.loads(rank.store.get(f"outcome/{k}"))
        values["scores"] = {int(origin): s for origin, s in values["scores"].items()}
        outcomes.append(Outcome(**values))
    result = result_of(
        config, assembly.costs(), outcomes, first_step=first_step, restarts=rank.restarts
    )
    runfolder.write_atomically(run_dir / runfolder.RESULT, json.dumps(result, indent=1))


# --- coming and going ------------------------------------------------------------------------


def _agree(rank: Rank, run_dir: Path, overrides: list[str]) -> tuple[Config, Path]:
    """Under somebody else's torchrun rank 0 composes and checks the config; the others take it."""
    key = f"config/{rank.restarts}"
    if rank.index == 0:
        try:
            config = compose(overrides)
            run_dir = Path(config.out or run_dir)
            if config.components != rank.size:
                raise ConfigError(
                    f"components: expected {rank.size}, the number of torchrun's processes; got "
                    f"{config.components}. Use --nproc-per-node={config.components} or "
                    f"components={rank.size}."
                )
            if rank.restarts == 0:
                config = preflight(config, run_dir, rank.local_size)
            else:
                config = load(run_dir / runfolder.CONFIG)
            message = {"config": to_yaml(config), "run_dir": str(run_dir)}
        except MachError as error:
            rank.store.set(key, json.dumps({"refused": str(error), "code": error.exit_code}))
            raise
        rank.store.set(key, json.dumps(message))
        return config, run_dir
    message = json.loads(rank.store.get(key))
    if "refused" in message:  # rank 0 says why
        _leave(message["code"])
    return from_yaml(message["config"]), Path(message["run_dir"])


def _run(options: Any, overrides: list[str]) -> None:
    rank = join(_START_TIMEOUT_S)
    if options.launcher is not None:
        config, run_dir = load(options.run / runfolder.CONFIG), options.run
    else:
        config, run_dir = _agree(rank, options.run, overrides)
    train(rank, config, run_dir)


def _leave(code: int) -> None:
    """End at once: a thread that waits in gloo would abort the interpreter's own shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Run as one rank, and end with 0, 1 or 2 (see mach.errors)."""
    options, overrides = parse(sys.argv[1:])
    handler = get_error_handler()  # torchrun's way to hear of an error
    handler.initialize()
    try:
        _run(options, overrides)
    except MachError as error:
        who = "" if options.component is None else f"component {options.component}: "
        print(f"mach: {who}{error}", file=sys.stderr, flush=True)
        handler.record_exception(error)
        if isinstance(error, PeerLostError):
            time.sleep(_GRACE_S)  # let the one that fell be found before those it took with it
        _leave(error.exit_code)
    except Exception as error:
        handler.record_exception(error)
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1)
    _leave(0)


if __name__ == "__main__":
    main()
