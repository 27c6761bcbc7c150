"""Training data: mapped into memory, and drawn as a pure function of (seed, microbatch)."""

from mach.data.batches import Batches
from mach.data.checks import check
from mach.data.dataset import Dataset
from mach.data.sources import open_dataset
from mach.data.splits import Split

__all__ = ["Batches", "Dataset", "Split", "check", "open_dataset"]
