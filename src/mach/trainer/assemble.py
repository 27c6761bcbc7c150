"""How is component k put together from the config?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from mach.channels import Link, links
from mach.component import Component, GradientPredictor, Late, Recomputing, Student
from mach.component.join import joins
from mach.component.soft import SoftTargets
from mach.config import Config
from mach.data import Batches
from mach.metrics import Task
from mach.models import (
    Family,
    autocast_dtypes,
    build_body,
    build_head,
    build_predictor,
    build_student,
    cost,
    family_of,
    targets_of_a_sample,
)
from mach.optim import Optimizer, beside, matrices_of
from mach.results import Cost, Costs
from mach.shapes import TensorSpec

_T = TypeVar("_T")


class Assembly:
    """The network of a run as every component sees it: family, cut, shapes between the parts."""

    def __init__(self, config: Config, task: Task) -> None:
        self.config = config
        self.task = task
        self.family: Family = family_of(config, task)
        self.bodies = config.bodies()
        self.activations = self.family.activations([blocks.stop for blocks in self.bodies])
        self._autocast_dtypes = cache(self._find_dtypes)

    def payloads(self, device_type: str = "cpu") -> list[TensorSpec]:
        """What each component sends up, one microbatch of it, as it is made on such a device."""
        specs = self.activations
        if self.config.optim.precision == "bf16" and len(specs) > 1:
            dtypes = self._autocast_dtypes("cuda" if device_type == "cuda" else "cpu")
            specs = [replace(s, dtype=d) for s, d in zip(specs, dtypes, strict=True)]
        return [spec.batched(self.config.microbatch_size) for spec in specs]

    def _find_dtypes(self, device_type: str) -> list[torch.dtype]:
        ends = [blocks.stop for blocks in self.bodies[:-1]]  # the top's goes nowhere
        return [*autocast_dtypes(self.family, ends, device_type), self.activations[-1].dtype]

    def links(self, device: torch.device) -> list[Link]:
        """The edges of the whole chain, between components on such devices."""
        config = self.config
        payloads, wire_dtype = self.payloads(device.type), config.transport.wire_dtype
        logits = 0
        if config.head.soft > 0:
            logits = targets_of_a_sample(self.family) * self.task.classes
        return links(payloads, config.credits, config.feedback, wire_dtype, logits)

    def check(self) -> None:
        """Refuse parts that do not fit each other.

        Raises:
            ConfigError: labels that predictors are to know do not fit an activation.
        """
        if self.config.predictor.enabled:
            with torch.device("meta"):
                for k in range(self.config.components - 1):
                    spec = self.activations[k]
                    build_predictor(self.family, spec, self.bodies[k], self.config)

    def dry(self, ask: Callable[[torch.device], _T]) -> _T:
        """What needs shapes and no numbers is asked on meta; of somebody else's modules that cannot
        be there, or do not fit there, on the CPU.

        Args:
            ask: is given the device, which is the default one meanwhile.
        """
        meta, cpu = torch.device("meta"), torch.device("cpu")
        try:
            with meta:
                return ask(meta)
        except Exception:
            if not self.family.foreign:
                raise
            with cpu:
                return ask(cpu)

    def costs(self) -> Costs:
        """Inference cost of every part, by a dry run."""
        return self.dry(lambda _: self._costs())

    def _costs(self) -> Costs:
        inputs = [self.task.sample, *self.activations]
        students: dict[int, Cost] = {}
        bodies: list[Cost] = []
        heads: list[Cost] = []
        for k in range(self.config.components):
            body, head = self._body_and_head(k)
            raw = [self.task.sample] if joins(body) else []
            bodies.append(Cost(*cost(body, inputs[k], *raw)))
            heads.append(Cost(*cost(head, self.activations[k], beside=body)))
        if self.config.student.enabled:
            for k in range(1, self.config.components):
                student = build_student(
                    self.family, self.activations[k - 1], self.bodies[k], self.config
                )
                students[k] = Cost(*cost(student, self.task.sample))
        return Costs(bodies, heads, students)

    def component(self, k: int, device: torch.device) -> tuple[Component, dict[str, Optimizer]]:
        """Component k on its device, and its optimizers by what they train."""
        config, top = self.config, k == self.config.components - 1
        body, head = (module.to(device) for module in self._body_and_head(k))
        if config.model.checkpointing:
            body = Recomputing(body)
        chain = self._chain_optimizer(k, body, head if top else None)
        optimizers = {"chain": chain}
        head_optimizer = None
        if not top:
            head_optimizer = optimizers["head"] = self._head_optimizer(head)
        student = None
        if config.student.enabled and k > 0:
            student, optimizers["student"] = self._student(k, device)
        predictor = None
        if config.predictor.enabled and not top:
            predictor, optimizers["predictor"] = self._predictor(k, device)
        component = Component(
            body,
            head,
            chain,
            targets=self.family.targets,
            head_update=head_optimizer,
            head_weight=1.0 if top else config.head.weight,
            student=student,
            mix=config.student.mix,
            predictor=predictor,
            predicted=config.predictor.enabled,
            soft=None if top else _soft(config.head.soft, config.head.temperature),
            student_soft=_soft(config.student.soft, config.head.temperature),
            teaches=config.head.soft > 0 and k > 0,
            one_hop=config.one_hop and not top,
            late=_late(config, k),
            feedback=config.gradient_factor if k > 0 else 0.0,
            accumulate=config.accumulate,
            precision=config.optim.precision,
            compiled=config.model.compile and device.type != "meta",
        )
        return component, optimizers

    def rehearse(self, k: int, component: Component, batches: Batches) -> None:
        """Let component k compile its modules, where it does: before the first step, and before
        any neighbour waits for it.

        Raises:
            ConfigError: they cannot be compiled.
        """
        if not self.config.model.compile:
            return
        x, y = batches.train(0)
        inputs = x
        if k > 0:
            spec = self.payloads(x.device.type)[k - 1]
            inputs = torch.zeros(spec.shape, dtype=spec.dtype, device=x.device)
        component.rehearse(inputs, x, y)

    def _body_and_head(self, k: int) -> tuple[nn.Module, nn.Module]:
        below = self.activations[k - 1] if self.config.model.raw_input and k > 0 else None
        body = build_body(self.family, self.bodies[k], self.config.seed, below)
        head = build_head(self.family, self.activations[k], self.bodies[k], self.config.seed)
        if self.config.components == 1:
            self.family.tie(body, head)
        return body, head

    def _head_optimizer(self, head: nn.Module) -> Optimizer:
        config = self.config
        lr = config.optim.lr if config.head.lr is None else config.head.lr
        return Optimizer(_named("head", head), replace(config.optim, lr=lr), steps=config.steps)

    def _chain_optimizer(self, k: int, body: nn.Module, head: nn.Module | None) -> Optimizer:
        config = self.config
        named = _named("body", body)
        if head is not None:
            taken = set(body.parameters())  # what head and body share is stepped once
            named += [(name, p) for name, p in _named("head", head) if p not in taken]
        tau, above = config.staleness(k), config.components - 1 - k
        return Optimizer(
            named,
            config.optim,
            steps=config.steps,
            matrices=matrices_of("body", body),
            tau=tau,
            hops=min(above, config.reach) if config.late else 0,
            above=above,
        )

    def _student(self, k: int, device: torch.device) -> tuple[Student, Optimizer]:
        config, own = self.config, self.config.student
        network = build_student(self.family, self.activations[k - 1], self.bodies[k], config)
        network = network.to(device)
        optimizer = Optimizer(
            _named("student", network),
            beside(config.optim, own.lr, own.optimizer, own.muon_lr),
            steps=config.steps,
            matrices=matrices_of("student", network),
        )
        student = Student(
            network,
            optimizer,
            task_weight=own.task_weight,
            accumulate=config.accumulate,
            dtype=self.payloads(device.type)[k - 1].dtype,
        )
        return student, optimizer

    def _predictor(self, k: int, device: torch.device) -> tuple[GradientPredictor, Optimizer]:
        config = self.config
        network = build_predictor(self.family, self.activations[k], self.bodies[k], config)
        network = network.to(device)
        optimizer = Optimizer(
            _named("predictor", network),
            beside(config.optim, config.predictor.lr),
            steps=config.steps,
        )
        predictor = GradientPredictor(
            network, optimizer, accumulate=config.accumulate, labels=config.predictor.labels
        )
        return predictor, optimizer


def _late(config: Config, k: int) -> Late:
    return Late(
        replay=config.replay,
        compensation=config.compensation,
        surrogate=config.surrogate if k < config.components - 1 else 0.0,
        predict=config.predict,
        ahead=config.ahead(k),
    )


def _soft(weight: float, temperature: float) -> SoftTargets | None:
    return SoftTargets(weight, temperature) if weight > 0 else None


def _named(prefix: str, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(f"{prefix}.{name}", p) for name, p in module.named_parameters()]
