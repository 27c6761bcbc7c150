"""How is a run saved so that every component can go on alone, and trusted when it is read?

    checkpoints/step-<n>/
      component-<k>/       torch.distributed.checkpoint, written by component k alone (no_dist)
      manifest.json        written last, atomically: without it the folder is not a checkpoint
      component-<k>.json   under `free`, where each component saves by itself: its own manifest

Nobody waits for anybody: each component saves when it gets to the flush point, and the last one in
writes the manifest.
"""

from mach.checkpoint.catalog import Checkpoint, find, latest, latest_of, part, verify
from mach.checkpoint.loading import check_fit, load, load_weights
from mach.checkpoint.saving import (
    complete,
    save,
    save_together,
    seal,
    unsaved,
    warm_up,
    write_manifest,
)
from mach.checkpoint.state import tensors_of

__all__ = [
    "Checkpoint",
    "check_fit",
    "complete",
    "find",
    "latest",
    "latest_of",
    "load",
    "load_weights",
    "part",
    "save",
    "save_together",
    "seal",
    "tensors_of",
    "unsaved",
    "verify",
    "warm_up",
    "write_manifest",
]
