"""Which samples make microbatch b?

Microbatch b holds the stream's positions b B .. b B + B - 1. The stream is one epoch after the
other, and each epoch a permutation drawn from (seed, epoch), so there is nothing to save and
nothing to send: whoever knows (seed, b) knows the samples.

    stream   | epoch 0: 2 0 3 1 4 | epoch 1: 4 1 0 2 3 | ..
    B = 3      [-----] [---- -- ] [...                       microbatch 1 straddles two epochs
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mach.data.files import Array

# n samples of an epoch, B samples of a microbatch


class Order:
    """Where the training samples begin, in the order in which they are drawn."""

    def __init__(
        self, samples: int, microbatch_size: int, seed: int, stride: int = 1, shifts: int = 1
    ) -> None:
        """Make a stream that is shuffled anew in every epoch.

        Args:
            samples: n.
            microbatch_size: B.
            seed: the run's.
            stride: distance between the beginnings of neighbours: 1 for samples along an axis, the
                window's length for windows of a text.
            shifts: the first sample of an epoch begins anywhere below this, drawn anew for each.
        """
        self.samples = samples
        self._size = microbatch_size
        self._seed = seed
        self._stride = stride
        self._shifts = shifts
        small = samples * stride + shifts < 2**31
        self._dtype = np.dtype(np.int32 if small else np.int64)
        # Two: microbatches under way may lie on both sides of an epoch's end.
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> Array:
        """Beginnings of all samples of one epoch [n]."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, epoch))))
        starts = np.arange(self.samples, dtype=self._dtype)
        rng.shuffle(starts)
        if self._stride > 1:
            starts *= self._stride
        if self._shifts > 1:
            starts += self._dtype.type(rng.integers(self._shifts))
        starts.flags.writeable = False  # it is handed out and kept
        return starts

    def microbatch(self, b: int) -> Array:
        """Beginnings of the samples of microbatch b [B]."""
        epoch, offset = divmod(b * self._size, self.samples)
        starts = self.epoch(epoch)[offset : offset + self._size]
        while len(starts) < self._size:
            epoch += 1
            starts = np.concatenate([starts, self.epoch(epoch)[: self._size - len(starts)]])
        return starts


def windows(length: int, context: int, microbatch_size: int, seed: int) -> Order:
    """Windows of `context` bytes, and the byte after each, over a text of `length` bytes.

    They do not overlap, and their common origin is shifted in every epoch, so that in time a byte
    is met at every place of a window. Room for the largest shift is kept at the end, which makes
    the number of windows the same in all epochs.
    """
    samples = max(1, (length - context) // context)
    return Order(samples, microbatch_size, seed, context, min(context, length - samples * context))


def subset(total: int, samples: int) -> Array:
    """One of each of `samples` equal stretches of `total` indices, in order.

    Sorted labels are all met because the stretches cover everything; labels that repeat with some
    period are because the place within a stretch is drawn (always the same ones).
    """
    edges = np.arange(samples + 1, dtype=np.int64) * total // samples
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])
