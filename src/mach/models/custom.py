"""The family of a network that somebody brings along, as a function that returns its blocks.

The function makes all blocks at once, so it is called under one seed and the slice is taken of what
it returns: the first weights do not depend on the cut. Every component so holds the whole network
for a moment, on the CPU, before it keeps its slice.

Shapes are found on the meta device, where nothing is computed. The blocks are built on the CPU all
the same, and their numbers dropped: a factory may read numbers of its weights, or keep a table that
it makes once, which has to be of use afterwards. A block that cannot run on meta (an operator
without a meta kernel, a plain tensor on the CPU) is run on the CPU, on two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from mach.config import CustomConfig, StudentConfig
from mach.errors import ConfigError
from mach.metrics import Task
from mach.models.defaults import head_for, is_tokens, student_for
from mach.models.factory import MISTAKES, call_for_blocks, call_for_module, did
from mach.models.family import Builder, Family
from mach.shapes import TensorSpec

_META, _CPU = torch.device("meta"), torch.device("cpu")
_ROWS = 2
"""Samples of a dry run: a batch norm needs more than one value, and a block that mixes up the batch
shows it."""


class Custom(Family):
    """No stem: block 0 takes the raw sample. Heads and students by the activation's rank."""

    foreign = True

    def __init__(self, config: CustomConfig, task: Task) -> None:
        """
        Args:
            config: `depth` is None until it has been found.
            task: what the data asks of the model.
        """
        super().__init__(task)
        self._config = config

    def stem(self) -> nn.Module:
        return nn.Identity()

    def block(self, index: int) -> nn.Module:
        return self.whole()[index]

    def slice(self, blocks: range, build: Builder) -> list[nn.Module]:
        whole = build("blocks", 0, self.whole)
        assert isinstance(whole, nn.ModuleList)
        return [whole[i] for i in blocks]

    def whole(self) -> nn.ModuleList:
        """All blocks, from torch's global random state; where meta is the default device those of
        the dry runs, the same ones at each call.

        Raises:
            ConfigError: the factory cannot be found, raises, or returns something else.
        """
        return self._dry if torch.get_default_device().type == "meta" else self._called()

    @cached_property
    def outputs(self) -> list[TensorSpec]:
        """What comes out of each block, one sample of it.

        Raises:
            ConfigError: as `whole`; or blocks whose shapes do not meet.
        """
        with _META:
            on_meta = self.whole()
        on_cpu: nn.ModuleList | None = None
        spec, outputs = self.task.sample, list[TensorSpec]()
        for index, block in enumerate(on_meta):
            try:
                out = _dry_run(block, spec, _META)
            except MISTAKES:  # because of meta? then not on the CPU
                with torch.random.fork_rng(devices=[]), _CPU:
                    on_cpu = on_cpu or self.whole()
                    out = self._run_on_cpu(index, on_cpu[index], spec)
            spec = self._output(index, block, spec, out)
            outputs.append(spec)
        if self._config.logits:
            self._check_logits(spec)
        return outputs

    def activations(self, ends: Sequence[int]) -> list[TensorSpec]:
        return [self.outputs[end - 1] for end in ends]

    def head(self, activation: TensorSpec) -> nn.Module:
        place = self._config.head
        if place is not None:
            return call_for_module("model.head", place, activation, self.task)
        return head_for(activation, self.task, per_position=self.per_position)

    def exit(self, activation: TensorSpec, end: int) -> nn.Module:
        if not (self._config.logits and end == len(self.outputs)):
            return self.head(activation)
        return nn.Flatten(0, 1) if self.per_position else nn.Identity()

    def student(self, activation: TensorSpec, config: StudentConfig) -> nn.Module:
        place = self._config.student
        if place is not None:
            return call_for_module("model.student", place, activation, self.task, config)
        return student_for(activation, self.task, config)

    def targets(self, y: Tensor) -> Tensor:
        if y.ndim == 1:
            return y
        return y.flatten() if self.per_position else y[:, -1]

    @cached_property
    def per_position(self) -> bool:
        """Whether each position of a text predicts the token after it. Where not every block keeps
        the positions, the end of the text alone is predicted."""
        length = self.task.sample.shape[0]
        return is_tokens(self.task) and all(
            len(spec.shape) == 2 and spec.shape[0] == length for spec in self.outputs
        )

    def name(self, index: int, block: nn.Module) -> str:
        """How messages begin that concern one block."""
        return f"model.factory={self._config.factory}: block {index} ({type(block).__name__})"

    # --- details -------------------------------------------------------------------------

    @cached_property
    def _dry(self) -> nn.ModuleList:
        with torch.random.fork_rng(devices=[]), _CPU:
            return _without_numbers(self._called())

    def _called(self) -> nn.ModuleList:
        config = self._config
        blocks = call_for_blocks("model.factory", config.factory, config.arguments or {})
        if config.depth not in (None, len(blocks)):
            raise ConfigError(
                f"model.factory={config.factory}: expected model.depth={config.depth} blocks; it "
                f"returned {len(blocks)}. Leave model.depth out, or give the factory the arguments "
                "it had when the run began."
            )
        return blocks

    def _run_on_cpu(self, index: int, block: nn.Module, spec: TensorSpec) -> object:
        before = "the raw sample" if index == 0 else f"what block {index - 1} returns"
        try:
            return _dry_run(block, spec, _CPU)
        except MISTAKES as error:
            raise ConfigError(
                f"{self.name(index, block)}: expected it to take {before}, {spec} of each sample; "
                f"it begins with {_first_layer(block)} and {did(error)}"
            ) from error

    def _output(self, index: int, block: nn.Module, spec: TensorSpec, out: object) -> TensorSpec:
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"{self.name(index, block)}: expected one tensor from {spec} of each sample; got "
                f"{type(out).__name__}. Wrap the block in a module that returns the tensor alone."
            )
        found = TensorSpec(tuple(out.shape), out.dtype)
        if out.ndim < 2 or len(out) != _ROWS or not out.dtype.is_floating_point:
            raise ConfigError(
                f"{self.name(index, block)}: expected float[{_ROWS}, ..] from "
                f"{spec.batched(_ROWS)}, the batch first; got {found}. Keep samples apart, and "
                "let the first block embed what is no float."
            )
        return TensorSpec(tuple(out.shape[1:]), out.dtype)

    def _check_logits(self, last: TensorSpec) -> None:
        sample, classes = self.task.sample, self.task.classes
        allowed = [(classes,)] + ([(sample.shape[0], classes)] if is_tokens(self.task) else [])
        if last.shape not in allowed:
            raise ConfigError(
                "model.logits=true: expected the last block to return "
                f"{' or '.join(str(list(shape)) for shape in allowed)} for each sample, a number "
                f"for each class; got {last}. Set model.logits=false to have a head put on it."
            )


def _without_numbers(blocks: nn.ModuleList) -> nn.ModuleList:
    """Move blocks to meta. What two layers share they still share there: `Module.to` gives each a
    parameter of its own where it cannot keep the old one, as from the CPU to meta."""
    places = [
        (module, name, tensor)
        for module in blocks.modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    blocks.to(_META)
    moved: dict[int, Tensor] = {}
    for module, name, tensor in places:
        own = getattr(module, name)
        if (first := moved.setdefault(id(tensor), own)) is not own:
            setattr(module, name, first)
    return blocks


def _dry_run(block: nn.Module, spec: TensorSpec, device: torch.device) -> object:
    x = torch.zeros((_ROWS, *spec.shape), dtype=spec.dtype, device=device)
    with torch.no_grad():
        return block(x)


def _first_layer(block: nn.Module) -> str:
    """The layer that says what a block takes."""
    leaves = [m for m in block.modules() if not list(m.children())]
    return repr(next((m for m in leaves if list(m.parameters())), block))
