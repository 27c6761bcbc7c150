"""What must a module leave undone when it is not its turn to learn?

A batch norm counts every batch it normalises in training, but a component runs a microbatch
through its body more than once: again before its backward (replay), inside it (checkpointing),
and with the student's guess in place of the child's activation. It must count each microbatch once.
And at inference it uses what it has counted, as dropout drops nothing: nor does anything else
that asks whether it trains, like the attention of torch's own transformer layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Modes:
    """Switches of a component's modules."""

    def __init__(self, *modules: nn.Module) -> None:
        self._parts = [part for module in modules for part in module.modules()]
        self._counting: list[tuple[_NormBase, dict[str, Tensor]]] = [
            (part, {name: b.clone() for name, b in part.named_buffers(recurse=False)})
            for part in self._parts
            if isinstance(part, _NormBase) and part.track_running_stats
        ]

    def uncounted(self) -> AbstractContextManager[None]:
        """Train in here as always, but do not count the batch in the running statistics.

        The batch is counted in buffers that nobody reads. (To switch the counting off instead would
        let autograd keep fewer tensors, and checkpointing refuses to recompute a block that keeps
        another number of them than it did at first.)
        """
        return self._without_counting() if self._counting else nullcontext()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Normalise with the running statistics, drop nothing."""
        training = [part for part in self._parts if part.training]
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True

    @contextmanager
    def _without_counting(self) -> Iterator[None]:
        # One that somebody has frozen counts nothing, and reads what is in its buffers.
        learning = [(norm, unread) for norm, unread in self._counting if norm.training]
        found = [(norm, dict(norm._buffers)) for norm, _ in learning]
        for norm, unread in learning:
            norm._buffers.update(unread)
        try:
            yield
        finally:
            for norm, own in found:
                norm._buffers.update(own)
