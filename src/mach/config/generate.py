"""What can `mach generate` be asked for?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mach.config.checks import at_least, check_seed, one_of
from mach.config.window import name_of
from mach.errors import ConfigError


@dataclass
class GenerateConfig:
    """Arguments of `mach generate`, as key=value."""

    run: str = "???"
    """Run folder of a language model, or that of a consolidated window in it."""
    prompt: str = "???"
    """Text to go on from. Of a long one the model sees the last part, as much as its context."""
    window: str | None = None
    """j..i: student j, bodies j to i, head i; 0..i is the chain; consolidated/j..i what `mach
    consolidate` has made of it. None: the whole chain."""
    tokens: int = 200
    """Tokens to write."""
    temperature: float = 0.8
    """Logits are divided by it: below 1 the likely gets likelier; 0 always takes the likeliest."""
    top_k: int | None = None
    """Choose among so many of the likeliest tokens. None: among all."""
    seed: int = 0
    """The same seed writes the same text."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError("prompt: expected some text to go on from; got none")
        name_of(self.window)
        at_least("tokens", self.tokens, 1)
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature: expected a number from 0 on; got {self.temperature}")
        if self.top_k is not None:
            at_least("top_k", self.top_k, 1)
        check_seed("seed", self.seed)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
