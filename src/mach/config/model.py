"""Which network?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import at_least


@dataclass
class ModelConfig:
    """What every model family has. Families add their own fields below."""

    name: str = ""
    blocks: int = 1
    """Blocks per component."""
    depth: int | None = None
    """Blocks of the whole network, cut into nearly equal bodies; overrides `blocks`."""

    def __post_init__(self) -> None:
        at_least("model.blocks", self.blocks, 1)
        if self.depth is not None:
            at_least("model.depth", self.depth, 1)


@dataclass
class MlpConfig(ModelConfig):
    """Residual MLP: LayerNorm, linear, GELU, linear, added to the input."""

    name: str = "mlp"
    width: int = 128
    """Width of the residual stream: every activation is [B, width]."""
    expansion: float = 4.0
    """Hidden width of a block, as a multiple of `width`."""
    embedding: int = 32
    """Width of a byte's embedding (text only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model.width", self.width, 1)
        at_least("model.expansion * model.width", self.expansion * self.width, 1)
        at_least("model.embedding", self.embedding, 1)
