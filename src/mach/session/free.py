"""How does a rank train when it waits for nobody, and nobody for it?

A life of a component: enter the roster, take up what the last life saved, let the links come up in
the background, train, save by itself, and when all steps are taken go on serving the neighbours
until the last of them is done.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from importlib import import_module
from types import FrameType
from typing import Any

from torch import Tensor

from mach import checkpoint
from mach.channels import Bell, Channels, connect_live
from mach.config import Config
from mach.configfile import fingerprint
from mach.errors import MachError, PeerLostError, StoppedError
from mach.rank import Rank, age_s, keep_heap, transport
from mach.report.artifact import Artifact
from mach.report.reporter import build
from mach.report.trace import traced
from mach.roster import Beat, Pulse, Roster, Silence
from mach.say import say
from mach.session.publish import publish
from mach.session.saver import Saver
from mach.session.seat import Seat
from mach.sweeptable import results_of
from mach.trainer import Faults, FreeWorker, Trainer, moves

_LONGEST_PAUSE_S = 60.0


def train_free(seat: Seat) -> None:
    """Train to the end and report.

    Raises:
        StoppedError: somebody asked this process to stop, or whoever started it is gone; what it
            had is saved.
        PeerLostError: nobody supervises this run, and another component is gone or hangs; saved.
    """
    _Life(seat).run()


def enlist(rank: Rank, config: Config) -> None:
    """Before anything slow: is this the right run, and does this life have to wait?

    Where the lives before it ended without a step it waits 0, b, 2 b, 4 b .. seconds.

    Raises:
        ConfigError: the run in the store is another one.
    """
    roster = Roster(rank.store, config.components)
    charter = {"run": rank.run_id, "config": fingerprint(config)}
    if not rank.supervised and rank.index == 0:  # nobody else does
        roster.found(charter)
    roster.check_charter(charter)
    barren = roster.count_barren(rank.index)
    if barren > 1:
        time.sleep(min(config.launch.backoff_s * 2.0 ** (barren - 2), _LONGEST_PAUSE_S))


def warm_up() -> None:
    """Load now what torch loads at the first gradient from outside (0.3 s) and mach at the first
    save (1 s): nobody is waiting yet."""
    import_module("torch.fx.experimental.symbolic_shapes")
    checkpoint.warm_up()


def _exits(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of every exit: none of them was another component's to know before."""
    found = results_of(result).items()
    return {f"eval_{key}": value for key, value in found if key.startswith("exit_")}


def _lives_before(seat: Seat) -> int:
    """Lives of the component in this run up to the checkpoint that it goes on from."""
    start = seat.start
    if start is None or not start.is_of(seat.run_dir):
        return 0
    return int(start.manifest.get("life", -1)) + 1


class _BellClock:
    """Real time; whatever arrives rings the bell."""

    def __init__(self, bell: Bell) -> None:
        self.now = time.monotonic
        self.wait = bell.wait


class _Life:
    """One life of a component."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._roster = Roster(seat.rank.store, seat.config.components)
        self._life = self._roster.enter(
            seat.rank.index,
            at_least=_lives_before(seat),
            restarts=seat.rank.restarts if seat.rank.supervised else 0,  # else of the whole group
        )
        self._bell = Bell()
        self._state = "starting"
        self._over = False
        self._stopped_by = ""
        self._error: type[MachError] = StoppedError
        self._worker: FreeWorker | None = None
        self._saver = Saver(self._write, seat.first_step, self._say)
        roster = self._roster.clone()
        self._pulse = Pulse(
            roster,
            seat.rank.index,
            self._beat,
            on_over=self._end,
            on_lost=lambda: self._end("the launcher is gone"),
            on_silent=self._miss,
            silence=None if seat.rank.supervised else self._silence(roster),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        seat, config, k = self._seat, self._seat.config, self._seat.rank.index
        began = seat.first_step, seat.began_from
        with build(config, seat.run_dir, k, *began) as self._reporter:
            channels = self._channels = self._connect()
            worker = self._worker = FreeWorker(
                k,
                seat.component,
                channels,
                seat.batches,
                seat.device,
                config=config,
                life=self._life,
                clock=_BellClock(self._bell),
                over=lambda: self._over,  # the run may be over before there is a worker
            )
            warm_up()
            self._await_neighbours(channels)
            self._faults = Faults(config.faults, k, self._life, seat.component, self._drop_links)
            self._faults.reached(seat.first_step)
            self._state = "training"
            batches = seat.batches.evaluation_batches(config.eval.samples)
            actions = moves(config, worker, batches, seat.first_step)
            self._trainer = Trainer(config, worker, seat.optimizers, seat.task, actions, self)
            keep_heap()
            with traced(config, seat.run_dir, worker, self, self._life):
                self._trainer.run()
            if self._stopped_by:
                self._stop()
            channels.close_links()
            self._state = "publishing"
            result = publish(seat, self._roster, self._go_on)
            if result is not None:
                self._reporter.log({"step": config.steps, **_exits(result)})
            self._state = "reporting"  # leaving the `with` waits for wandb
        self._pulse.stop()

    # --- hooks of the trainer ------------------------------------------------------------------

    def logged(self, record: dict[str, Any]) -> None:
        """Hand a line to the report."""
        links_up = sum(link.up for link in self._channels.links)
        self._reporter.log({**record, "links_up": links_up, "age_s": age_s()})

    def stepped(self, step: int) -> None:
        """This life was not in vain; and do what is to go wrong here."""
        if step == self._seat.first_step + 1:
            self._roster.bore_fruit(self._seat.rank.index)
        self._faults.reached(step)

    def flushed(self, step: int, last: bool) -> None:
        """Save, and after the last step tell what this component found."""
        if step > self._saver.asked:
            self._save(step)
        if last:
            self._state = "saving"
            self._saver.wait()
            if self._saver.saved < step:
                raise checkpoint.unsaved(step)
            self._state = "done"
            outcome = self._trainer.outcome()
            self._roster.finish(self._seat.rank.index, outcome.to_json())

    # --- details -------------------------------------------------------------------------------

    def _connect(self) -> Channels:
        seat = self._seat
        return connect_live(
            seat.links(),
            seat.rank.index,
            seat.rank.store,
            seat.device,
            transport(seat.rank, seat.config),
            seat.config.transport,
            identity={"run": seat.rank.run_id, "config": fingerprint(seat.config)},
            life=self._life,
            bell=self._bell,
            bind=seat.config.launch.bind,
            store_host=seat.rank.store_host,
            on_refused=self._say,
        )

    def _await_neighbours(self, channels: Channels) -> None:
        """Give the chain time to come up: whoever is there first would spend its steps on students
        and local losses. One that comes back to a chain that runs goes on at once."""
        if self._comes_back():
            return
        deadline = time.monotonic() + self._seat.config.start_timeout_s
        for link in channels.links:
            while not (link.up or self._over or self._roster.is_gone(link.neighbour)):
                if time.monotonic() > deadline:
                    self._say(f"component {link.neighbour} did not come up; going on without it")
                    break
                self._bell.wait(0.1)

    def _comes_back(self) -> bool:
        """Not after a stop, or a restart of the whole group: then all begin together."""
        rank = self._seat.rank
        return rank.supervised and self._life > 0 and self._roster.starts(rank.index) > 1

    def _drop_links(self, for_s: float) -> None:
        for link in self._channels.links:
            link.drop(for_s)

    def _go_on(self) -> None:
        """Show that this component does something."""
        assert self._worker is not None
        self._worker.progress += 1

    def _write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """On the saver's thread."""
        seat, k = self._seat, self._seat.rank.index
        files = checkpoint.save(seat.run_dir, step, k, tensors)
        checkpoint.seal(seat.run_dir, step, k, files, seat.config, self._life, seat.preprocessing)
        self._reporter.saved(Artifact("checkpoint", step, checkpoint.part(seat.run_dir, step, k)))

    def _save(self, step: int) -> None:
        """Begin to write a checkpoint; wait only where the one before is not yet written. Disks may
        take longer than training may stand still."""
        state, self._state = self._state, "saving"
        self._saver.save(step, checkpoint.tensors_of(self._seat.component, self._seat.optimizers))
        self._state = state

    def _stop(self) -> None:
        step = self._seat.component.version
        if step > self._saver.asked:
            self._save(step)
        self._state = "saving"
        self._saver.wait()
        self._pulse.stop()
        raise self._error(
            f"stopped at step {step} ({self._stopped_by}); saved step {self._saver.saved}"
        )

    def _beat(self) -> Beat:
        worker = self._worker
        counts = {} if worker is None else worker.counts
        return Beat(
            life=self._life,
            pid=os.getpid(),
            progress=0 if worker is None else worker.progress,
            step=self._seat.component.version,
            state=self._state,
            counters={**counts, "failed_saves": self._saver.failed},
        )

    def _end(self, why: str = "") -> None:
        """Let the training loop end. From another thread."""
        self._stopped_by = self._stopped_by or why
        self._over = True
        self._bell.ring()

    def _silence(self, roster: Roster) -> Silence:
        """torchrun ends all ranks of its own machine when one falls, but not those of others."""
        config, k = self._seat.config, self._seat.rank.index
        others = set(range(config.components)) - {k}
        return Silence(roster, others, config.start_timeout_s, config.launch.hang_s)

    def _miss(self, component: int) -> None:
        """Nobody would start it again."""
        self._error = PeerLostError
        self._end(f"component {component} is gone or hangs")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._worker is None:  # nothing to save yet
            say(f"stopped by {name} before the first step")
            os._exit(StoppedError.exit_code)
        # Not `_end`: the bell's lock may be held by the very code this interrupts. The loop looks
        # by itself at least every half second.
        self._stopped_by = self._stopped_by or name
        self._over = True

    def _say(self, text: str) -> None:
        say(f"component {self._seat.rank.index}: {text}")
