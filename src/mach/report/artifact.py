"""What does a run leave that is worth keeping beside its curves?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artifact:
    """Files that one component made."""

    kind: str
    """checkpoint or model."""
    step: int
    """Optimizer step they were made after."""
    folder: Path
    """Where they are, as in `checkpoints/step-<n>/component-<k>`."""
