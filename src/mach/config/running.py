"""How does a run run: messages, processes, reports, checkpoints, evaluations?"""

from __future__ import annotations

from dataclasses import dataclass, field

from mach.config.checks import LONGEST_S, at_least, check_deadline, one_of, within

_MOST_THREADS = 1024
"""More than there are cores on any machine; many thousands crash the libraries that compute."""


@dataclass
class TransportConfig:
    """How messages travel between neighbours."""

    name: str = "auto"
    """gloo (CPU; or CUDA through pinned host memory, components may share a GPU), nccl (one GPU per
    component), or auto: nccl where each component has a GPU of its own, else gloo."""
    credits: int | None = None
    """W: frames that may be on their way on one edge before its sender waits (under free: before
    it goes on without sending). None takes delay + 1 (2 under sync); more suits links with a long
    round trip, fewer (free only) neighbours that are much slower than this component."""
    wire_dtype: str = "float32"
    """What activations and gradients are rounded to on their way: float32 (not at all), bfloat16
    (half the bytes) or int8 with a scale per row (about a quarter); see mach.channels.encoding.
    Evaluations are not rounded: they tell how good the network is, with no wire in it."""
    timeout_s: float = 120.0
    """Longest wait for a message from a neighbour."""
    start_timeout_s: float = 120.0
    """Longest wait for a neighbour to come up."""

    def __post_init__(self) -> None:
        one_of("transport.name", self.name, ("auto", "gloo", "nccl"))
        one_of("transport.wire_dtype", self.wire_dtype, ("float32", "bfloat16", "int8"))
        for key in ("timeout_s", "start_timeout_s"):
            check_deadline(f"transport.{key}", getattr(self, key))


@dataclass
class LaunchConfig:
    """How the processes of a run are started and watched."""

    name: str = "auto"
    """gang: one elastic worker group, if one component dies all stop. supervised: each component is
    started, watched and restarted by itself (free only). auto: supervised under free, else gang.
    inprocess: all components in turn in mach train's own process, with the same numbers.
    slurm: somebody else's torchrun starts the ranks (launch/README.md)."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: int | None = None
    """Compute threads per component on CPU. None: the machine's cores divided by the components."""
    pin: bool = True
    """Bind each component to cores of its own where there are enough."""
    parallel: int = 1
    """Jobs of a sweep that run at once on this machine, each with an equal share of the cores, and
    with GPUs of its own as soon as there are enough. More than 1 takes hydra/launcher=joblib."""
    queue_s: float = 86400.0
    """Longest a job of a sweep waits for its share of the cores, and for its GPUs."""
    max_restarts: int | None = None
    """How often the group, or under supervised each component, restarts from its last checkpoint
    after a death. None: never for a gang, 10 times for a supervised component."""
    backoff_s: float = 1.0
    """supervised: pause before a component that died without a single step is started once more;
    it doubles with every such life."""
    hang_s: float = 30.0
    """free: a component that has done nothing for so long is ended and restarted; where none is
    supervised, the others save and end. Longer than its longest microbatch and its longest save."""
    on_exhausted: str = "stop"
    """supervised: stop the run, or continue without it, when a component has no restart left. What
    goes on without its child needs a student."""
    bind: str | None = None
    """Where edges listen, and under supervised the run's store, too: an address, the name of a
    network interface, or auto: the address from which this machine reaches the store. None:
    loopback, for one machine."""

    def __post_init__(self) -> None:
        one_of("launch.name", self.name, ("auto", "gang", "supervised", "inprocess", "slurm"))
        one_of("launch.device", self.device, ("auto", "cpu", "cuda"))
        one_of("launch.on_exhausted", self.on_exhausted, ("stop", "continue"))
        if self.threads is not None:
            within("launch.threads", self.threads, 1, _MOST_THREADS)
        at_least("launch.parallel", self.parallel, 1)
        at_least("launch.queue_s", self.queue_s, 0)
        if self.max_restarts is not None:
            at_least("launch.max_restarts", self.max_restarts, 0)
        at_least("launch.backoff_s", self.backoff_s, 0)
        at_least("launch.hang_s", self.hang_s, 1)


@dataclass
class FaultsConfig:
    """A fault to inject, to see what a run does then."""

    kind: str = "none"
    """kill (as kill -9 does), stop (as a hung process), slow, drop-link (the edges to its
    neighbours break and stay away), or none."""
    component: int = 0
    """Where it happens."""
    step: int = 1
    """When it happens: as soon as the component has taken this optimizer step; 0 is before the
    first."""
    duration_s: float = 5.0
    """How long stop, slow and drop-link last; inf never ends."""
    factor: float = 4.0
    """slow: how many times as long a microbatch takes."""
    lives: int = 1
    """In how many lives of the component it happens."""
    pace_ms: float = 0.0
    """Least time of a microbatch at every component: stands in for a larger network."""

    def __post_init__(self) -> None:
        one_of("faults.kind", self.kind, ("none", "kill", "stop", "slow", "drop-link"))
        at_least("faults.component", self.component, 0)
        at_least("faults.step", self.step, 0)
        at_least("faults.duration_s", self.duration_s, 0)
        at_least("faults.factor", self.factor, 1)
        at_least("faults.lives", self.lives, 1)
        at_least("faults.pace_ms", self.pace_ms, 0)


@dataclass
class ReportConfig:
    """What a run tells while it runs."""

    every: int = 50
    """Optimizer steps between two logged lines."""
    salience: int = 0
    """Optimizer steps between two looks at how much each component leans on its child, its student
    or the raw input (see mach.component.salience); 0 does not look. One look costs about as much as
    three backwards of a microbatch, under model.raw_input as 40."""
    wandb: str = "auto"
    """auto (online if logged in, else offline), online, offline, off."""
    project: str = "mach"
    """Project of the wandb runs."""
    group: str | None = None
    """Group of the wandb runs of one launch. None: the name of the run folder; in a sweep that of
    the sweep and of the job."""
    tags: list[str] = field(default_factory=list)
    """Tags of the wandb runs; in a sweep the sweep's name is one more."""
    artifacts: str = "online"
    """online: checkpoints and exported models are uploaded to wandb as artifacts where wandb is
    online; always: offline they are copied for `wandb sync`; off."""
    finish_timeout_s: float = 30.0
    """Longest wait, when a run ends, for what wandb has yet to upload."""
    tensorboard: bool = False
    """TensorBoard's event files too, in the run folder: pip install 'mach[tensorboard]'."""
    progress: bool = True
    """Live progress on a terminal."""
    trace: bool | int = False
    """true: write what each component does at every moment, and when it waits, to trace-<k>.json,
    which `mach report` draws and Perfetto opens. A number traces so many first optimizer steps (of
    each life, where a component is restarted); a step takes some kB."""

    def __post_init__(self) -> None:
        at_least("report.every", self.every, 1)
        at_least("report.trace", self.trace, 0)
        at_least("report.salience", self.salience, 0)
        one_of("report.wandb", self.wandb, ("auto", "online", "offline", "off"))
        one_of("report.artifacts", self.artifacts, ("online", "always", "off"))
        within("report.finish_timeout_s", self.finish_timeout_s, 0, LONGEST_S)


@dataclass
class CheckpointConfig:
    """When the run is saved: at a flush point of the schedule; under free each by itself."""

    every: int | None = None
    """Optimizer steps between two checkpoints; 0 saves at the end only. None: 20 times a run under
    free, where a component that died goes on from its own last one; otherwise at the end only."""
    keep: int = 2
    """How many of the last complete checkpoints stay; two or more while it trains."""

    def __post_init__(self) -> None:
        if self.every is not None:
            at_least("checkpoint.every", self.every, 0)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass
class EvalConfig:
    """When the exits are evaluated: at a flush point of the schedule. Under free each component
    evaluates on the way what it can alone: the window of itself."""

    every: int = 0
    """Optimizer steps between two evaluations of the exits; 0 evaluates at the end only."""
    samples: int | None = None
    """Samples used on the way; the end always takes all."""
    split: str = "test"
    """Which samples exits and windows are evaluated on: test, or validation, which
    `data.validation` keeps back from training, to choose by."""

    def __post_init__(self) -> None:
        at_least("eval.every", self.every, 0)
        one_of("eval.split", self.split, ("test", "validation"))
        if self.samples is not None:
            at_least("eval.samples", self.samples, 1)
