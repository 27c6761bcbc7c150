"""Where does mnist1d come from?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SAMPLES = 40_000
"""Of which the package holds a fifth out: 32,000 to train on, 8,000 to test on."""


def mnist1d_file(folder: Path) -> str:
    """A file with x_train, y_train, x_test, y_test, made once by the package mnist1d, always the
    same (its seed is 42)."""
    path = folder / f"mnist1d-{SAMPLES}.npz"
    if not path.exists():
        from mnist1d.data import get_dataset_args, make_dataset

        arguments = get_dataset_args()
        arguments.num_samples = SAMPLES
        made = make_dataset(arguments)
        names = {"x_train": "x", "y_train": "y", "x_test": "x_test", "y_test": "y_test"}
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **{ours: made[theirs] for ours, theirs in names.items()})
        part.replace(path)
    return str(path)
