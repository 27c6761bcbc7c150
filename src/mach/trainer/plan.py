"""What will a run cost: time, memory and messages of every component?

Each component is built as its rank will build it, and run for a few microbatches on this device.
What a run of all of them comes to follows from that by `mach.forecast`. Times are measured;
memory is an estimate from what is allocated on purpose, beside what Python and torch take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mach.channels.base import Edge, Kind
from mach.component import Component
from mach.component.join import enter
from mach.component.losses import distillation_loss, target_loss
from mach.config import Config
from mach.data import Batches, Dataset
from mach.forecast import Durations, forecast, in_flight
from mach.optim import Optimizer
from mach.rank import resident_bytes
from mach.results import Cost
from mach.trainer.assemble import Assembly
from mach.trainer.measure import Stopwatch, Times, computing

_LONGEST_S = 30.0
"""Longest that all measurements take, slow networks aside."""


@dataclass(frozen=True)
class Part:
    """Body, head or student of one component."""

    cost: Cost
    """Parameters, and FLOPs of a forward of one sample."""
    times: Times
    """For one microbatch."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, beside what Python and torch take."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """In flight, by the schedule, and of the microbatch that is worked on."""
    channels: int
    """Slots of its edges."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Share:
    """One component."""

    blocks: range
    parts: dict[str, Part]
    """By name: body, head and, where it has one, student."""
    durations: Durations
    memory: Memory
    staleness_steps: float
    busy_s: float
    """For one microbatch, with its part of the optimizer step."""
    busy_fraction: float
    of_mean: float
    """Its time as a multiple of the mean over all components."""


@dataclass(frozen=True)
class Traffic:
    """One edge."""

    edge: Edge
    frame_bytes: int
    """For one microbatch, as it travels."""
    bytes_per_s: float
    """Speed that the link needs so that nobody waits for it."""


@dataclass(frozen=True)
class Plan:
    """A run before it begins."""

    config: Config
    device: torch.device
    shares: list[Share]
    traffic: list[Traffic]
    samples_per_s: float
    process_bytes: int
    """What a process takes before it builds anything: Python, torch and mach."""


def plan(config: Config, dataset: Dataset, device: torch.device, lanes: int) -> Plan:
    """Build and measure every component of a run, one after the other.

    Args:
        config: with its cut (`mach.trainer.settle`).
        device: where the components will compute.
        lanes: how many of them can compute at the same time.
    """
    empty = _resident_when_empty()
    assembly = Assembly(config, dataset.task)
    batches = Batches(dataset, config.seed, config.microbatch_size, device)
    costs, edges = assembly.costs(), _edges(assembly, device)
    watch = Stopwatch(device, _LONGEST_S, 4 * config.components)
    measured: list[_Measured] = []
    inputs, _ = batches.train(0)
    for k in range(config.components):
        one = _Measured(assembly, k, batches, inputs, watch, device)
        measured.append(one)
        inputs = one.output
    ahead = forecast(config, [one.durations for one in measured], lanes)
    mean_s = sum(ahead.busy_s) / len(measured)
    shares = []
    for k, one in enumerate(measured):
        kinds = {"body": costs.bodies[k], "head": costs.heads[k], "student": costs.students.get(k)}
        shares.append(
            Share(
                blocks=assembly.bodies[k],
                parts={name: Part(cost, one.times[name]) for name, cost in kinds.items() if cost},
                durations=one.durations,
                memory=one.memory([edge for edge in edges if k in (edge.source, edge.target)]),
                staleness_steps=config.staleness(k),
                busy_s=ahead.busy_s[k],
                busy_fraction=ahead.busy_fractions[k],
                of_mean=ahead.busy_s[k] / mean_s,
            )
        )
    traffic = [
        Traffic(edge, size, size / ahead.pace_s)
        for edge in edges
        for size in (edge.frame_bytes(Kind.TRAIN),)
    ]
    samples_per_s = config.microbatch_size / ahead.pace_s
    return Plan(config, device, shares, traffic, samples_per_s, empty)


class _Measured:
    """A component, run for a few microbatches and then dropped."""

    def __init__(
        self,
        assembly: Assembly,
        k: int,
        batches: Batches,
        inputs: Tensor,
        watch: Stopwatch,
        device: torch.device,
    ) -> None:
        self._config, self._k = assembly.config, k
        self._inputs, (self._x, self._y) = inputs, batches.train(0)
        component, optimizers = assembly.component(k, device)
        assembly.rehearse(k, component, batches)
        self._context = computing(assembly.config, device)
        with torch.no_grad(), self._context():
            self.output: Tensor = component.body(self._enter(component, inputs))
        self._gradient = self._gradient_for(k)
        self.durations = self._run(component, watch)
        self._weigh(component, optimizers)
        self.times = self._times(component, watch)

    def memory(self, edges: list[Edge]) -> Memory:
        """Bytes, with the slots of these edges."""
        flying = in_flight(self._config, self._k)
        stashed = self._config.replay == "stash"
        kept = flying.kept + (flying.bare if stashed else 0)
        versions = flying.versions if stashed else 0
        waiting = (flying.kept + flying.bare) * (self._inputs.nbytes + self._y.nbytes)
        if self._config.surrogate > 0:
            waiting += flying.bare * self.output.nbytes
        # At the top the graph that is kept is the one that is worked on.
        beside = max(0, kept - (0 if flying.bare and not stashed else 1))
        return Memory(
            weights=self._weights + versions * self._body_bytes,
            gradients=self._gradients,
            optimizer=self._optimizer,
            activations=waiting + beside * self._graph + self._working,
            channels=sum(e.credits * max(e.frame_bytes(kind) for kind in Kind) for e in edges),
        )

    def _enter(self, component: Component, h: Tensor) -> Tensor:
        return enter(component.body, h, self._x)

    def _gradient_for(self, k: int) -> Tensor | None:
        top = k == self._config.components - 1
        return None if top or self._config.feedback == 0 else torch.zeros_like(self.output)

    def _run(self, component: Component, watch: Stopwatch) -> Durations:
        """As the trainer does: forward and backward, soon and late, distil, step."""

        def laps(lap: Callable[[], None]) -> None:
            lap()
            for stale in (0, 0 if component.predictor is not None else 1):
                component.forward("plan", self._inputs, self._x, self._y, stale)
                lap()
                if component.answers:
                    component.answer("plan")
                component.backward("plan", self._gradient)
                lap()
            if component.student is not None:
                component.distil(self._x, self._inputs, self._y)
            lap()
            component.step()
            if component.student is not None:
                component.student.update.step(0)
            lap()

        forward_s, backward_s, bare_s, late_s, distil_s, step_s = watch.medians(laps)
        return Durations(forward_s, bare_s, backward_s, late_s, distil_s, step_s)

    def _weigh(self, component: Component, optimizers: dict[str, Optimizer]) -> None:
        """Bytes of what the component holds."""
        modules = component.modules()
        tensors = {
            id(t): t for m in modules.values() for t in (*m.parameters(), *m.buffers())
        }.values()
        parameters = [t for t in tensors if isinstance(t, nn.Parameter) and t.requires_grad]
        self._weights = sum(t.nbytes for t in tensors)
        self._gradients = sum(t.nbytes for t in parameters)
        self._body_bytes = sum(p.nbytes for p in component.body.parameters())
        states = [t for one in optimizers.values() for t in one.state().values()]
        self._optimizer = sum(t.nbytes for t in states)
        own = {t.untyped_storage().data_ptr() for t in tensors}
        leaf = self._inputs.detach()
        leaf = leaf.requires_grad_(leaf.is_floating_point() and self._k > 0)
        self._graph = self._saved(own, lambda: component.body(self._enter(component, leaf)))
        h = self.output.detach().requires_grad_()
        head = self._saved(own, lambda: component.head(h))
        self._working = self._graph + head
        if component.student is not None:
            network = component.student.network
            self._working += self._saved(own, lambda: network(self._x))

    def _saved(self, own: set[int], run: Callable[[], Tensor]) -> int:
        """Bytes that autograd keeps of a forward, weights aside."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), self._context():
            out = run()
        kept[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()
        return sum(kept.values())

    def _times(self, component: Component, watch: Stopwatch) -> dict[str, Times]:
        """Of its parts, each by itself."""
        targets = component.targets(self._y)
        gradient = self._k > 0 and self._config.feedback > 0

        def body(h: Tensor) -> Tensor:
            with self._context():
                out: Tensor = component.body(self._enter(component, h))
            return out

        def head(h: Tensor) -> Tensor:
            with self._context():
                logits = component.head(h)
            return target_loss(logits, targets)

        times = {
            "body": watch.times(component.body, body, self._inputs, gradient),
            "head": watch.times(component.head, head, self.output, True),
        }
        if component.student is not None:
            network = component.student.network

            def student(x: Tensor) -> Tensor:
                with self._context():
                    guess = network(x)
                return distillation_loss(guess, self._inputs)

            times["student"] = watch.times(network, student, self._x, False)
        return times


def _resident_when_empty() -> int:
    """What a rank takes before it builds anything."""
    h = torch.zeros(1, requires_grad=True) * 1
    torch.autograd.backward([h], [torch.ones(1)])  # a gradient from outside: torch imports 30 MB
    return resident_bytes()


def _edges(assembly: Assembly, device: torch.device) -> list[Edge]:
    links = assembly.links(device)
    return [edge for link in links for edge in (link.up, link.down) if edge is not None]
