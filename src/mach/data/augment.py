"""How does a training image look this time?

Shifted, and maybe mirrored, as (seed, microbatch) say: whoever draws the same samples sees the same
view of them, so a component and its parent's student speak of one image. Crop and flip as in Lee et
al., "Deeply-Supervised Nets" (2015), which He et al. (CVPR 2016, section 4.2) follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mach.config import LabelledConfig
from mach.errors import ConfigError
from mach.metrics import Task
from mach.shapes import image_axes

# B samples of a microbatch, C channels, H height, W width, P places: 2 * padding + 1 in an axis


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a microbatch."""

    padding: int
    """Pixels an image may be shifted by, in each direction; black comes in."""
    flip: bool
    """Mirror one image in two, left to right."""

    def view(self, x: Tensor, seed: int, b: int, origin: int = 0, life: int = 0) -> Tensor:
        """The images of one microbatch, as they are seen there.

        Args:
            x: raw images [B, H, W] or [B, C, H, W] of any dtype, on any device; 0 is black.
            seed: the run's.
            b, origin, life: name the microbatch (see `Batches.train`).

        Returns:
            Images of the same shape and dtype.
        """
        down, right, mirrored = (
            torch.from_numpy(numbers).to(x.device, non_blocking=True)
            for numbers in self._draw(len(x), seed, b, origin, life)
        )
        x_BCHW = x.unsqueeze(1) if x.ndim == 3 else x
        height, width = x.shape[-2:]
        padded = F.pad(x_BCHW, (self.padding,) * 4)
        # Every place an image can be cut from, as a view; only those that are drawn are copied.
        places_BCPPHW = padded.unfold(2, height, 1).unfold(3, width, 1)
        out_BCHW = places_BCPPHW[torch.arange(len(x), device=x.device), :, down, right]
        if self.flip:
            out_BCHW = torch.where(mirrored[:, None, None, None], out_BCHW.flip(-1), out_BCHW)
        return out_BCHW.reshape(x.shape)

    def _draw(
        self, count: int, seed: int, b: int, origin: int, life: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column each image is cut at, 0 to 2 * padding, and whether it is mirrored [B]."""
        # A key of its own: the order of the samples is drawn from sequences without one.
        random = np.random.default_rng(
            np.random.SeedSequence((seed, origin, life, b), spawn_key=(1,))
        )
        down, right = random.integers(2 * self.padding + 1, size=(2, count))
        return down, right, random.integers(2, size=count).astype(bool)


def augmentation_of(config: LabelledConfig, task: Task) -> Augmentation | None:
    """What `data.augment` asks for; None where images are taken as they are.

    Raises:
        ConfigError: the samples are no images, or smaller than `data.padding`.
    """
    if config.augment == "none":
        return None
    _, height, width = image_axes(f"data.augment={config.augment}", task.sample)
    if config.padding >= min(height, width):
        raise ConfigError(
            f"data.padding: expected less than {min(height, width)}, the smaller side of the "
            f"images, {task.sample}; got {config.padding}"
        )
    return Augmentation(config.padding, config.augment == "crop_flip")
