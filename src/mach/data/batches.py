"""What does a component feed itself as microbatch b?"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mach.data.dataset import Dataset
from mach.data.files import Array
from mach.data.order import Order, subset, windows
from mach.data.prefetch import Microbatch, Name, Prefetch

# B samples of a batch, T context

# Travel to the device as they are. The rest is large, byte-swapped, or barely known to torch.
_TRAVELS: frozenset[np.dtype[Any]] = frozenset(
    np.dtype(t) for t in ("bool", "u1", "i1", "i2", "i4", "f2", "f4")
)


_LIVES = 8
"""Orders kept beside the first: one epoch's order of a large set is worth remembering."""


class Batches:
    """Microbatches of the training split, and batches of a held-out one, on a device.

    All are pure functions of (seed, number): nothing is kept that a resumed run would miss.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        microbatch_size: int,
        device: torch.device,
        prefetch: int = 0,
        split: str = "test",
    ) -> None:
        """
        Args:
            dataset: opened data.
            seed: the run's.
            microbatch_size: B.
            device: where batches go.
            prefetch: training microbatches that a thread makes ahead.
            split: what is evaluated on, `test` or `validation`.
        """
        self.wait_s = 0.0
        """Seconds spent in `train` and `targets`: waiting for a microbatch, or making it."""
        self._dataset = dataset
        self._size = microbatch_size
        self._device = device
        self._scale = 1.0 / dataset.std
        self._is_text = dataset.y_train is None
        if self._is_text:
            self._context = dataset.task.sample.shape[0]
            self._window = np.arange(self._context + 1)
        self._seed = seed
        self._train, self._held_out = dataset.split("train"), dataset.split(split)
        self.task = self._held_out.task
        """What is asked of a model on the split that is evaluated."""
        self._order = self._order_of(seed)
        self._order_of_life = lru_cache(maxsize=_LIVES)(self._new_order)
        # The same mapped memory without memmap's cost per indexing.
        self._x_train, self._y_train = np.asarray(self._train.x), _plain(self._train.y)
        self._x_held_out, self._y_held_out = np.asarray(self._held_out.x), _plain(self._held_out.y)
        self._subset = lru_cache(maxsize=1)(subset)
        self._prefetch = Prefetch(self._make, prefetch, device) if prefetch else None

    @property
    def samples(self) -> int:
        """Training samples of one epoch."""
        return self._order.samples

    def train(self, b: int, origin: int = 0, life: int = 0) -> tuple[Tensor, Tensor]:
        """Microbatch b.

        Args:
            b: its number.
            origin: the component that chose it. Under `sync` and `delayed` all are of component
                0; under `free` a component that goes on without its child chooses its own.
            life: which life of that component: each has an order of its own.

        Returns:
            x: float32 [B, ..] standardised, or int64 tokens [B, T].
            y: int64 labels [B], or the token after each token [B, T].
        """
        began = perf_counter()
        name = Name(b, origin, life)
        made = self._make(name) if self._prefetch is None else self._prefetch.take(name)
        self.wait_s += perf_counter() - began
        return made

    def targets(self, b: int, origin: int = 0, life: int = 0) -> Tensor:
        """y of microbatch b alone, at once: for who does not look at x, which costs far more.

        Of a text they are its own next tokens: the same windows, which are fetched ahead.
        """
        if self._y_train is None:
            return self.train(b, origin, life)[1]
        began = perf_counter()
        starts = self._starts(Name(b, origin, life))
        y = self._targets(self._x_train, self._y_train, starts)
        self.wait_s += perf_counter() - began
        return y

    def _make(self, name: Name) -> Microbatch:
        b, origin, life = name
        view, augmentation = None, self._dataset.augmentation
        if augmentation is not None:
            view = partial(augmentation.view, seed=self._seed, b=b, origin=origin, life=life)
        return self._gather(self._x_train, self._y_train, self._starts(name), view)

    def _starts(self, name: Name) -> Array:
        b, origin, life = name
        first = origin == life == 0
        order = self._order if first else self._order_of_life(origin, life)
        starts = order.microbatch(b)
        return starts if self._train.chosen is None else self._train.chosen[starts]

    def evaluation_batches(self, samples: int | None = None) -> int:
        """Number of batches of the held-out split, or of as many of its `samples`."""
        return -(-self._evaluated(samples) // self._size)

    def evaluation(self, batch: int, samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Batch of the held-out split, or of as many of its `samples`; the last may be shorter."""
        starts = self._held_out_starts(batch, samples)
        return self._gather(self._x_held_out, self._y_held_out, starts)

    def evaluation_targets(self, batch: int, samples: int | None = None) -> Tensor:
        """y of such a batch alone."""
        starts = self._held_out_starts(batch, samples)
        return self._targets(self._x_held_out, self._y_held_out, starts)

    def _held_out_starts(self, batch: int, samples: int | None) -> Array:
        count = self._evaluated(samples)
        assert 0 <= batch < self.evaluation_batches(samples), batch
        indices = np.arange(batch * self._size, min(count, (batch + 1) * self._size))
        total = self._held_out.samples
        if count < total:
            indices = self._subset(total, count)[indices]
        if self._is_text:
            # From the first place in the held-out text to the last one with a byte to predict.
            places = len(self._x_held_out) - self._context - 1
            indices = indices * places // max(1, total - 1)
        elif self._held_out.chosen is not None:
            indices = self._held_out.chosen[indices]
        return indices

    def _order_of(self, seed: int) -> Order:
        samples = self._train.samples
        if self._is_text:
            return windows(len(self._train.x), self._context, self._size, seed)
        return Order(samples, self._size, seed)

    def _new_order(self, origin: int, life: int) -> Order:
        mixed = np.random.SeedSequence([self._seed, origin, life]).generate_state(1)
        return self._order_of(int(mixed[0]))

    def _evaluated(self, samples: int | None) -> int:
        total = self._held_out.samples
        return total if samples is None else min(samples, total)

    def _gather(
        self,
        x: Array,
        y: Array | None,
        starts: Array,
        view: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if y is None:
            rows = x[starts[:, None] + self._window]
            if rows.dtype not in _TRAVELS:
                rows = rows.astype(np.int64)
            tokens = self._move(rows)
            return tokens[:, :-1].to(torch.int64), tokens[:, 1:].to(torch.int64)
        # Not take(): it copies the whole array first if that is unaligned (as arrays in a zip are),
        # byte-swapped or in Fortran order.
        rows = np.ascontiguousarray(x[starts])
        if rows.dtype not in _TRAVELS:
            rows = rows.astype(np.float32)
        raw = self._move(rows)
        raw = raw if view is None else view(raw)
        features = raw.to(torch.float32).sub_(self._dataset.mean).mul_(self._scale)
        return features, self._targets(x, y, starts)

    def _targets(self, x: Array, y: Array | None, starts: Array) -> Tensor:
        if y is None:  # of a text they are its own next tokens
            return self._gather(x, y, starts)[1]
        return self._move(y[starts].astype(np.int64))

    def _move(self, array: Array) -> Tensor:
        """To the device; from pinned memory, so that the host does not wait for a GPU."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _plain(array: Array | None) -> Array | None:
    return None if array is None else np.asarray(array)
