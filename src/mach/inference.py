"""What does a run leave that can predict, as one plain module?

# j first component, i last component
# chain 0..i     body 0 .. body i, head i
# window j..i    student j, body j .. body i, head i
# its exits      the same up to each of j .. i
# consolidated/j..i    the window with weights that `mach consolidate` has trained together
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from mach import checkpoint, runfolder
from mach.checkpoint import consolidated
from mach.component import Component
from mach.component.join import enter
from mach.config import Config, SequenceConfig
from mach.config.window import Name, name_of
from mach.configfile import load
from mach.data import Batches, Dataset, open_dataset
from mach.data.tokenizers import Tokenizer
from mach.errors import CheckpointError, ConfigError, DataError, RunFolderError
from mach.metrics import Score, Task
from mach.paths import looked_at
from mach.shapes import TensorSpec
from mach.trainer import Assembly

_SAMPLES, _LOGITS = 64, 1 << 24
"""Most that are computed together. A text has logits for each token of the vocabulary, and most
often at each position: of a large vocabulary millions."""


def computed_together(logits: int, samples: int = _SAMPLES) -> int:
    """How many samples, when each has so many logits.

    Args:
        samples: most of them, however few logits they have.
    """
    return max(1, min(samples, _LOGITS // logits))


class Window(nn.Module):
    """A chain or a window of a run: a complete model, in one process.

    It is in evaluation mode and computes in float32, whatever precision the run was trained in.
    """

    def __init__(self, student: nn.Module | None, bodies: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.student = student
        self.bodies = nn.ModuleList(bodies)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """From the raw input [B, ..] to the logits [N, C] of the head.

        N is B; for a model that predicts a token after each of T, it is B * T.
        """
        h = x if self.student is None else self.student(x)
        for body in self.bodies:
            h = body(enter(body, h, x))
        logits_NC: Tensor = self.head(h)
        return logits_NC


class Exits(nn.Module):
    """A chain or a window with the head of each of its components, in evaluation mode."""

    def __init__(
        self, student: nn.Module | None, bodies: Sequence[nn.Module], heads: Sequence[nn.Module]
    ):
        super().__init__()
        self.student = student
        self.bodies = nn.ModuleList(bodies)
        self.heads = nn.ModuleList(heads)
        self.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """From the raw input [B, ..] to the logits [N, C] of each head, the lowest first."""
        h = x if self.student is None else self.student(x)
        logits = []
        for body, head in zip(self.bodies, self.heads, strict=True):
            h = body(enter(body, h, x))
            logits.append(head(h))
        return logits


class Run:
    """A run folder that is read: its config, and any model of it.

        run = Run("runs/mine")
        model = run.window(0, 3)       # the chain of four components
        logits = model(x)

    A run may still be training: what it has saved so far is taken.
    """

    config: Config
    """The run's own."""
    device: torch.device
    """Where its models go."""

    def __init__(self, run_dir: Path | str, device: torch.device | None = None) -> None:
        """
        Args:
            run_dir: its folder.
            device: where the models go; None is the CPU.

        Raises:
            RunFolderError: it is no run folder.
        """
        self.run_dir = Path(run_dir)
        self.device = device or torch.device("cpu")
        with looked_at(f"run={run_dir}", RunFolderError):
            if not (self.run_dir / runfolder.CONFIG).is_file():
                found = "a folder without one" if self.run_dir.is_dir() else "no such folder"
                raise RunFolderError(
                    f"run={run_dir}: expected a run folder, which has {runfolder.CONFIG}; got "
                    f"{found}. It is what `mach train` printed as Result, or was given as out=."
                )
        self.config = load(self.run_dir / runfolder.CONFIG)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The one that the run was trained with, as its checkpoints have it; None without text."""
        return next((found.tokenizer for found in self._saved()), None)

    @cached_property
    def dataset(self) -> Dataset:
        """The data it was trained on.

        Raises:
            DataError: it is gone, or is another by now.
        """
        try:
            dataset = open_dataset(self.config.data)
        except DataError as error:
            config = self.run_dir / runfolder.CONFIG
            raise DataError(f"{error} It is {config} that has data.path.") from error
        for found in self._saved():
            dataset.preprocessing.refuse_other(
                found.path, found.manifest, "set data.path in the run's config.yaml to where it is"
            )
        return dataset

    @cached_property
    def task(self) -> Task:
        """What the run's data asks of its models. Of text the data itself is not needed."""
        data = self.config.data
        if isinstance(data, SequenceConfig) and self.tokenizer is not None:
            sample = TensorSpec((data.context,), torch.int64)
            return Task(sample, self.tokenizer.vocabulary, "bits_per_byte")
        return self.dataset.task

    @cached_property
    def assembly(self) -> Assembly:
        """How its components are put together: as they are, not compiled, nothing run again."""
        model = replace(self.config.model, compile=False, checkpointing=False)
        return Assembly(replace(self.config, model=model), self.task)

    def window(self, first: int = 0, last: int | None = None) -> Window:
        """The chain `0..last` or the window `first..last`, as last saved.

        Args:
            first: component it begins at; above 0 its student stands in for what lies below.
            last: component it ends at; None is the top.

        Raises:
            ConfigError: the run has no such window; says which there are.
            CheckpointError: nothing is saved of it, or what is saved is damaged or of another
                network.
        """
        components = self._components(first, last)
        return Window(
            _student(components[0], first),
            [component.body for component in components],
            components[-1].head,
        )

    def model(self, name: Name) -> Window:
        """The model that is named: a chain or a window as last saved, or as it was consolidated.

        Raises:
            MachError: as `window`, and as `mach.checkpoint.consolidated.find` and its `load`.
        """
        if not name.consolidated:
            return self.window(name.first, name.last)
        self.check(name.first, name.last)
        found = consolidated.find(self.run_dir, name)
        window = self.untrained(name.first, name.last)
        found.load(window)
        return window

    def score(self, model: Callable[[Tensor], Tensor], batches: Batches) -> dict[str, float]:
        """Loss and metric of a model on the whole split that `batches` evaluates, on the run's
        device. The model is in evaluation mode."""
        targets = self.assembly.family.targets
        score = Score(self.device)
        with torch.inference_mode():
            for batch in range(batches.evaluation_batches()):
                x, y = batches.evaluation(batch)
                score.add(model(x), targets(y))
        return score.result(batches.task)

    def exits(self, first: int = 0, last: int | None = None) -> Exits:
        """The same with the heads of all its components. Raises as `window` does."""
        components = self._components(first, last)
        return Exits(
            _student(components[0], first),
            [component.body for component in components],
            [component.head for component in components],
        )

    def components(self) -> list[Component | None]:
        """All, as last saved; None for one that has saved nothing yet."""
        found = []
        for k in range(self.config.components):
            saved = self._find(k)
            component = None
            if saved is not None:
                component, _ = self.assembly.component(k, self.device)
                checkpoint.load_weights(self._checkpoint(k), k, component)
            found.append(component)
        return found

    def untrained(self, first: int, last: int) -> Window:
        """The same window, built anew with its first weights."""
        components = [self.assembly.component(k, self.device)[0] for k in range(first, last + 1)]
        bodies = [component.body for component in components]
        return Window(_student(components[0], first), bodies, components[-1].head)

    def checkpoints(self, first: int, last: int) -> dict[int, checkpoint.Checkpoint]:
        """What each of these components was last saved in, by its index.

        Raises:
            CheckpointError: nothing is saved of one, or what is saved is of another network.
        """
        return {k: self._checkpoint(k) for k in range(first, last + 1)}

    def _components(self, first: int, last: int | None) -> list[Component]:
        last = self.config.components - 1 if last is None else last
        self.check(first, last)
        saved = self.checkpoints(first, last)  # before the slow part
        components = []
        for k, found in saved.items():
            component, _ = self.assembly.component(k, self.device)
            checkpoint.load_weights(found, k, component)
            components.append(component)
        return components

    def check(self, first: int, last: int) -> None:
        """Whether the run has such a window.

        Raises:
            ConfigError: it has not; says which there are.
        """
        top, students = self.config.components - 1, self.config.student.enabled
        if 0 <= first <= last <= top and (first == 0 or students):
            return
        if not students:
            raise ConfigError(
                f"window={first}..{last}: expected a chain, 0..0 to 0..{top}: the run in "
                f"{self.run_dir} has student.enabled=false, and without students nothing can begin "
                "above component 0. Train with student=distil to have windows."
            )
        raise ConfigError(
            f"window={first}..{last}: expected j..i with 0 <= j <= i <= {top}: the run in "
            f"{self.run_dir} has {top + 1} components."
        )

    def _saved(self) -> Iterator[checkpoint.Checkpoint]:
        """What each component has saved last, of those that have."""
        found = (self._find(k) for k in range(self.config.components))
        return (one for one in found if one is not None)

    def _find(self, k: int) -> checkpoint.Checkpoint | None:
        """The last that component k has saved; that all have saved, unless each does by itself."""
        if self.config.schedule == "free":
            return checkpoint.latest_of(self.run_dir, k)
        return checkpoint.latest(self.run_dir)

    def _checkpoint(self, k: int) -> checkpoint.Checkpoint:
        found = self._find(k)
        if found is None:
            who = f"component {k}" if self.config.schedule == "free" else "the run"
            raise CheckpointError(
                f"run={self.run_dir}: expected a checkpoint; {who} has saved none yet. Wait for "
                "its end, or train with checkpoint.every=STEPS."
            )
        if found.manifest["components"] != self.config.components:
            raise CheckpointError(
                f"{found.path}: expected components={self.config.components}, as "
                f"{self.run_dir / runfolder.CONFIG} has it; got a checkpoint of "
                f"{found.manifest['components']}"
            )
        return found


def open_model(
    path: Path | str, window: str | None = None, device: torch.device | None = None
) -> tuple[Run, Name]:
    """The run that is meant, and which of its models.

    Args:
        path: a run folder; or the folder of a consolidated window in one, or a file of it.
        window: j..i or consolidated/j..i. None: the whole chain, or what the path names.

    Raises:
        MachError: there is no such run, or no such window in it. What is saved of it is read later.
    """
    with looked_at(str(path), RunFolderError):
        found = consolidated.run_of(Path(path))
    if found is None:
        run = Run(path, device)
    else:
        run_dir, own = found
        if window not in (None, own):
            raise ConfigError(
                f"window={window}: expected {own}, the only one that {path} has. Leave it out, or "
                "give the run folder."
            )
        if not (run_dir / runfolder.CONFIG).is_file():
            raise RunFolderError(
                f"{path}: expected a consolidated window in its run folder, which has "
                f"{runfolder.CONFIG}; got one without it two folders above. Move it back; "
                "to take it elsewhere, export it: mach export"
            )
        run, window = Run(run_dir, device), own
    name = name_of(window, run.config.components - 1)
    run.check(name.first, name.last)
    return run, name


def _student(lowest: Component, first: int) -> nn.Module | None:
    if first == 0:
        return None
    assert lowest.student is not None
    return lowest.student.network
