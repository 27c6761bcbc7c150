"""What can be configured, what are the defaults, and which values are refused?

YAML in `conf/` picks values; the dataclasses here define them. `mach.configfile` turns a mapping
(composed by Hydra, or read from a run's `config.yaml`) into a `Config`; beyond that file nobody
meets an OmegaConf object. Every `__post_init__` refuses nonsense before any process starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from mach.errors import ConfigError
from mach.schedule import KINDS


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise ConfigError(f"{key}: expected one of {', '.join(allowed)}; got {value!r}")


def _at_least(key: str, value: float, low: float) -> None:
    if not value >= low:  # also refuses nan
        raise ConfigError(f"{key}: expected {low} or more; got {value}")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key}: expected {low} to {high}; got {value}")


# --- model ---------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """What every model family has. Families add their own fields below."""

    name: str = ""
    blocks: int = 1
    """Blocks per component."""
    depth: int | None = None
    """Blocks of the whole network, cut into nearly equal bodies; overrides `blocks`."""

    def __post_init__(self) -> None:
        _at_least("model.blocks", self.blocks, 1)
        if self.depth is not None:
            _at_least("model.depth", self.depth, 1)


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
        _at_least("model.width", self.width, 1)
        _at_least("model.expansion * model.width", self.expansion * self.width, 1)
        _at_least("model.embedding", self.embedding, 1)


# --- data ----------------------------------------------------------------------------------


@dataclass
class DataConfig:
    """What every data source has."""

    name: str = ""
    cache: str | None = None
    """Folder for unpacked arrays, shared by all ranks and runs. None: `$XDG_CACHE_HOME/mach`."""


@dataclass
class DigitsConfig(DataConfig):
    """1,797 hand-written digits of 8 x 8 pixels that scikit-learn embeds (UCI)."""

    name: str = "digits"


@dataclass
class NpzConfig(DataConfig):
    """A file with x_train, y_train, x_test, y_test: images or vectors, integer labels."""

    name: str = "npz"
    path: str = "???"
    classes: int | None = None
    """Number of classes. None: one more than the largest training label."""

    def __post_init__(self) -> None:
        if self.classes is not None:
            _at_least("data.classes", self.classes, 2)


@dataclass
class IdxConfig(NpzConfig):
    """A folder in the MNIST layout: train-images-idx3-ubyte and companions, plain or .gz."""

    name: str = "idx"


@dataclass
class TextConfig(DataConfig):
    """Any file of bytes; the task is to predict the next byte."""

    name: str = "text"
    path: str = "???"
    context: int = 64
    """Bytes the model sees before the one it predicts."""
    test_fraction: float = 0.1
    """The last part of the file, held out."""
    test_samples: int = 4096
    """Windows drawn evenly from the held-out part for one evaluation."""

    def __post_init__(self) -> None:
        _at_least("data.context", self.context, 1)
        _within("data.test_fraction", self.test_fraction, 0.001, 0.9)
        _at_least("data.test_samples", self.test_samples, 1)


# --- head, student, optimizer ----------------------------------------------------------------


@dataclass
class HeadConfig:
    """The local classifier g_k on every component's activation."""

    weight: float = 0.1
    """lambda: how much of the head's gradient its body feels. A head itself always learns in full,
    so at 0 it is a probe: every exit can be used and the chain does not know of it. The top
    component always has 1."""

    def __post_init__(self) -> None:
        _at_least("head.weight", self.weight, 0)


@dataclass
class StudentConfig:
    """The student s_k that predicts the child's activation from the raw input."""

    enabled: bool = True
    width: int = 128
    """Hidden width of the student."""
    depth: int = 1
    """Blocks of the student."""
    lr: float = 1e-3
    """Peak learning rate of the student's AdamW."""
    task_weight: float = 1.0
    """mu: weight of the task loss through the frozen body and head."""
    mix: float = 0.0
    """Fraction of every microbatch whose input to the body is the student's (the 2019 algorithm).
    It cost the chain 12 points in our trial; above 0 the chain is no longer undisturbed."""

    def __post_init__(self) -> None:
        _at_least("student.width", self.width, 1)
        _at_least("student.depth", self.depth, 0)
        _at_least("student.lr", self.lr, 0)
        _at_least("student.task_weight", self.task_weight, 0)
        _within("student.mix", self.mix, 0, 1)


@dataclass
class OptimConfig:
    """How a component turns gradients into steps."""

    name: str = "muon"
    """muon (matrices of the body; AdamW for the rest), adamw or sgd."""
    lr: float = 1e-3
    """Peak learning rate of AdamW or SGD; under muon that of everything but the body's matrices."""
    muon_lr: float = 0.01
    """Peak learning rate of Muon."""
    muon_momentum: float = 0.95
    momentum: float = 0.9
    """Momentum of SGD (Nesterov)."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a component's gradient; 0 does not clip."""
    warmup: float = 0.02
    """Fraction of the steps over which the rate rises linearly from 0."""
    cosine: bool = True
    """Let the rate fall along a half cosine after the warm-up."""
    correction: str = "rate"
    """rate: lr * (1 + tau_k)^-e, e falling from 1 to 0 (PipeMare T1, Yang et al. 2021); or none."""
    correction_fraction: float = 0.3
    """Fraction of the steps over which the correction is annealed away."""
    precision: str = "fp32"
    """fp32, or bf16: autocast of body, head and student."""

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, ("muon", "adamw", "sgd"))
        one_of("optim.correction", self.correction, ("rate", "none"))
        one_of("optim.precision", self.precision, ("fp32", "bf16"))
        for key in ("lr", "muon_lr", "weight_decay", "clip"):
            _at_least(f"optim.{key}", getattr(self, key), 0)
        for key in ("momentum", "muon_momentum", "warmup", "correction_fraction"):
            _within(f"optim.{key}", getattr(self, key), 0, 1)


# --- transport, launch, report, checkpoint, eval ----------------------------------------------


@dataclass
class TransportConfig:
    """How messages travel between neighbours."""

    name: str = "auto"
    """gloo (CPU; or CUDA through pinned host memory, components may share a GPU), nccl (one GPU per
    component), or auto: nccl where each component has a GPU of its own, else gloo."""
    credits: int | None = None
    """W: frames that may be on their way on one edge before its sender waits. None takes the
    least: delay + 1 (2 under sync). More suits links with a long round trip."""
    timeout_s: float = 120.0
    """Longest wait for a message from a neighbour."""
    start_timeout_s: float = 120.0
    """Longest wait for a neighbour to come up."""

    def __post_init__(self) -> None:
        one_of("transport.name", self.name, ("auto", "gloo", "nccl"))
        for key in ("timeout_s", "start_timeout_s"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(
                    f"transport.{key}: expected seconds above 0; got {getattr(self, key)}"
                )


@dataclass
class LaunchConfig:
    """How the processes of a run are started."""

    name: str = "gang"
    """gang: one elastic worker group; if one rank dies all stop."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: int | None = None
    """Compute threads per component on CPU. None: the machine's cores divided by the components."""
    pin: bool = True
    """Bind each component to cores of its own where there are enough."""
    max_restarts: int = 0
    """How often the whole group restarts from its last checkpoint after a death."""

    def __post_init__(self) -> None:
        one_of("launch.name", self.name, ("gang",))
        one_of("launch.device", self.device, ("auto", "cpu", "cuda"))
        if self.threads is not None:
            _at_least("launch.threads", self.threads, 1)
        _at_least("launch.max_restarts", self.max_restarts, 0)


@dataclass
class ReportConfig:
    """What a run tells while it runs."""

    every: int = 50
    """Optimizer steps between two logged lines."""
    wandb: str = "auto"
    """auto (online if logged in, else offline), online, offline, off."""
    project: str = "mach"
    """Project of the wandb runs."""
    progress: bool = True
    """Live progress on a terminal."""

    def __post_init__(self) -> None:
        _at_least("report.every", self.every, 1)
        one_of("report.wandb", self.wandb, ("auto", "online", "offline", "off"))


@dataclass
class CheckpointConfig:
    """When the run is saved. Each save is a flush point of the schedule."""

    every: int = 0
    """Optimizer steps between two checkpoints; 0 saves at the end only."""
    keep: int = 2
    """How many of the last complete checkpoints stay."""

    def __post_init__(self) -> None:
        _at_least("checkpoint.every", self.every, 0)
        _at_least("checkpoint.keep", self.keep, 1)


@dataclass
class EvalConfig:
    """When the exits are evaluated. Each evaluation is a flush point of the schedule."""

    every: int = 0
    """Optimizer steps between two evaluations of the exits; 0 evaluates at the end only."""
    samples: int | None = None
    """Test samples used on the way; the end always takes all."""

    def __post_init__(self) -> None:
        _at_least("eval.every", self.every, 0)
        if self.samples is not None:
            _at_least("eval.samples", self.samples, 1)


# --- the run ----------------------------------------------------------------------------------


@dataclass
class Config:
    """One run. The names at this level are the ones people sweep."""

    components: int = 4
    """K: how many processes the network is cut into."""
    schedule: str = "delayed"
    delay: int = 1
    """d: how many microbatches late a message is used, per hop."""
    accumulate: int = 4
    """M: microbatches per optimizer step."""
    feedback: float = 1.0
    """gamma: factor on the gradient a parent returns to its child; 0 cuts the chain."""
    replay: str = "recompute"
    """recompute the forward at the present weights, or stash the weight versions in flight."""
    steps: int = 500
    """Optimizer steps."""
    microbatch_size: int = 16
    seed: int = 0
    method: str = "mach"
    """Named algorithm; set by the `method` group."""
    out: str | None = None
    """Run folder. None: runs/<date and time>."""
    resume: str | None = None
    """auto: go on from the last checkpoint in `out`. A path: begin from that run or checkpoint."""
    model: ModelConfig = field(default_factory=MlpConfig)
    data: DataConfig = field(default_factory=DigitsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, KINDS)
        one_of("replay", self.replay, ("recompute", "stash"))
        for key in ("components", "accumulate", "steps", "microbatch_size"):
            _at_least(key, getattr(self, key), 1)
        for key in ("delay", "feedback", "seed"):
            _at_least(key, getattr(self, key), 0)
        depth = self.model.depth
        if depth is not None and depth < self.components:
            raise ConfigError(
                f"components: expected at most model.depth={depth}, one block each; "
                f"got {self.components}. Ask for fewer components or a deeper model."
            )
        if self.transport.credits is not None:
            _at_least("transport.credits", self.transport.credits, self._least_credits)
        if self.feedback == 0 and self.head.weight == 0 and self.components > 1:
            raise ConfigError(
                "head.weight: expected more than 0 because feedback=0 leaves the bodies below the "
                "top with no other gradient; got 0. Set head.weight=1."
            )

    @property
    def credits(self) -> int:
        """W: frames that may be under way on one edge."""
        return self.transport.credits or self._least_credits

    @property
    def _least_credits(self) -> int:
        # A child is up to 2 d microbatches ahead of the gradients it takes. Both edges of a link
        # must hold them, or child and parent wait for each other.
        return (self.delay if self.schedule == "delayed" else 1) + 1

    @property
    def microbatches(self) -> int:
        """Microbatches of the whole run."""
        return self.steps * self.accumulate

    @property
    def effective_delay(self) -> int:
        """Delay that costs staleness: none when the chain is cut or flushed at every step."""
        return self.delay if self.schedule == "delayed" and self.feedback > 0 else 0

    def bodies(self) -> list[range]:
        """Blocks of each component, numbered through the network; the first take the rest."""
        total = (
            self.components * self.model.blocks if self.model.depth is None else self.model.depth
        )
        size, rest = divmod(total, self.components)
        starts = [k * size + min(k, rest) for k in range(self.components + 1)]
        return [range(a, b) for a, b in pairwise(starts)]
