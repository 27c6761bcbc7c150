"""What would a `free` run do on other hardware, with other links, when somebody dies?

All components in one process on a virtual clock: each microbatch takes as long as we say, each
message as long as we say, and components die and return when we say. Everything is computed for
real and nothing depends on this machine's timing, so a simulation is repeatable bit by bit. The
component whose time is earliest goes next; a frame is seen only from the moment it arrives.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from mach.channels import Channels, Edge, Header, Link, Receiver, Sender
from mach.component import Ages, Component
from mach.config import Config
from mach.data import Batches, Dataset
from mach.errors import ScheduleError
from mach.optim import Optimizer
from mach.results import Outcome, result_of
from mach.schedule import Move
from mach.trainer.assemble import Assembly
from mach.trainer.evaluate import evaluate
from mach.trainer.faults import in_thirds
from mach.trainer.free import FreeWorker, moves
from mach.trainer.loop import Trainer
from mach.trainer.settle import settle


class VirtualClock:
    """The time of one component."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.wake_s = now_s
        """Until when it sleeps, if nothing arrives."""

    def now(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> None:
        """Sleep; the simulation wakes it earlier when something arrives."""
        self.wake_s = self.now_s + timeout_s

    def spend(self, seconds: float) -> None:
        """Work."""
        self.now_s += seconds
        self.wake_s = self.now_s


@dataclass
class _Wire:
    """An edge between two clocks."""

    latency_s: float
    frames: deque[tuple[float, Header, Tensor]] = field(default_factory=deque)
    returning: deque[float] = field(default_factory=deque)
    """When each credit that was given back will be there."""
    newest: Header | None = None
    cut: bool = False


class _TimedSender(Sender):
    def __init__(self, edge: Edge, wire: _Wire, clock: VirtualClock) -> None:
        super().__init__(edge)
        self._wire, self._clock = wire, clock

    @property
    def alive(self) -> bool:
        return not self._wire.cut

    def ready(self) -> bool:
        wire = self._wire
        while wire.returning and wire.returning[0] <= self._clock.now():
            wire.returning.popleft()
        return len(wire.frames) + len(wire.returning) < self.edge.credits

    def send(self, header: Header, payload: Tensor) -> None:
        wire = self._wire
        copy = self.edge.encoding(header.kind).round_trip(payload)
        wire.frames.append((self._clock.now() + wire.latency_s, header, copy))

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._wire.cut = True


class _TimedReceiver(Receiver):
    def __init__(self, edge: Edge, wire: _Wire, clock: VirtualClock) -> None:
        super().__init__(edge)
        self._wire, self._clock = wire, clock

    @property
    def alive(self) -> bool:
        return not self._wire.cut

    @property
    def newest(self) -> Header | None:
        now = self._clock.now()
        here = [header for arrival, header, _ in self._wire.frames if arrival <= now]
        return here[-1] if here else self._wire.newest

    @property
    def next_arrival_s(self) -> float:
        """When the next frame is here; infinity where none is on its way, or the edge is cut."""
        wire = self._wire
        return wire.frames[0][0] if wire.frames and not wire.cut else float("inf")

    def ready(self) -> bool:
        return self.next_arrival_s <= self._clock.now()

    def poll(self) -> tuple[Header, Tensor] | None:
        if not self.ready():
            return None
        wire = self._wire
        _, header, payload = wire.frames.popleft()
        wire.newest = header
        wire.returning.append(self._clock.now() + wire.latency_s)
        return header, payload

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._wire.cut = True

    def _await(self, expected: Header) -> None:
        raise ScheduleError(f"{self.edge.name} at {expected}: nobody waits under free")


class Life:
    """One life of a component: its worker and trainer, and what they last saved."""

    def __init__(self, simulation: Simulation, k: int, number: int, first_step: int) -> None:
        self.clock = VirtualClock(simulation.now_s)
        self.component, self._optimizers = simulation.assembly.component(k, simulation.device)
        self.first_step, self.done = first_step, False
        self.records: list[dict[str, Any]] = []
        self.actions: list[tuple[float, Move]] = []
        self.stepped_s: list[float] = []
        config = simulation.config
        self._spend_time(simulation, k)
        self.worker = FreeWorker(
            k,
            self.component,
            Channels(),
            simulation.batches,
            simulation.device,
            config=config,
            life=number,
            clock=self.clock,
        )
        program = moves(config, self.worker, 0, first_step)
        task = simulation.task
        self.trainer = Trainer(config, self.worker, self._optimizers, task, program, self)
        self._save = simulation.save

    def logged(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def stepped(self, step: int) -> None:
        self.stepped_s.append(self.clock.now_s)

    def flushed(self, step: int, last: bool) -> None:
        self._save(self.worker.index, step, self.component, self._optimizers)
        self.done = self.done or last

    def restore(self, saved: Saved) -> None:
        """Take up what an earlier life saved."""
        for name, module in self.component.modules().items():
            module.load_state_dict(saved.modules[name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state(saved.optimizers[name])
        self.component.resume(saved.step, saved.ages)
        for name, own in self.component.beside().items():
            own.resume(saved.beside[name])

    def _spend_time(self, simulation: Simulation, k: int) -> None:
        """Let a microbatch take its time on the clock."""

        def timed(function: Callable[..., Any], share: float) -> Callable[..., Any]:
            def spending(*arguments: Any, **options: Any) -> Any:
                self.clock.spend(share * simulation.pace_s[k])
                return function(*arguments, **options)

            return spending

        in_thirds(self.component, timed)


@dataclass(frozen=True)
class Saved:
    """A component as it was saved, in memory."""

    step: int
    modules: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Tensor]]
    beside: dict[str, int]
    """Steps of student and predictor."""
    ages: Ages


class Simulation:
    """A chain under `free`, on virtual clocks."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        pace_s: list[float] | None = None,
        latency_s: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            config: as for a run of processes; transport and launch are not used.
            dataset: opened data.
            pace_s: how long a microbatch takes at each component; None: a second everywhere. May
                be changed while the simulation runs.
            latency_s: how long a message is on its way, and a credit on its way back.
            device: where everything lives; None is the CPU.
        """
        self.device = device or torch.device("cpu")
        self.config = config = settle(config, dataset, self.device)
        self.assembly = Assembly(config, dataset.task)
        self.batches = Batches(
            dataset, config.seed, config.microbatch_size, self.device, split=config.eval.split
        )
        self.task = self.batches.task
        self.pace_s = list(pace_s) if pace_s is not None else [1.0] * config.components
        self.now_s = 0.0
        self.lives: list[Life | None] = [None] * config.components
        self._latency_s = latency_s
        self._chain = self.assembly.links(self.device)
        self._saved: dict[int, Saved] = {}
        self._begun = [0] * config.components
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()  # of two events at one time the one asked for first comes first
        for k in range(config.components):
            self.revive(k)

    # --- what happens --------------------------------------------------------------------------

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Let something happen at a time, such as `lambda: simulation.kill(1)`."""
        heapq.heappush(self._events, (time_s, next(self._order), event))

    def kill(self, k: int) -> None:
        """Component k dies; its neighbours see their edges break."""
        life = self.lives[k]
        assert life is not None, f"component {k} is dead already"
        ends = life.worker.channels
        for end in (ends.from_child, ends.to_child, ends.from_parent, ends.to_parent):
            if end is not None:
                end.abort()
        self.lives[k] = None

    def revive(self, k: int) -> None:
        """Component k begins a life: from what it last saved, connected to who is alive."""
        saved = self._saved.get(k)
        life = Life(self, k, self._begun[k], saved.step if saved is not None else 0)
        if saved is not None:
            life.restore(saved)
        self._begun[k] += 1
        self.lives[k] = life
        for link in (k - 1, k):
            if 0 <= link < len(self._chain):
                self._connect(self._chain[link])

    def save(
        self, k: int, step: int, component: Component, optimizers: dict[str, Optimizer]
    ) -> None:
        """Keep component k as it is now."""
        modules = {
            name: {key: value.clone() for key, value in module.state_dict().items()}
            for name, module in component.modules().items()
        }
        states = {
            name: {key: value.clone() for key, value in optimizer.state().items()}
            for name, optimizer in optimizers.items()
        }
        beside = {name: own.steps for name, own in component.beside().items()}
        self._saved[k] = Saved(step, modules, states, beside, component.ages)

    # --- running -------------------------------------------------------------------------------

    def run(self, until_s: float = float("inf")) -> None:
        """Go on until every living component has taken its steps, or until a time."""
        while self.now_s < until_s:
            living = [life for life in self.lives if life is not None]
            if not self._events and all(life.done for life in living):
                return
            if self._events and self._events[0][0] <= min(map(self._wakes, living), default=0.0):
                self.now_s, _, event = heapq.heappop(self._events)
                event()
                continue
            life = min(living, key=self._wakes)
            self.now_s = life.clock.now_s = self._wakes(life)
            action = life.trainer.next
            if isinstance(action, Move):
                life.actions.append((self.now_s, action))
            life.trainer.advance()

    def result(self) -> dict[str, Any]:
        """The run's result (design section 6)."""
        components = [life.component if life is not None else None for life in self.lives]
        windows = self.config.student.enabled
        scores = evaluate(components, self.batches, self.task, self.device, windows=windows)
        outcomes = [Outcome.unknown(k, scores[k]) for k in range(self.config.components)]
        return result_of(self.config, self.assembly.costs(), outcomes)

    @staticmethod
    def _wakes(life: Life) -> float:
        """When a component goes on: now, or when what it sleeps for arrives."""
        clock, ends = life.clock, life.worker.channels
        receivers = [
            e for e in (ends.from_child, ends.from_parent) if isinstance(e, _TimedReceiver)
        ]
        arrival_s = min((end.next_arrival_s for end in receivers), default=float("inf"))
        return max(clock.now_s, min(clock.wake_s, arrival_s))

    def _connect(self, link: Link) -> None:
        """Give the ends of a link new wires; where one end is dead, the other has them cut."""
        child, parent = self.lives[link.up.source], self.lives[link.up.target]
        cut = child is None or parent is None
        up, down = _Wire(self._latency_s, cut=cut), _Wire(self._latency_s, cut=cut)
        if child is not None:
            ends = child.worker.channels
            ends.to_parent = _TimedSender(link.up, up, child.clock)
            if link.down is not None:
                ends.from_parent = _TimedReceiver(link.down, down, child.clock)
        if parent is not None:
            ends = parent.worker.channels
            ends.from_child = _TimedReceiver(link.up, up, parent.clock)
            if link.down is not None:
                ends.to_child = _TimedSender(link.down, down, parent.clock)
