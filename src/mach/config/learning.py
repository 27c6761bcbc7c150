"""How does a component learn: its head, its student, its optimizer?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import at_least, one_of, within
from mach.errors import ConfigError

CORRECTIONS = (
    "auto",
    "none",
    "rate",
    "surrogate",
    "rate+surrogate",
    "shrink",
    "prediction",
    "compensation",
    "nesterov",
)


@dataclass
class HeadConfig:
    """The local classifier g_k on every component's activation."""

    weight: float = 0.1
    """lambda: how much of the head's gradient its body feels. A head itself always learns in full,
    so at 0 it is a probe: every exit can be used and the chain does not know of it (unless
    optim.correction=surrogate tells it, or schedule=free leaves a microbatch to it alone, which
    then counts in full). The top component always has 1."""
    lr: float | None = None
    """Peak learning rate of the heads below the top one, which is the chain's. None: optim.lr."""
    soft: float = 0.0
    """alpha: how much a head listens to its parent's logits, which then come down with the
    gradient, rather than to the labels."""
    temperature: float = 4.0
    """Of the soft targets that heads and students listen to."""

    def __post_init__(self) -> None:
        at_least("head.weight", self.weight, 0)
        if self.lr is not None:
            at_least("head.lr", self.lr, 0)
        within("head.soft", self.soft, 0, 1)
        if not self.temperature > 0:
            raise ConfigError(f"head.temperature: expected more than 0; got {self.temperature}")


@dataclass
class StudentConfig:
    """The student s_k that predicts the child's activation from the raw input."""

    enabled: bool = True
    """Whether there are any: they cost their own training, and give the windows."""
    width: int = 128
    """Hidden width of the student; of a convolutional one its channels at full resolution."""
    depth: int = 1
    """Blocks of the student."""
    optimizer: str = "muon"
    """muon (its matrices and kernels; AdamW for the rest) or adamw."""
    lr: float = 3e-3
    """Peak learning rate of its AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of its Muon."""
    task_weight: float = 1.0
    """mu: weight of the task loss through the frozen body and head."""
    soft: float = 0.0
    """How much the task loss listens to what body and head say of the child's own activation,
    rather than to the labels."""
    mix: float = 0.0
    """Fraction of every microbatch whose input to the body is the student's (the 2019 algorithm).
    It cost the chain 12 points in our trial; above 0 the chain is no longer undisturbed."""

    def __post_init__(self) -> None:
        at_least("student.width", self.width, 1)
        at_least("student.depth", self.depth, 0)
        one_of("student.optimizer", self.optimizer, ("muon", "adamw"))
        at_least("student.lr", self.lr, 0)
        at_least("student.muon_lr", self.muon_lr, 0)
        at_least("student.task_weight", self.task_weight, 0)
        within("student.soft", self.soft, 0, 1)
        within("student.mix", self.mix, 0, 1)


@dataclass
class PredictorConfig:
    """A network at every component below the top that predicts the parent's gradient, so that the
    component learns at once (DNI, Jaderberg et al., 2017). The parent's gradient trains it when it
    comes. It is stepped by AdamW."""

    enabled: bool = False
    """Whether components below the top have one, and learn from its guesses alone."""
    labels: bool = True
    """Whether it knows the labels (of text: the next tokens). Without them it can only predict the
    mean over all labels, and on images falls far behind."""
    width: int = 128
    """Width of its hidden layers; of a convolutional one its channels."""
    depth: int = 1
    """Hidden layers."""
    lr: float = 2.5e-4
    """Peak learning rate. A fast predictor follows the noise of the last gradients, and takes the
    chain along (benchmarks/accuracy/LOG.md)."""

    def __post_init__(self) -> None:
        at_least("predictor.width", self.width, 1)
        at_least("predictor.depth", self.depth, 0)
        at_least("predictor.lr", self.lr, 0)


@dataclass
class OptimConfig:
    """How a component turns gradients into steps."""

    name: str = "muon"
    """muon (matrices and kernels of the body; AdamW for the rest), adamw or sgd."""
    lr: float = 1e-3
    """Peak learning rate of AdamW or SGD; under muon that of everything but the body's matrices."""
    muon_lr: float = 0.01
    """Peak learning rate of Muon."""
    muon_momentum: float = 0.95
    """Momentum of Muon."""
    momentum: float = 0.9
    """Momentum of SGD (Nesterov)."""
    weight_decay: float = 0.0
    """Weight decay, of every parameter."""
    clip: float = 1.0
    """Largest norm of a component's gradient, each its own: how a network is cut changes what is
    clipped. 0 does not clip."""
    warmup: float = 0.02
    """Fraction of the steps over which the rate rises linearly from 0."""
    cosine: bool = True
    """Let the rate fall along a half cosine after the warm-up."""
    layer_decay: float = 1.0
    """Factor on the rate of a component for every component above it: layer-wise rates."""
    correction: str = "auto"
    """What is done about staleness, one thing at a time:
    auto: what has won for the model's family; the run's config says what;
    none;
    rate: lr * (1 + tau_k)^-e, e falling from 1 to 0 (after PipeMare T1, Yang et al. 2021, which has
    tau_k^-e);
    surrogate: the parent's late gradient belongs to an activation that the body would make
    otherwise by now; it is changed by `surrogate` times as much as the head's own gradient has
    changed since (a control variate, mach.component.surrogate). Takes a second backward of the head
    and the activations in flight; the chain then knows of its heads;
    rate+surrogate: both;
    shrink: `shrink` to the power of the hops that a gradient has come down (FDG, Zhuang et al.
    2021). Under sgd the gradient shrinks; muon and adamw divide by its size, so there the rate
    does;
    prediction: activations or gradients are made with the weights their maker will have when they
    are used, see `predict` (SpecTrain, Chen et al. 2018; PipeOptim, Guan et al. 2025);
    compensation: g + lambda g g (now - then), see `compensation` (DC-ASGD, Zheng et al. 2017);
    nesterov: momentum `look_ahead`, and gradients count 1 - look_ahead (Ajanthan et al. 2025):
    NAdamW for adamw and for what muon leaves, Nesterov momentum for muon and sgd."""
    correction_fraction: float = 0.3
    """rate: fraction of the steps over which it is annealed away."""
    surrogate: float = 2.0
    """surrogate: c, the factor. There are more parents than the head that stands in for them."""
    shrink: float = 0.5
    """shrink: beta, the factor per hop."""
    predict: str = "backward"
    """prediction: backward (the gradient for the child, with the weights at the mean time of its
    use below) or forward (the activation for the parent, with the weights of its own backward)."""
    compensation: float = 0.04
    """compensation: lambda. Under replay=stash a late gradient of the weights is compensated for
    their way since the forward; under recompute the parent's gradient for the activation's."""
    look_ahead: float = 0.99
    """nesterov: momentum of SGD and Muon, beta1 of NAdamW."""
    precision: str = "fp32"
    """fp32, or bf16: autocast of body, head and student."""

    @property
    def slows(self) -> bool:
        """Whether the rate of a component follows its staleness."""
        return self.correction in ("rate", "rate+surrogate")

    @property
    def asks_head(self) -> bool:
        """Whether a head stands in for the parents."""
        return self.correction in ("surrogate", "rate+surrogate")

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, ("muon", "adamw", "sgd"))
        self._check_correction()
        one_of("optim.precision", self.precision, ("fp32", "bf16"))
        for key in ("lr", "muon_lr", "weight_decay", "clip"):
            at_least(f"optim.{key}", getattr(self, key), 0)
        if not 0 < self.layer_decay < float("inf"):
            raise ConfigError(f"optim.layer_decay: expected more than 0; got {self.layer_decay}")
        for key in ("momentum", "muon_momentum", "warmup", "correction_fraction"):
            within(f"optim.{key}", getattr(self, key), 0, 1)

    def _check_correction(self) -> None:
        together = any(sign in self.correction for sign in "+, ")
        if together and self.correction not in CORRECTIONS:
            raise ConfigError(
                f"optim.correction: expected one of {', '.join(CORRECTIONS)}; got "
                f"{self.correction!r}. Corrections do not add up: where others were combined, the "
                "run was worse than with one (Ajanthan et al., 2025). Choose one."
            )
        one_of("optim.correction", self.correction, CORRECTIONS)
        one_of("optim.predict", self.predict, ("backward", "forward"))
        at_least("optim.compensation", self.compensation, 0)
        at_least("optim.surrogate", self.surrogate, 0)
        if not 0 <= self.look_ahead < 1:
            raise ConfigError(f"optim.look_ahead: expected 0 to below 1; got {self.look_ahead}")
        if not 0 < self.shrink <= 1:
            raise ConfigError(
                f"optim.shrink: expected more than 0 and at most 1; got {self.shrink}. To cut the "
                "chain set feedback=0."
            )
