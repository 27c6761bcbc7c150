"""What is measured, and for how long?"""

from __future__ import annotations

from typing import Any

METRICS = 100
"""Numbers of a line."""
STEP_MS = 50.0
"""A step without logging: with a line after each that is 20 lines a second."""
WARM_UP, STEPS = 80, 240

SINKS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "file": {"wandb": "off"},
    "file, wandb": {"wandb": "offline"},
    "file, wandb, TensorBoard": {"wandb": "offline", "tensorboard": True},
}
"""The config's `report` for each. wandb writes to disk: whatever network there is, is another
process's business."""
