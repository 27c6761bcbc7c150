"""What shape and dtype does a tensor between two modules have?"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from mach.errors import ConfigError


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one sample (no batch dimension), or of one whole tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, unpadded."""
        return prod(self.shape) * self.dtype.itemsize

    def batched(self, size: int) -> TensorSpec:
        """The same tensor with a batch dimension of `size` in front."""
        return TensorSpec((size, *self.shape), self.dtype)

    def __str__(self) -> str:
        """`float32[16, 128]`, as it stands in error messages and handshakes."""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def spec_of(tensor: Tensor) -> TensorSpec:
    """Spec of a whole tensor."""
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def output_spec(module: nn.Module, sample: TensorSpec) -> TensorSpec:
    """What `module` makes of one sample, found by a dry run of two samples on the meta device.

    `module` must live on the meta device (build it under `torch.device("meta")`), so nothing is
    computed and no memory is taken.
    """
    with torch.no_grad():
        out = module(torch.empty((2, *sample.shape), dtype=sample.dtype, device="meta"))
    return TensorSpec(tuple(out.shape[1:]), out.dtype)


def image_axes(who: str, sample: TensorSpec) -> tuple[int, int, int]:
    """Channels, height and width of a sample that is an image, [H, W] or [C, H, W].

    Raises:
        ConfigError: it is none; opens with `who`, which asked for one.
    """
    shape = sample.shape
    if not sample.dtype.is_floating_point or len(shape) not in (2, 3):
        raise ConfigError(
            f"{who}: expected images, [height, width] or [channels, height, width]; got samples of "
            f"{sample}. Choose data of images, or store these with the shape they have."
        )
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    if width in (1, 3, 4) and min(channels, height) > width:
        raise ConfigError(
            f"{who}: expected images of [channels, height, width]; got samples of {sample}, which "
            f"look like images with their channels last. Store them as x.transpose(0, 3, 1, 2)."
        )
    return channels, height, width
