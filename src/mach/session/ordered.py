"""How does a rank train when the schedule fixes the order?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mach import checkpoint, runfolder
from mach.channels import Channels, connect
from mach.configfile import fingerprint
from mach.rank import keep_heap, transport
from mach.report.artifact import Artifact
from mach.report.reporter import Reporter, build
from mach.report.trace import traced
from mach.results import Outcome, result_of
from mach.session.seat import Seat
from mach.trainer import Faults, Trainer, Worker, program


def train_ordered(seat: Seat) -> None:
    """Train in step with the neighbours, to the end, and report."""
    config, rank = seat.config, seat.rank
    with build(config, seat.run_dir, rank.index, seat.first_step, seat.began_from) as reporter:
        channels = connect(
            seat.links(),
            rank.index,
            rank.store,
            seat.device,
            transport(rank, config),
            replace(config.transport, start_timeout_s=config.start_timeout_s),
            identity={"run": rank.run_id, "config": fingerprint(config)},
            incarnation=rank.restarts,
            bind=config.launch.bind,
            store_host=rank.store_host,
        )
        worker = Worker(rank.index, seat.component, channels, seat.batches, seat.device)
        faults = Faults(
            config.faults,
            rank.index,
            rank.restarts,
            seat.component,
            lambda _: _break(channels),  # for good: here a broken edge ends the run
        )
        actions = program(config, rank.index, seat.batches, seat.first_step)
        hooks = Hooks(seat, reporter, faults)
        keep_heap()
        with traced(config, seat.run_dir, worker, hooks, rank.restarts):
            outcome = Trainer(config, worker, seat.optimizers, seat.task, actions, hooks).run()
        channels.close_up()
        if hooks.unsaved:
            raise checkpoint.unsaved(config.steps)
    _publish(seat, outcome)


class Hooks:
    """Writes a rank's log lines and checkpoints."""

    def __init__(self, seat: Seat, reporter: Reporter, faults: Faults) -> None:
        self._seat, self._reporter, self._faults = seat, reporter, faults
        self.unsaved = False
        """Whether the last checkpoint could not be written."""
        faults.reached(seat.first_step)

    def logged(self, record: dict[str, Any]) -> None:
        """Hand a line to the report."""
        self._reporter.log(record)

    def stepped(self, step: int) -> None:
        """Do what is to go wrong here."""
        self._faults.reached(step)

    def flushed(self, step: int, last: bool) -> None:
        """Save, where a checkpoint is due and not the one we began from."""
        seat = self._seat
        if step == seat.first_step or not seat.config.saves_at(step):
            return
        tensors = checkpoint.tensors_of(seat.component, seat.optimizers)
        rank, run_dir = seat.rank, seat.run_dir
        is_saved = checkpoint.save_together(
            run_dir,
            step,
            rank.index,
            tensors,
            seat.config,
            rank.store,
            seat.preprocessing,
            rank.restarts,
        )
        self.unsaved = not is_saved
        if is_saved:
            part = checkpoint.part(run_dir, step, rank.index)
            self._reporter.saved(Artifact("checkpoint", step, part))


def _break(channels: Channels) -> None:
    ends = (channels.from_child, channels.to_child, channels.from_parent, channels.to_parent)
    for end in ends:
        if end is not None:
            end.abort()


def _publish(seat: Seat, outcome: Outcome) -> None:
    """Report what this component found; the last one in writes the run's result."""
    rank, config = seat.rank, seat.config
    here = f"outcome/{rank.restarts}"  # a start that ended may have told some already
    rank.store.set(f"{here}/{rank.index}", outcome.to_json())
    if rank.store.add(f"{here}/count", 1) < rank.size:
        return
    outcomes = [Outcome.from_json(rank.store.get(f"{here}/{k}")) for k in range(rank.size)]
    result = result_of(
        config,
        seat.assembly.costs(),
        outcomes,
        first_step=seat.first_step,
        restarts=rank.restarts,
    )
    runfolder.write_result(seat.run_dir, result)
