"""In which dtype do activations leave the bodies under autocast?

Each operation chooses for itself there: after a linear stem the stream between the blocks is bf16,
after an embedding it is float32, and a block may change it. The child's activation has to reach its
parent as what it was, or cutting a network would change its numbers. So the whole network is run
dry, up to its last cut, on fake tensors: they compute nothing and still tell autocast their device.
Modules of the user's are run on real ones, but not on a GPU, whose memory that would cost: they may
need numbers, or keep what they have made of the first input for the next.
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
    if family.foreign and device_type == "cpu":
        return _dtypes(family, ends, device_type)
    # Costs a second or two to import, which runs in float32 are spared.
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return _dtypes(family, ends, device_type)
    except Exception:
        if not family.foreign:
            raise
        return _dtypes(family, ends, device_type)


def _dtypes(family: Family, ends: Sequence[int], device_type: str) -> list[torch.dtype]:
    sample = family.task.sample
    dtypes: list[torch.dtype] = []
    # The blocks are built once more for this: whoever draws random numbers next does not notice.
    with torch.device(device_type), torch.no_grad(), torch.random.fork_rng(devices=[]):
        stem = family.stem()
        blocks = family.slice(range(ends[-1]), lambda role, index, build: build())
        with torch.autocast(device_type, torch.bfloat16):
            h = stem(torch.zeros((2, *sample.shape), dtype=sample.dtype))
            for index, block in enumerate(blocks):
                h = block(h)
                if index + 1 in ends:
                    dtypes.append(h.dtype)
    return dtypes
