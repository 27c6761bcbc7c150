"""What must a module leave undone when it is not its turn to learn?

A batch norm counts every batch it normalises in training, but a component runs a microbatch
through its body more than once: again before its backward (replay), and with the student's guess
in place of the child's activation. It must count each microbatch once. And at inference it uses
what it has counted, as dropout drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class Modes:
    """Switches of a component's modules; free of cost where there is nothing to switch."""

    def __init__(self, *modules: nn.Module) -> None:
        parts = [part for module in modules for part in module.modules()]
        self._norms = [p for p in parts if isinstance(p, _BatchNorm) and p.track_running_stats]
        self._modal = [p for p in parts if isinstance(p, (_BatchNorm, _DropoutNd))]

    def uncounted(self) -> AbstractContextManager[None]:
        """Train in here as always, but do not count the batch in the running statistics."""
        return self._without_counting() if self._norms else nullcontext()

    def inference(self) -> AbstractContextManager[None]:
        """Normalise with the running statistics, drop nothing."""
        return self._inference() if self._modal else nullcontext()

    @contextmanager
    def _without_counting(self) -> Iterator[None]:
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self._norms:
                norm.track_running_stats = True

    @contextmanager
    def _inference(self) -> Iterator[None]:
        for part in self._modal:
            part.training = False
        try:
            yield
        finally:
            for part in self._modal:
                part.training = True
