"""What does a component weigh that has these blocks: in parameters, or in measured time?

The stem weighs on the lowest component; each carries its head, and its student where it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from mach.balance import Cost
from mach.component.losses import distillation_loss, target_loss
from mach.config import Config
from mach.data import Batches, Dataset
from mach.errors import ConfigError
from mach.models import build_body, build_head, build_student, family_of
from mach.models.factory import MISTAKES, did
from mach.shapes import TensorSpec, spec_of
from mach.trainer.measure import Stopwatch, Times, computing

_Loss = Callable[[Tensor], Tensor]

_LONGEST_S = 20.0
"""Longest that all measurements take, slow networks aside: each part is run once at least."""


def by_params(config: Config, dataset: Dataset) -> Cost:
    """Weighs in parameters."""
    family = family_of(config, dataset.task)
    depth, students = config.model.total(config.components), config.student.enabled
    ends = family.activations(range(1, depth + 1))
    # Somebody else's modules may not run, or be built, on meta.
    with torch.device("cpu" if family.foreign else "meta"):
        stem, *blocks = map(_size, build_body(family, range(depth), config.seed))
        heads = [_size(build_head(family, spec, range(end), 0)) for end, spec in _by_end(ends)]
        guests = [
            _size(build_student(family, spec, range(end, depth), config)) if students else 0
            for end, spec in _by_end(ends[:-1])
        ]
    before = list(accumulate(blocks, initial=0))

    def cost(k: int, start: int, stop: int) -> float:
        return before[stop] - before[start] + heads[stop - 1] + (guests[start - 1] if k else stem)

    return cost


def by_time(config: Config, dataset: Dataset, device: torch.device) -> Cost:
    """Weighs in seconds for a microbatch: a component's forward, again as often as it is replayed,
    its backward, and its student's, which go through its body and head as well."""
    measured = _Measured(config, dataset, device)
    students = config.student.enabled

    def cost(k: int, start: int, stop: int) -> float:
        again = 1.0 if students and k > 0 and config.student.task_weight > 0 else 0.0
        body = measured.blocks[start + 1 if k else 0 : stop + 1]  # the stem is the first of them
        head = measured.heads[stop - 1]
        forward_s = (1 + replays(config, k) + again) * sum(t.forward_s for t in body)
        backward_s = sum(t.backward_s + again * t.through_s for t in body)
        head_s = head.forward_s + head.backward_s + again * (head.forward_s + head.through_s)
        guest = measured.students[start - 1] if students and k else Times(0.0, 0.0, 0.0)
        return forward_s + backward_s + head_s + guest.forward_s + guest.backward_s

    return cost


def replays(config: Config, k: int) -> float:
    """How many second forwards component k runs for each microbatch."""
    if config.replay == "stash":
        return 0.0
    return min(1.0, config.staleness(k))


class _Measured:
    """Times of the stem and every block, and of head and student at every place for a cut.

    Heads, and students, of activations of one shape are taken to be equally fast.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        family = family_of(config, dataset.task)
        depth = config.model.total(config.components)
        ends = family.activations(range(1, depth + 1))
        x, y = Batches(dataset, config.seed, config.microbatch_size, device).train(0)
        targets, context = family.targets(y), computing(config, device)
        watch = Stopwatch(device, _LONGEST_S, depth + 1 + 2 * len(set(ends)))
        body = build_body(family, range(depth), config.seed)
        self.blocks: list[Times] = []
        heads: dict[tuple[TensorSpec, bool], Times] = {}
        students: dict[TensorSpec, Times] = {}

        def run(module: nn.Module, h: Tensor) -> Tensor:
            with context():
                out: Tensor = module(h)
            return out

        def head_loss(module: nn.Module, h: Tensor) -> Tensor:
            return target_loss(run(module, h), targets)

        def student_loss(child: Tensor, module: nn.Module, x: Tensor) -> Tensor:
            return distillation_loss(run(module, x), child)

        def timed(key: str, module: nn.Module, loss: _Loss, x: Tensor, gradient: bool) -> Times:
            try:
                return watch.times(module, loss, x, gradient)
            except MISTAKES as error:
                if not family.foreign:
                    raise
                raise ConfigError(
                    f"{key}: expected it to train on {spec_of(x)}, as model.balance=time measures "
                    f"it; it {did(error)}"
                ) from error

        h, moving = x, False  # whether there is anything below that wants a gradient
        for index, part in enumerate(body):
            part.to(device)
            self.blocks.append(watch.times(part, partial(run, part), h, moving))
            moving = moving or any(p.requires_grad for p in part.parameters())
            with torch.no_grad():
                h = run(part, h.clone())  # a block may change it in place, and the first has x
            part.to("cpu")  # one at a time: the network need not fit in this device
            if index == 0:  # the stem
                continue
            spec, top = ends[index - 1], index == depth
            if (spec, top) not in heads:
                head = build_head(family, spec, range(index), config.seed).to(device)
                heads[spec, top] = timed("model.head", head, partial(head_loss, head), h, True)
            if config.student.enabled and not top and spec not in students:
                student = build_student(family, spec, range(index, depth), config).to(device)
                loss = partial(student_loss, h, student)
                students[spec] = timed("model.student", student, loss, x, False)
        self.heads = [heads[spec, end == depth] for end, spec in _by_end(ends)]
        self.students = [students[spec] for spec in ends[:-1]] if config.student.enabled else []


def _by_end(ends: list[TensorSpec]) -> list[tuple[int, TensorSpec]]:
    """Activations with the number of blocks that make them."""
    return list(enumerate(ends, start=1))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
