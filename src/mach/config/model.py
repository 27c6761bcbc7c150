"""Which network?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mach.config.checks import at_least, one_of
from mach.errors import ConfigError


@dataclass
class ModelConfig:
    """What every model family has. Families add their own fields below."""

    name: str = ""
    blocks: int = 1
    """Blocks per component."""
    depth: int | None = None
    """Blocks of the whole network; overrides `blocks`."""
    balance: Any = "equal"
    """Where the network is cut: equal (numbers of blocks), params, time (measured before the run),
    or the number of blocks of each component, as in [3,2,2,2]. What params and time find is kept
    in the run's config as such a list."""
    compile: bool = False
    """torch.compile body, head and student of every component."""
    checkpointing: bool = False
    """Keep no activations inside a body's blocks; compute them again in the backward pass."""

    def __post_init__(self) -> None:
        at_least("model.blocks", self.blocks, 1)
        if self.depth is not None:
            at_least("model.depth", self.depth, 1)
        if isinstance(self.balance, str):
            one_of("model.balance", self.balance, ("equal", "params", "time"))
            return
        sizes = self.balance
        if not isinstance(sizes, list) or not all(type(n) is int and n > 0 for n in sizes):
            raise ConfigError(
                "model.balance: expected equal, params, time or a list of blocks per component, "
                f"each 1 or more; got {sizes}"
            )

    def total(self, components: int) -> int:
        """Blocks of the whole network, if it is cut into so many components."""
        if isinstance(self.balance, list):
            return sum(self.balance)
        return components * self.blocks if self.depth is None else self.depth


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
