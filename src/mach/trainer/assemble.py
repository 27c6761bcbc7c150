"""How is component k put together from the config?"""

from __future__ import annotations

import torch
from torch import nn

from mach.component import Component, Student
from mach.config import Config
from mach.metrics import Task
from mach.models import (
    Family,
    build_body,
    build_head,
    build_student,
    cost,
    family_of,
)
from mach.optim import Optimizer, student_config
from mach.results import Cost, Costs
from mach.schedule import staleness
from mach.shapes import TensorSpec


class Assembly:
    """The network of a run as every component sees it: family, cut, shapes between the parts."""

    def __init__(self, config: Config, task: Task) -> None:
        self.config = config
        self.task = task
        self.family: Family = family_of(config, task)
        self.bodies = config.bodies()
        self.activations = self.family.activations([blocks.stop for blocks in self.bodies])

    def payloads(self) -> list[TensorSpec]:
        """What each component sends up, one microbatch of it."""
        return [spec.batched(self.config.microbatch_size) for spec in self.activations]

    def costs(self) -> Costs:
        """Inference cost of every part, by a dry run on meta."""
        inputs = [self.task.sample, *self.activations]
        students: dict[int, Cost] = {}
        with torch.device("meta"):
            bodies = [
                Cost(*cost(build_body(self.family, blocks, 0), spec))
                for blocks, spec in zip(self.bodies, inputs, strict=False)
            ]
            heads = [
                Cost(*cost(build_head(self.family, spec, blocks, 0), spec))
                for blocks, spec in zip(self.bodies, self.activations, strict=True)
            ]
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
        body = build_body(self.family, self.bodies[k], config.seed).to(device)
        head = build_head(self.family, self.activations[k], self.bodies[k], config.seed)
        head = head.to(device)
        chain = self._chain_optimizer(k, body, head if top else None)
        optimizers = {"chain": chain}
        head_optimizer = None
        if not top:
            head_optimizer = Optimizer(_named("head", head), config.optim, steps=config.steps)
            optimizers["head"] = head_optimizer
        student = None
        if config.student.enabled and k > 0:
            student, optimizers["student"] = self._student(k, device)
        component = Component(
            body,
            head,
            chain,
            targets=self.family.targets,
            head_update=head_optimizer,
            head_weight=1.0 if top else config.head.weight,
            student=student,
            mix=config.student.mix,
            feedback=config.feedback if k > 0 else 0.0,
            accumulate=config.accumulate,
            replay=config.replay,
            precision=config.optim.precision,
        )
        return component, optimizers

    def _chain_optimizer(self, k: int, body: nn.Module, head: nn.Module | None) -> Optimizer:
        config = self.config
        named = _named("body", body) + (_named("head", head) if head is not None else [])
        matrices = frozenset(n for n, p in _named("body", body) if p.ndim == 2)
        tau = staleness(config.components, k, config.effective_delay, config.accumulate)
        return Optimizer(
            named,
            config.optim,
            steps=config.steps,
            matrices=matrices - _embeddings(body),
            tau=tau,
        )

    def _student(self, k: int, device: torch.device) -> tuple[Student, Optimizer]:
        config = self.config
        network = build_student(self.family, self.activations[k - 1], self.bodies[k], config)
        network = network.to(device)
        optimizer = Optimizer(
            _named("student", network),
            student_config(config.optim, config.student),
            steps=config.steps,
        )
        student = Student(
            network,
            optimizer,
            task_weight=config.student.task_weight,
            accumulate=config.accumulate,
        )
        return student, optimizer


def _named(prefix: str, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(f"{prefix}.{name}", p) for name, p in module.named_parameters()]


def _embeddings(body: nn.Module) -> set[str]:
    """Tables are looked up, not multiplied: Muon's orthogonal step is not meant for them."""
    return {
        f"body.{name}.weight" for name, m in body.named_modules() if isinstance(m, nn.Embedding)
    }
