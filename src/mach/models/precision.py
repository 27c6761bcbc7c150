"""In which dtype do activations leave the bodies under autocast?

Each operation chooses for itself there: after a linear stem the stream between the blocks is bf16,
after an embedding it is float32, and a block may change it. The child's activation has to reach its
parent as what it was, or cutting a network would change its numbers. So the whole network is run
dry, up to its last cut, on fake tensors: they compute nothing and still tell autocast their device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mach.models.family import Family


def autocast_dtypes(family: Family, ends: Sequence[int], device_type: str) -> list[torch.dtype]:
    """Dtype of what comes out of the first n blocks under bf16, for each n of `ends` (rising).

    Args:
        device_type: `cpu` or `cuda`; their lists of operations that autocast leaves alone differ.
    """
    # Costs a second or two to import, which runs in float32 are spared.
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return _dtypes(family, ends, device_type)
    except Exception:
        if not family.foreign:
            raise
        return _dtypes(family, ends, device_type)  # somebody else's modules may need real numbers


def _dtypes(family: Family, ends: Sequence[int], device_type: str) -> list[torch.dtype]:
    sample = family.task.sample
    dtypes: list[torch.dtype] = []
    with (
        torch.device(device_type),
        torch.no_grad(),
        torch.autocast(device_type, torch.bfloat16),
    ):
        h = family.stem()(torch.zeros((2, *sample.shape), dtype=sample.dtype))
        blocks = family.slice(range(ends[-1]), lambda role, index, build: build())
        for index, block in enumerate(blocks):
            h = block(h)
            if index + 1 in ends:
                dtypes.append(h.dtype)
    return dtypes
