"""What is one run?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from mach.config.checks import at_least, check_named, check_seed, one_of, within
from mach.config.conflicts import check_parts
from mach.config.data import DataConfig, DigitsConfig
from mach.config.learning import HeadConfig, OptimConfig, PredictorConfig, StudentConfig
from mach.config.methods import check_method
from mach.config.model import MlpConfig, ModelConfig
from mach.config.running import (
    CheckpointConfig,
    EvalConfig,
    FaultsConfig,
    LaunchConfig,
    ReportConfig,
    TransportConfig,
)
from mach.errors import ConfigError
from mach.schedule import KINDS, staleness

_COMPILE_S = 600.0
"""Longer than any component compiles (a minute is much), and still an end to a wait."""
_MOST_SAMPLES = 2**20
"""Of a microbatch; of a small data set that is hundreds of epochs."""


@dataclass
class Config:
    """One run. The names at this level are the ones people sweep."""

    components: int = 4
    """K: how many processes the network is cut into."""
    schedule: str = "delayed"
    """delayed: gradients arrive a fixed number of steps late. sync: 1F1B with a flush at every
    step, exact gradients. free: nobody waits for another, as late as they are."""
    delay: int = 1
    """d: how many microbatches late a message is used, per hop; under free the most it may be."""
    patience_ms: float = 100.0
    """free: how long a child may be silent before a component makes its input itself, by its
    student. The component's own work since the child's last message counts as well, so that a slow
    child slows nobody. A child that is known to be down is not waited for."""
    accumulate: int = 4
    """M: microbatches per optimizer step."""
    feedback: float = 1.0
    """gamma: factor on the gradient a parent returns to its child; 0 cuts the chain."""
    one_hop: bool = False
    """The gradient a parent returns is that of its own head's loss alone, sent with its forward;
    the one it gets from above goes no further (the 2019 code)."""
    replay: str = "recompute"
    """recompute the forward at the present weights, or stash the weight versions in flight."""
    steps: int = 500
    """Optimizer steps."""
    microbatch_size: int = 16
    """Samples in a microbatch; accumulate times as many in a step."""
    seed: int = 0
    """Of the first weights, and of the order and augmentation of the samples."""
    method: str = "mach"
    """Named algorithm; set by the `method` group."""
    out: str | None = None
    """Run folder; of a sweep the folder of all its jobs. None: runs/<date and time>."""
    resume: str | None = None
    """auto: go on from the last checkpoint in `out`; a sweep runs the jobs that are missing there.
    A path: begin from that run or checkpoint."""
    model: ModelConfig = field(default_factory=MlpConfig)
    data: DataConfig = field(default_factory=DigitsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, KINDS)
        one_of("replay", self.replay, ("recompute", "stash"))
        for key in ("components", "accumulate", "steps"):
            at_least(key, getattr(self, key), 1)
        within("microbatch_size", self.microbatch_size, 1, _MOST_SAMPLES)
        for key in ("delay", "patience_ms", "feedback"):
            at_least(key, getattr(self, key), 0)
        check_seed("seed", self.seed)
        for key in ("out", "resume"):
            check_named(key, getattr(self, key))
        if self.optim.correction == "auto":
            self.optim = replace(self.optim, correction=self._usual_correction)
        self._check_cut()
        self.model.check(self.components, self.student)
        if self.launch.name == "supervised" and self.schedule != "free":
            raise ConfigError(
                "launch=supervised: expected schedule=free; got "
                f"{self.schedule}, under which every component needs every other. Set "
                "schedule=free or launch=gang."
            )
        if self.launch.name == "inprocess":
            self._check_inprocess()
        if self.faults.component >= self.components:
            raise ConfigError(
                f"faults.component: expected less than components={self.components}; got "
                f"{self.faults.component}"
            )
        if self.eval.split == "validation" and self.data.validation == 0:
            raise ConfigError(
                "eval.split=validation: expected samples to evaluate on; got data.validation=0. "
                "Set data.validation to how many training samples are to be kept back."
            )
        if self.transport.credits is not None:  # under free nobody waits for one
            least = 1 if self.schedule == "free" else self._usual_credits
            at_least("transport.credits", self.transport.credits, least)
        if self.feedback == 0 and self.head.weight == 0 and self.components > 1:
            raise ConfigError(
                "head.weight: expected more than 0 because feedback=0 leaves the bodies below the "
                "top with no other gradient; got 0. Set head.weight=1."
            )
        check_parts(self)
        check_method(self)

    @property
    def credits(self) -> int:
        """W: frames that may be under way on one edge."""
        return self.transport.credits or self._usual_credits

    @property
    def _usual_credits(self) -> int:
        # delayed: a child is up to 2 d microbatches ahead of the gradients it takes. Both edges of
        # a link must hold them, or child and parent wait for each other.
        # free: what waits behind d others is d microbatches late, which is what it may be.
        return (1 if self.schedule == "sync" else self.delay) + 1

    @property
    def _usual_correction(self) -> str:
        # There the parents' gradients belong to the activations that they meet.
        nothing_to_correct = self.replay == "stash" or self.answers
        return "rate" if nothing_to_correct else self.model.correction

    @property
    def microbatches(self) -> int:
        """Microbatches of the whole run."""
        return self.steps * self.accumulate

    @property
    def effective_delay(self) -> int:
        """Delay that costs staleness: none when the chain is cut or flushed at every step."""
        return self.delay if self.schedule != "sync" and self.feedback > 0 else 0

    @property
    def late(self) -> bool:
        """Whether weights may move before a gradient comes: under free without a delay, too, where
        nobody waits for it."""
        return self.feedback > 0 if self.schedule == "free" else self.effective_delay > 0

    @property
    def unlocked(self) -> bool:
        """Whether components below the top learn at once, from predicted gradients."""
        return self.predictor.enabled

    @property
    def answers(self) -> bool:
        """Whether a parent answers at once, without a word from above."""
        return self.unlocked or self.one_hop

    @property
    def reach(self) -> int:
        """From how many hops above a gradient comes: from the top, or from the parent alone."""
        return 1 if self.answers else max(1, self.components - 1)

    def staleness(self, k: int) -> float:
        """tau_k: age in optimizer steps of the gradient that component k learns from."""
        if self.unlocked:
            return 0.0
        components, delay = self.components, self.effective_delay
        return staleness(components, k, delay, self.accumulate, self.reach)

    @property
    def compensation(self) -> float:
        """lambda of DC-ASGD where gradients are compensated, else 0."""
        asked = self.optim.correction == "compensation" and self.late
        return self.optim.compensation if asked else 0.0

    @property
    def predict(self) -> str:
        """What is made with predicted weights: nothing, forward or backward."""
        asked = self.optim.correction == "prediction" and self.effective_delay > 0
        return self.optim.predict if asked else "nothing"

    def ahead(self, k: int) -> float:
        """Optimizer steps that component k takes until its gradients are used: mean over those
        below it, to which a gradient takes `delay` microbatches for every hop."""
        hops = (k + 1) / 2 if k > 0 else 0
        steps = hops * self.effective_delay / self.accumulate
        return steps if self.predict == "backward" else 0.0

    @property
    def gradient_factor(self) -> float:
        """Factor on a gradient for every hop that it comes down."""
        shrinks = self.optim.correction == "shrink" and self.optim.name == "sgd"
        return self.feedback * (self.optim.shrink if shrinks and self.late else 1.0)

    @property
    def surrogate(self) -> float:
        """c below the top, where the head stands in for the parents, else 0: of a parent's gradient
        that has shrunk, as much less."""
        asked = self.optim.asks_head and self.late
        return self.optim.surrogate * self.gradient_factor if asked else 0.0

    @property
    def supervised(self) -> bool:
        """Whether `mach train` watches each component by itself."""
        if self.launch.name == "auto":
            return self.schedule == "free"
        return self.launch.name == "supervised"

    @property
    def start_timeout_s(self) -> float:
        """Longest wait for a neighbour to come up, which may have to compile first."""
        return self.transport.start_timeout_s + (_COMPILE_S if self.model.compile else 0.0)

    @property
    def max_restarts(self) -> int:
        """Restarts of the group, or of each component."""
        if self.launch.max_restarts is None:
            return 10 if self.supervised else 0
        return self.launch.max_restarts

    @property
    def save_every(self) -> int:
        """Optimizer steps between two checkpoints; 0 saves at the end only."""
        if self.checkpoint.every is None:
            return max(1, self.steps // 20) if self.schedule == "free" else 0
        return self.checkpoint.every

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due at this flush point."""
        return step == self.steps or (self.save_every > 0 and step % self.save_every == 0)

    def bodies(self) -> list[range]:
        """Blocks of each component, numbered through the network.

        Where `model.balance` gives no list, as equal as can be; the first take the rest.

        Raises:
            ConfigError: that is yet to be found, by `mach.trainer.settle`.
        """
        if not self.model.settled:
            raise ConfigError(
                f"model={self.model.name} model.balance={self.model.balance}: expected a config "
                "whose cut has been found; got one as the user wrote it. Call mach.trainer.settle."
            )
        sizes = self.model.balance
        if not isinstance(sizes, list):
            size, rest = divmod(self.model.total(self.components), self.components)
            sizes = [size + (k < rest) for k in range(self.components)]
        return [range(a, b) for a, b in pairwise(accumulate([0, *sizes]))]

    def _check_inprocess(self) -> None:
        if self.schedule == "free":
            raise ConfigError(
                "launch=inprocess: expected schedule=delayed or sync, as nobody is late in one "
                "process; got free. Set launch=supervised."
            )
        if self.faults.kind != "none":
            raise ConfigError(
                "launch=inprocess: expected faults=none, as there is no process of a component "
                f"that could fail; got faults={self.faults.kind}. Set launch=gang."
            )

    def _check_cut(self) -> None:
        depth, balance = self.model.depth, self.model.balance
        if depth is not None and depth < self.components:
            raise ConfigError(
                f"components: expected at most model.depth={depth}, one block each; "
                f"got {self.components}. Ask for fewer components or a deeper model."
            )
        if not isinstance(balance, list):
            return
        if len(balance) != self.components:
            raise ConfigError(
                f"model.balance: expected {self.components} numbers, one for each component; got "
                f"{balance}. Set components={len(balance)}, or another list."
            )
        if depth is not None and sum(balance) != depth:
            raise ConfigError(
                f"model.balance: expected numbers that sum to model.depth={depth}; got {balance}, "
                f"which is {sum(balance)}."
            )
