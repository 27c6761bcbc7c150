"""What is measured, and for how long?"""

from __future__ import annotations

from typing import Any

METRICS = 100
"""Numbers of a line."""
STEP_MS = 50.0
"""A step without logging: with a line after each that is 20 lines a second."""
WARM_UP_S, MEASURED_S = 6.0, 40.0
PHASE_S, LAG_S = 2.0, 0.7
"""Steps log in every other phase. What came late of a phase, as the companion looks every 0.5 s,
falls into the beginning of the next, which does not count."""

STEPS = {
    "waits": "Components that wait while they compute, as for a GPU",
    "computes": "Components that compute on a core each, and leave none to anybody",
}

SINKS: dict[str, dict[str, Any]] = {
    "file": {"wandb": "off"},
    "file, wandb": {"wandb": "offline"},
    "file, wandb, TensorBoard": {"wandb": "offline", "tensorboard": True},
}
"""The config's `report` for each. wandb writes to disk: whatever network there is, is another
process's business."""
