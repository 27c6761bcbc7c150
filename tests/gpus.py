"""What can be tested on the GPUs of this machine."""

from __future__ import annotations

import torch

from mach.channels.ncclpair import may_share_gpus

GPUS = torch.cuda.device_count()
"""Several components share one where there are fewer. 0 on most machines that run these tests."""

GPU_TRANSPORTS = ["gloo"] * (GPUS > 0) + ["nccl"] * (GPUS > 1 or (GPUS == 1 and may_share_gpus()))
"""What carries tensors between GPUs here: NCCL takes several, or leave to share one."""
