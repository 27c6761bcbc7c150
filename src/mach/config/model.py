"""Which network?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mach.config.checks import at_least, one_of
from mach.config.learning import StudentConfig
from mach.errors import ConfigError


@dataclass
class ModelConfig:
    """What every model family has. Families add their own fields below."""

    name: str = ""
    """Family of networks; set by the `model` group."""
    blocks: int = 1
    """Blocks per component."""
    depth: int | None = None
    """Blocks of the whole network; overrides `blocks`."""
    correction: ClassVar[str] = "rate"
    """What optim.correction=auto is for this family (benchmarks/accuracy)."""
    balance: Any = "equal"
    """Where the network is cut: equal (numbers of blocks), params, time (measured before the run),
    or the number of blocks of each component, as in [3,2,2,2]. What params and time find is kept
    in the run's config as such a list."""
    raw_input: bool = False
    """Every component above the first sees the raw input beside its child's activation: one linear
    layer takes both in one vector, before its blocks. Only mlp."""
    compile: bool = False
    """torch.compile body, head and student of every component."""
    checkpointing: bool = False
    """Keep no activations inside a body's blocks; compute them again in the backward pass."""

    def __post_init__(self) -> None:
        if self.raw_input and self.name != "mlp":
            raise ConfigError(
                "model.raw_input=true: expected model=mlp, whose activations are vectors that an "
                f"input can be joined to; got {self.name}. Set model.raw_input=false."
            )
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

    @property
    def settled(self) -> bool:
        """Whether this alone says where the network is cut; otherwise that is found before the run
        and kept in its config."""
        return self.balance not in ("params", "time")

    def check(self, components: int, student: StudentConfig) -> None:
        """Refuse what this family cannot do together with the rest of the run."""


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


@dataclass
class GptConfig(ModelConfig):
    """Decoder-only transformer for text, pre-norm. `data.context` says how many tokens it sees."""

    name: str = "gpt"
    correction: ClassVar[str] = "surrogate"
    width: int = 128
    """Width of the residual stream: every activation is [B, T, width]."""
    heads: int = 4
    """Attention heads of a block, each width / heads wide; a student's blocks have as many."""
    expansion: float = 4.0
    """Hidden width of a block's MLP, as a multiple of `width`."""
    positions: str = "rotary"
    """rotary (queries and keys turned by their position, Su et al., 2021) or learned (a vector for
    each position, added to the embedding)."""
    scaled: bool = True
    """Multiply the embedding by the root of `width` (Vaswani et al., 2017, section 3.4): it begins
    with variance 1 (tied: as the unembedding does). One that begins small, as GPT-2's, is another
    within a few steps, and so is every activation above: late gradients then fit nothing."""
    tied: bool = False
    """The unembedding is the embedding, one parameter. Only in one component: the chain has its
    embedding at the bottom and its unembedding at the top."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model.width", self.width, 1)
        at_least("model.heads", self.heads, 1)
        at_least("model.expansion * model.width", self.expansion * self.width, 1)
        one_of("model.positions", self.positions, ("rotary", "learned"))
        self._check_width("model.width", self.width)

    def check(self, components: int, student: StudentConfig) -> None:
        """Refuse an embedding that two processes would share, and students heads cannot divide."""
        if self.tied and components > 1:
            raise ConfigError(
                f"model.tied=true: expected components=1; got {components}. The embedding is in "
                "component 0 and the unembedding at the top, in another process, and neither waits "
                "for the other's gradient. Set model.tied=false."
            )
        if student.enabled and components > 1:
            self._check_width("student.width", student.width)

    def _check_width(self, key: str, width: int) -> None:
        step = self.heads * (2 if self.positions == "rotary" else 1)
        if width % step:
            pairs = ", and rotary positions turn pairs" if self.positions == "rotary" else ""
            raise ConfigError(
                f"{key}: expected a multiple of {step}, as model.heads={self.heads} share it"
                f"{pairs}; got {width}"
            )


@dataclass
class ResNetConfig(ModelConfig):
    """Pre-activation residual network of three stages (He et al., 2016), as is usual on CIFAR."""

    name: str = "resnet"
    layers: int = 20
    """Layers with weights: 6 n + 2 of n blocks in each stage, as in 20, 56 or 110. The network has
    3 n blocks, and `depth` and `blocks` have nothing to add."""
    width: int = 16
    """Channels of the first stage; the second has twice as many, the third four times."""
    norm: str = "group"
    """group (GroupNorm, Wu and He, 2018: a sample is normalised by itself) or batch (BatchNorm:
    running statistics at inference)."""
    groups: int = 8
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layers()
        at_least("model.width", self.width, 1)
        one_of("model.norm", self.norm, ("group", "batch"))
        at_least("model.groups", self.groups, 1)
        if self.norm == "group" and self.width % self.groups:
            raise ConfigError(
                f"model.width: expected a multiple of model.groups={self.groups}, which share the "
                f"channels; got {self.width}"
            )
        total = self.total(1)
        if self.depth is not None and self.depth != total:
            raise ConfigError(
                f"model.depth: expected {total}, the blocks of model.layers={self.layers}; got "
                f"{self.depth}. Set model.layers alone."
            )
        if self.blocks != 1:
            raise ConfigError(
                f"model.blocks: expected none, as model.layers={self.layers} says how many blocks "
                f"there are; got {self.blocks}. Set model.layers, or model.balance to a list."
            )
        if isinstance(self.balance, list) and sum(self.balance) != total:
            raise ConfigError(
                f"model.balance: expected numbers that sum to {total}, the blocks of "
                f"model.layers={self.layers}; got {self.balance}, which is {sum(self.balance)}."
            )

    def total(self, components: int) -> int:
        return (self.layers - 2) // 2

    def check(self, components: int, student: StudentConfig) -> None:
        """Refuse more components than blocks."""
        if components > self.total(components):
            raise ConfigError(
                f"components: expected at most {self.total(components)}, one for each block of "
                f"model.layers={self.layers}; got {components}. Ask for fewer components or more "
                "layers."
            )

    def _check_layers(self) -> None:
        at_least("model.layers", self.layers, 8)
        below = self.layers - (self.layers - 2) % 6
        if below != self.layers:
            raise ConfigError(
                f"model.layers: expected 6 n + 2, so that three stages have n blocks each; got "
                f"{self.layers}. The nearest are {below} and {below + 6}."
            )


@dataclass
class CustomConfig(ModelConfig):
    """A network of your own: a function that returns its blocks, from the input up."""

    name: str = "custom"
    factory: str = "???"
    """package.module:function, found in the folder where the command was typed or on PYTHONPATH.
    It returns a list of nn.Module, or an nn.Sequential; the first takes the raw samples. `depth` is
    found by calling it, and `blocks` has nothing to add."""
    arguments: Any = None
    """Keyword arguments of the factory, as in 'model.arguments={width:128,depth:3}': in quotes, as
    a shell would make two words of it."""
    head: str | None = None
    """package.module:function of (activation, task) that returns a head: [B, *activation.shape] to
    logits [N, C]. None: chosen by the activation's rank."""
    student: str | None = None
    """package.module:function of (activation, task, config) that returns a student: from raw
    samples to [B, *activation.shape]. None: chosen by the activation's rank."""
    logits: bool = False
    """The last block's output is the logits, [B, C] or for text [B, T, C]: it is the top's head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("factory", "head", "student"):
            place = getattr(self, key)
            if place is None or place == "???":
                continue
            module, colon, function = place.partition(":")
            if not (module and colon and function.isidentifier()):
                raise ConfigError(f"model.{key}: expected package.module:function; got {place!r}")
        arguments = {} if self.arguments is None else self.arguments
        if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
            raise ConfigError(
                "model.arguments: expected names with values, as in "
                f"'model.arguments={{width:128,depth:3}}'; got {self.arguments!r}. Put it in "
                "quotes, or the shell makes several words of what is in braces."
            )
        if self.blocks != 1:
            raise ConfigError(
                "model.blocks: expected none, as model.factory says how many blocks there are; got "
                f"{self.blocks}. Set model.balance to a list to say how they are divided."
            )

    @property
    def settled(self) -> bool:
        return super().settled and self.depth is not None
