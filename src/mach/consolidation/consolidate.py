"""How does a window of a run become an entry of its own?

read the run, find teachers, keep samples back, train, score, write
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import torch
import yaml

from mach.checkpoint import consolidated
from mach.component.soft import SoftTargets
from mach.config import ConsolidateConfig, OptimConfig, SequenceConfig
from mach.config.window import Name, name_of
from mach.consolidation.teachers import way
from mach.consolidation.together import (
    Course,
    Scores,
    Together,
    is_better,
    learn,
    optimizer_of,
    shown,
)
from mach.data import Batches, Dataset
from mach.errors import ConfigError, ConsolidationError, RunFolderError
from mach.inference import Run, Window
from mach.provenance import commit
from mach.rank import device_named

_KEPT_BACK, _KEPT_BACK_OF_TEXT = 2000, 256


def consolidate(
    config: ConsolidateConfig, say: Callable[[str], None] = lambda line: None
) -> consolidated.Consolidated:
    """Train a window of a run together and keep it beside the run's own, which is not touched.

    Args:
        say: is told in lines how it goes.

    Raises:
        MachError: the run has no such window, or no such assistants; or the window did not become
            better.
    """
    began_s = time.monotonic()
    run = Run(config.run, device_named(config.device))
    name = replace(name_of(config.window), consolidated=False)
    run.check(name.first, name.last)
    out = replace(name, consolidated=True)
    _refuse_existing(run, out, config)
    chain, *learners = way(run, name, config.path())
    dataset = _keeping_back(run, config.validation)
    batch = config.batch or run.config.microbatch_size * run.config.accumulate
    batches = Batches(dataset, config.seed, batch, run.device, split="validation")
    say(_about(run, dataset, config, batch))
    teacher, teacher_name = run.model(chain), chain
    reported = _reported(run, batch)
    scores = {"teacher": run.score(teacher, reported)}
    stages: list[dict[str, Any]] = []
    for learner in learners:
        window = run.model(learner)
        if learner == name:
            scores["before"] = run.score(window, reported)
        say(f"{learner.title}, taught by {teacher_name.title}")
        course = _learn(run, window, teacher, batches, config, say)
        if learner == name:  # an assistant that stays as it was may teach all the same
            _refuse_worse(course, learner)
        stages.append(_stage(learner, teacher_name, course))
        teacher, teacher_name = window, learner
    scores["metrics"] = run.score(teacher, reported)
    cost = run.assembly.costs().model(name.first, name.last)
    saved = run.checkpoints(0, chain.last)
    manifest = {
        "split": run.config.eval.split,
        **scores,
        **vars(cost),
        "batch": batch,
        "samples": batch * sum(stage["steps"] for stage in stages),
        "validation": dataset.validation,
        "validation_is_new_to_the_run": run.dataset.validation > 0,
        "checkpoints": {k: checkpoint.step for k, checkpoint in saved.items()},
        "stages": stages,
        "seconds": round(time.monotonic() - began_s, 1),
        "mach": version("mach"),
        "torch": torch.__version__,
        "git": commit(),
    }
    asked = yaml.safe_dump(asdict(config), sort_keys=False)
    found = consolidated.write(run.run_dir, out, teacher, manifest, asked)
    say(_result(found))
    return found


def _refuse_existing(run: Run, out: Name, config: ConsolidateConfig) -> None:
    folder = consolidated.place(run.run_dir, out)
    if folder.exists() and not config.overwrite:
        raise RunFolderError(
            f"window={config.window}: expected one that has not been consolidated yet; {folder} is "
            f"there already. Use it, window={out}, or set overwrite=true."
        )


def _keeping_back(run: Run, wanted: int | None) -> Dataset:
    """The run's data with samples to find the best step by."""
    dataset = run.dataset
    if dataset.validation:
        if wanted is not None:
            raise ConfigError(
                f"validation={wanted}: expected it to be left out, as the run in {run.run_dir} has "
                f"data.validation={dataset.validation} samples that it never trained on."
            )
        return dataset
    text = isinstance(run.config.data, SequenceConfig)
    present = dataset.places
    most = _KEPT_BACK_OF_TEXT if text else _KEPT_BACK
    samples = wanted or min(most, present // 10)
    if not 0 < samples < present:
        raise ConfigError(
            f"validation: expected samples of {present:,} to keep back, and some to train on; got "
            f"{samples}. Set validation to less than {present:,}."
        )
    return dataset.keeping_back(samples)


def _reported(run: Run, batch: int) -> Batches:
    """What the run's own models are reported on: the test split, unless the run said otherwise."""
    return Batches(run.dataset, 0, batch, run.device, split=run.config.eval.split)


def _learn(
    run: Run,
    window: Window,
    teacher: torch.nn.Module,
    batches: Batches,
    config: ConsolidateConfig,
    say: Callable[[str], None],
) -> Course:
    together = Together(
        window,
        teacher,
        batches,
        run.assembly.family.targets,
        SoftTargets(config.weight, config.temperature),
        optimizer_of(window, _optim(run, config), config.steps),
    )
    try:
        return learn(
            together,
            lambda model: run.score(model, batches),
            steps=config.steps,
            every=config.every or max(1, config.steps // 20),
            patience=config.patience,
            say=say,
        )
    except ValueError as error:
        if config.batch != 1:
            raise
        raise ConfigError(
            f"batch=1: expected more, as window={config.window} has a batch norm that needs more "
            f"than one value ({error}). Set batch=2 or more."
        ) from error


def _optim(run: Run, config: ConsolidateConfig) -> OptimConfig:
    """The run's, without what it did about staleness: here nothing is late."""
    asked = {"name": config.optimizer, "lr": config.lr, "muon_lr": config.muon_lr}
    given = {key: value for key, value in asked.items() if value is not None}
    return replace(run.config.optim, correction="none", layer_decay=1.0, **given)  # type: ignore[arg-type]


def _refuse_worse(course: Course, learner: Name) -> None:
    if course.best_step:
        return
    best = course.looks[1]
    for look in course.looks[2:]:
        best = look if is_better(_scores(look), _scores(best)) else best
    raise ConsolidationError(
        f"{learner.title}: expected it to become better on validation than it was, "
        f"{shown(course.best)}; the best of {len(course.looks) - 1} looks was "
        f"{shown(_scores(best))} at step {best['step']:,}. Nothing was written. Take more "
        "steps, or set a smaller lr (and muon_lr)."
    )


def _scores(look: dict[str, Any]) -> Scores:
    return {key: value for key, value in look.items() if key not in ("step", "train_loss")}


def _stage(learner: Name, teacher: Name, course: Course) -> dict[str, Any]:
    return {
        "window": str(learner),
        "teacher": teacher.title,
        "steps": course.looks[-1]["step"],
        "best_step": course.best_step,
        "looks": course.looks,
    }


def _about(run: Run, dataset: Dataset, config: ConsolidateConfig, batch: int) -> str:
    what = "windows of text" if isinstance(run.config.data, SequenceConfig) else "samples"
    new = "the run has not trained on" if run.dataset.validation else "the run has trained on"
    return (
        f"{run.run_dir}: {config.steps:,} steps of {batch} samples; the best is found by "
        f"{dataset.validation:,} {what} that {new}"
    )


def _result(found: consolidated.Consolidated) -> str:
    manifest = found.manifest
    return (
        f"{found.name.title}: {shown(manifest['metrics'])} on {manifest['split']}, was "
        f"{shown(manifest['before'])}; the whole chain: {shown(manifest['teacher'])}"
    )
