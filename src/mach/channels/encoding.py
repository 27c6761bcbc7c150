"""As which bytes does a payload travel?

What a training frame carries is rounded as `transport.wire_dtype` says:

    float32     not at all: the payload's own bytes
    bfloat16    8 bits of mantissa in place of 24: half the bytes of float32
    int8        a scale for each row and a byte for each value: about a quarter

int8 is symmetric. A row whose largest magnitude is m has the scale s = m / 127; a value v travels
as the whole number nearest to v / s (of two that are equally near the even one), at most s / 2 from
v. A row of zeros stays exactly zero, and one whose m is below 127 times float32's least normal
number becomes it. A row with a NaN or an infinity in it comes out as NaN altogether: what has
diverged must not look finite again.

A row is the last dimension. Where that is shorter than 64 values, as the lines of an image are, the
dimensions before it join it until it is not, but never the first: samples do not share a scale.
So a map [B, C, 8, 8] has a scale for each channel of each sample, and the four bytes of a scale are
a sixteenth of its row at most, wherever a sample has 64 values.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from mach.shapes import TensorSpec

# R rows, N values of a row

_LEAST_ROW = 64
_LEVELS = 127
_LEAST_SCALE = torch.finfo(torch.float32).tiny
_SCALE_BYTES = torch.float32.itemsize


class Encoding:
    """What one payload looks like on a wire. All of it runs on the device that the tensors are on,
    without waiting for that device."""

    def __init__(self, payload: TensorSpec, wire_dtype: str = "float32") -> None:
        """
        Args:
            payload: the whole tensor, batch dimension included.
            wire_dtype: float32, bfloat16 or int8. Nothing is widened: where a payload is already as
                narrow (as under bf16 autocast), it travels as it is.
        """
        self._payload = payload
        self._rows = _row_shape(payload.shape)
        self._wire = payload.dtype
        if wire_dtype == "bfloat16" and payload.dtype.itemsize > torch.bfloat16.itemsize:
            self._wire = torch.bfloat16
        if wire_dtype == "int8" and payload.dtype.itemsize > torch.int8.itemsize:
            self._wire = torch.int8
        scales = self._rows[0] * _SCALE_BYTES if self._wire is torch.int8 else 0
        self._values_at = scales
        self.nbytes = scales + prod(payload.shape) * self._wire.itemsize
        """Bytes of one payload on the wire."""

    @property
    def plain(self) -> bool:
        """Whether the payload travels as it is."""
        return self._wire is self._payload.dtype

    def encode(self, payload: Tensor, wire: Tensor) -> None:
        """Write a payload into a buffer of `nbytes` bytes (uint8) on the same device."""
        if self._wire is not torch.int8:
            self._values(wire).copy_(payload)
            return
        rows_RN = payload.reshape(self._rows).float()
        scale_R1 = rows_RN.abs().amax(1, keepdim=True).div_(_LEVELS)
        scale_R1.masked_fill_(scale_R1 < _LEAST_SCALE, 0).masked_fill_(scale_R1.isinf(), torch.nan)
        self._scales(wire).copy_(scale_R1)
        # Divided by infinity, a row without a scale is zeros. What a NaN becomes as a whole number
        # does not matter: its scale is one, too.
        scale_R1.masked_fill_(scale_R1 == 0, torch.inf)
        self._values(wire).copy_((rows_RN / scale_R1).round_().view(self._payload.shape))

    def to_wire(self, payload: Tensor) -> Tensor:
        """The `nbytes` bytes of a payload, on its device, in memory of their own."""
        wire = torch.empty(self.nbytes, dtype=torch.uint8, device=payload.device)
        self.encode(payload, wire)
        return wire

    def copy_out(self, wire: Tensor) -> Tensor:
        """The payload in a buffer, in memory of its own."""
        payload = self.decode(wire)
        return payload.clone() if self.plain else payload

    def decode(self, wire: Tensor) -> Tensor:
        """The payload in a buffer, in the dtype it had. Shares its memory where it is `plain`."""
        values = self._values(wire)
        if self._wire is not torch.int8:
            return values.to(self._payload.dtype)
        rows_RN = values.view(self._rows).float().mul_(self._scales(wire))
        return rows_RN.view(self._payload.shape).to(self._payload.dtype)

    def round_trip(self, payload: Tensor) -> Tensor:
        """What comes out at the other end: a tensor of its own."""
        payload = payload.detach()
        if self.plain:
            return payload.to(self._payload.dtype, copy=True)
        return self.decode(self.to_wire(payload))

    def _values(self, wire: Tensor) -> Tensor:
        return wire[self._values_at : self.nbytes].view(self._wire).view(self._payload.shape)

    def _scales(self, wire: Tensor) -> Tensor:
        return wire[: self._values_at].view(torch.float32).view(-1, 1)


def _row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[R, N] of a payload."""
    length = shape[-1] if shape else 1
    for size in reversed(shape[1:-1]):
        if length >= _LEAST_ROW:
            break
        length *= size
    return (prod(shape) // max(1, length), length)
