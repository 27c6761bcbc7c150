"""How does a component save while it trains on?

What it has is copied at once, which takes as long as copying memory does; a thread writes it. A
save that is asked for while the one before is still being written waits for that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from mach.errors import SaveError

Write = Callable[[int, Mapping[str, Tensor]], None]


class Saver:
    """Writes one checkpoint after the other."""

    def __init__(self, write: Write, first_step: int, on_failed: Callable[[str], None]) -> None:
        """
        Args:
            write: writes step and tensors; called on the saver's thread.
            first_step: what is there already.
            on_failed: told what kept a checkpoint from being written; called on the saver's thread.
        """
        self._write, self._on_failed = write, on_failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._last: Future[None] | None = None
        self.asked = first_step
        """The last step that was to be saved."""
        self.saved = first_step
        """The last step that is."""
        self.failed = 0
        """Saves that could not be written."""

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Begin to write a copy of these tensors."""
        self.wait()
        self.asked = step
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._last = self._thread.submit(self._run, step, copies)

    def wait(self) -> None:
        """Return when all that was begun is written, or has failed."""
        if self._last is not None:
            self._last.result()

    def _run(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        try:
            self._write(step, tensors)
            self.saved = step
        except (SaveError, OSError) as error:
            self.failed += 1
            self._on_failed(str(error))
