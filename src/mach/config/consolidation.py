"""What can `mach consolidate` be asked for?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import at_least, check_seed, one_of, within
from mach.config.window import name_of
from mach.errors import ConfigError


@dataclass
class ConsolidateConfig:
    """Arguments of `mach consolidate`."""

    run: str = "???"
    """Run folder."""
    window: str = "???"
    """j..i: student j, bodies j to i and head i are trained together; 0..i, an exit below the top,
    its bodies and head."""
    steps: int = 1000
    """Optimizer steps, of each assistant, too; a step's rate is scheduled over them as the run's
    was."""
    batch: int | None = None
    """Samples of a step. None: as many as one of the run's had."""
    weight: float = 0.5
    """alpha: how much the window listens to its teacher's soft targets; 0 is the labels alone, 1
    the teacher alone."""
    temperature: float = 4.0
    """Of the soft targets."""
    assistants: str = "none"
    """Who teaches between the whole chain and the window: none; all: every window on the way, one
    component less each; or some, as in 1..3,2..3. Each is trained in turn, taught by the one before
    it, and is not kept."""
    validation: int | None = None
    """Training samples (of text windows) kept back, to find the best step by. None: a tenth, at
    most 2,000 (256). A run that has data.validation has them already, and never trained on them."""
    every: int | None = None
    """Steps between two looks at them. None: a twentieth of all."""
    patience: int = 0
    """Looks without a better one after which the window is done; 0: all steps are taken. The best
    of all looks is what is kept, either way."""
    optimizer: str | None = None
    """muon (matrices and kernels of bodies and student; AdamW for the rest), adamw or sgd. None:
    the run's."""
    lr: float | None = None
    """Peak learning rate, as optim.lr. None: the run's."""
    muon_lr: float | None = None
    """Peak learning rate of Muon, as optim.muon_lr. None: the run's."""
    seed: int = 0
    """Of the order and augmentation of the samples."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is a GPU."""
    overwrite: bool = False
    """Replace what was made of this window before."""

    def __post_init__(self) -> None:
        if name_of(self.window).consolidated:
            raise ConfigError(
                f"window={self.window}: expected a window of the run, j..i; got one that is "
                "consolidated already. Take more steps with overwrite=true."
            )
        for key in ("steps", "batch", "validation", "every"):
            value = getattr(self, key)
            if value is not None:
                at_least(key, value, 1)
        within("weight", self.weight, 0, 1)
        if not self.temperature > 0:
            raise ConfigError(f"temperature: expected more than 0; got {self.temperature}")
        self.path()
        at_least("patience", self.patience, 0)
        if self.optimizer is not None:
            one_of("optimizer", self.optimizer, ("muon", "adamw", "sgd"))
        check_seed("seed", self.seed)
        for key in ("lr", "muon_lr"):
            value = getattr(self, key)
            if value is not None:
                at_least(key, value, 0)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.every is not None and self.every > self.steps:
            raise ConfigError(
                f"every: expected at most steps={self.steps}, or nobody looks; got {self.every}"
            )
        if self.weight == 0 and self.assistants != "none":
            raise ConfigError(
                "assistants: expected none because weight=0 listens to no teacher; got "
                f"{self.assistants}. Set weight=0.5."
            )

    def path(self) -> list[tuple[int, int]] | None:
        """First and last component of each assistant that is named; None: all."""
        if self.assistants == "all":
            return None
        words = [] if self.assistants == "none" else self.assistants.split(",")
        try:
            names = [name_of(word) for word in words]
        except ConfigError:
            names = []
        if len(names) < len(words) or any(name.consolidated for name in names):
            raise ConfigError(
                "assistants: expected none, all, or windows with commas, as in 1..3,2..3; got "
                f"{self.assistants!r}"
            )
        return [(name.first, name.last) for name in names]
