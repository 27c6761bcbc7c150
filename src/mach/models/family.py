"""What must a family of networks provide so that mach can cut and train it?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mach.config import StudentConfig
from mach.metrics import Task
from mach.shapes import TensorSpec, output_spec

Builder = Callable[[str, int, Callable[[], nn.Module]], nn.Module]
"""Builds a module from the seed of its place: role and index, then what builds it."""


class Family(ABC):
    """A stem, then blocks, then a head; and students that stand in for the lower part.

    Trainer and channels know nothing else of a network. Modules must be built on the CPU, or under
    `torch.device("meta")` for a dry run, from torch's global random state alone.
    """

    takes_fewer_tokens = False
    """Whether its modules take the first tokens of a text that is shorter than a sample, too."""

    foreign = False
    """Whether its modules are somebody else's, and may not run on meta."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def stem(self) -> nn.Module:
        """From the raw input [B, *task.sample.shape] to the first block's input."""

    @abstractmethod
    def block(self, index: int) -> nn.Module:
        """Block `index` of the whole network, counted from the input."""

    def slice(self, blocks: range, build: Builder) -> list[nn.Module]:
        """The blocks of one component, the same whatever the cut."""
        return [build("block", i, partial(self.block, i)) for i in blocks]

    def activations(self, ends: Sequence[int]) -> list[TensorSpec]:
        """What comes out of the first n blocks, one sample of it, for each n of `ends` (rising).

        Found by a dry run on the meta device. A family that knows its shapes does better to say
        them: the first meta operation imports a second's worth of torch.
        """
        specs: list[TensorSpec] = []
        with torch.device("meta"):
            spec = output_spec(self.stem(), self.task.sample)
            for index in range(ends[-1]):
                spec = output_spec(self.block(index), spec)
                if index + 1 in ends:
                    specs.append(spec)
        return specs

    @abstractmethod
    def head(self, activation: TensorSpec) -> nn.Module:
        """From an activation [B, *activation.shape] to logits [N, C]."""

    def exit(self, activation: TensorSpec, end: int) -> nn.Module:
        """The head on the output of the first `end` blocks."""
        return self.head(activation)

    def join(self, activation: TensorSpec) -> nn.Module:
        """From a child's activation and the raw input, as a pair, to such an activation."""
        raise AssertionError("the config has refused it")

    @abstractmethod
    def student(self, activation: TensorSpec, config: StudentConfig) -> nn.Module:
        """From the raw input to a guess at a component's output [B, *activation.shape]."""

    @abstractmethod
    def targets(self, y: Tensor) -> Tensor:
        """From the data's y to the N targets of the head's logits."""

    def tie(self, body: nn.Module, head: nn.Module) -> None:  # noqa: B027  # most share nothing
        """Let the top's head share parameters with the stem, where one component has both."""
