"""What is measured of one seed?

    chain                 trained once, with students; its exits and windows as it leaves them
    consolidated          every window of at most half the chain's FLOPs, a third of its steps more
    alone                 a network of the same cost, for as many samples as the chain saw
    alone, longer         and for those of the consolidation as well
    cascade               the consolidated window that is best on validation, then the chain

All are trained on the same samples; some are kept back from all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sizes import nearest
from summary import Row, chosen
from tasks import TASKS, Task

from mach.choice.cascade import cascade
from mach.config import CascadeConfig, Config, ConsolidateConfig
from mach.config.window import Name
from mach.consolidation.consolidate import consolidate
from mach.data import Batches, open_dataset
from mach.errors import ConsolidationError
from mach.inference import Run
from mach.launcher.app import launch
from mach.launcher.compose import compose
from mach.provenance import environment
from mach.trainer import Assembly, Oracle

PART, SHARE, EIGHTHS = 3, 0.5, 8
"""Of the chain's steps one in so many consolidates; most FLOPs of a window; a student's width is so
many eighths of the chain's."""

Compose = Callable[..., Config]
"""The chain's config, with other words of `mach train`."""


def experiment(name: str, path: str, *words: str) -> Config:
    """A task's own, with other words of `mach train`."""
    task = TASKS[name]
    return compose([f"experiment={task.experiment}", f"data.path={path}", *task.words, *words])


def seed_of(name: str, seed: int, steps: int, path: str, folder: Path) -> Row:
    """One seed, on one thread.

    Args:
        name: the task's.
        steps: of the chain.
        path: the data.
        folder: for the run.
    """
    torch.set_num_threads(1)
    began_s, here, task = time.monotonic(), environment(), TASKS[name]
    own = (f"seed={seed}", f"data.validation={task.validation}", "report.wandb=off")
    compose_with = partial(experiment, name, path, *own, "report.progress=false")
    width, run_dir = student_width(compose_with), folder / f"{name}-steps-{steps}-seed-{seed}"
    words = (f"steps={steps}", f"student.width={width}", f"out={run_dir}", "resume=auto")
    chain = compose_with(*words, "launch=inprocess", "launch.threads=1")
    result, metric = launch(chain), open_dataset(chain.data).task.metric
    most = SHARE * result["chain"][-1]["flops"]
    small = [row for row in result["windows"] if row["flops"] <= most]
    more = steps // PART
    models = _of_the_run(result, metric, steps)
    models += [_consolidated(run_dir, _window(row), metric, steps, more, task) for row in small]
    blocks, flops = small[0]["last"] - small[0]["first"] + 2, small[0]["flops"]
    for kind, length in (("alone", steps), ("alone, longer", steps + more)):
        found = _alone(compose_with, length, flops, blocks, task)
        models.append(_model(kind, None, metric, found, length))
    Console(stderr=True).print(f"{task.about}, seed {seed}: has ended", highlight=False)
    row = {
        "task": name,
        "seed": seed,
        "steps": steps,
        "batch": chain.microbatch_size * chain.accumulate,
        "metric": metric,
        "validation": task.validation,
        "student": width,
        "words": list(task.words),
        "consolidation": task.consolidation,
        "models": models,
    }
    row["cascade"] = _cascade(run_dir, _best(row)) if task.cascades else None
    return {**row, "seconds": round(time.monotonic() - began_s), "environment": here}


def _of_the_run(result: Mapping[str, Any], metric: str, steps: int) -> list[Row]:
    """Exits and windows as the run leaves them."""
    exits = [_model("exit", Name(0, row["exit"]), metric, row, steps) for row in result["chain"]]
    windows = [_model("raw", _window(row), metric, row, steps) for row in result["windows"]]
    return exits + windows


def _consolidated(
    run_dir: Path, window: Name, metric: str, steps: int, more: int, task: Task
) -> Row:
    words = {"steps": more, "overwrite": True, **task.consolidation}
    asked = ConsolidateConfig(str(run_dir), str(window), **words)
    try:
        entry = consolidate(asked).manifest
    except ConsolidationError:
        return _as_it_was(run_dir, window, metric, steps)
    stage = entry["stages"][-1]
    best = next(look for look in stage["looks"] if look["step"] == stage["best_step"])
    found = {**entry["metrics"], "flops": entry["flops"], "params": entry["params"]}
    model = _model("consolidated", window, metric, found, steps + more)
    return {**model, "validated": float(best[metric])}


def _as_it_was(run_dir: Path, window: Name, metric: str, steps: int) -> Row:
    """A window that did not become better on validation: nothing was written."""
    run = Run(run_dir)
    model, cost = run.model(window), run.assembly.costs().model(window.first, window.last)
    batch = run.config.microbatch_size * run.config.accumulate
    scores = {
        split: run.score(model, Batches(run.dataset, 0, batch, run.device, split=split))
        for split in ("validation", "test")
    }
    found = {**scores["test"], "flops": cost.flops, "params": cost.params}
    row = _model("consolidated", window, metric, found, steps)
    return {**row, "validated": scores["validation"][metric]}


def _window(row: Row) -> Name:
    return Name(row["first"], row["last"])


def _model(kind: str, name: Name | None, metric: str, found: Row, steps: int) -> Row:
    return {
        "kind": kind,
        "name": None if name is None else str(name),
        "steps": steps,
        "value": found[metric],
        "flops": found["flops"],
        "params": found["params"],
    }


def student_width(compose_with: Compose) -> int:
    """The widest, in eighths of the chain's, with which a window of one body has its share of
    FLOPs at most."""
    chain = compose_with()
    task, whole, top = open_dataset(chain.data).task, _width(chain), chain.components - 1
    for width in (whole * eighths // EIGHTHS for eighths in range(EIGHTHS, 0, -1)):
        costs = Assembly(compose_with(f"student.width={width}"), task).costs()
        if costs.model(top, top).flops <= SHARE * costs.model(0, top).flops:
            return width
    raise ValueError(f"a window of one body has more than {SHARE} of the chain's FLOPs")


def _width(config: Config) -> int:
    return int(config.model.width)  # type: ignore[attr-defined]


def _alone(compose_with: Compose, steps: int, flops: int, blocks: int, task: Task) -> Row:
    """A network of so many blocks and the width whose FLOPs come nearest, by back-propagation in
    one component.

    Args:
        steps: it is trained for, with as many samples each as the chain's have.
        flops: a window's.
        blocks: one for the window's student and one for each of its bodies.
    """
    chain = compose_with()
    config = compose_with(
        "method=backprop",
        "components=1",
        f"microbatch_size={chain.microbatch_size * chain.accumulate}",
        "accumulate=1",
        f"model.blocks={blocks}",
        f"steps={steps}",
        f"report.every={steps}",
    )
    dataset = open_dataset(config.data)

    def sized(width: int) -> Config:
        model = replace(config.model, width=width * task.step)  # type: ignore[call-arg]
        return replace(config, model=model)

    def cost(width: int) -> int:
        return Assembly(sized(width), dataset.task).costs().model(0, 0).flops

    found = nearest(flops, cost, _width(chain) // task.step)
    return dict(Oracle(sized(found), dataset).run()["chain"][-1])


def _best(row: Row) -> str:
    """How `mach` names the window that is best on validation."""
    name = chosen([row])
    (found,) = (m for m in row["models"] if m["kind"] == "consolidated" and m["name"] == name)
    return name if found["steps"] == row["steps"] else f"consolidated/{name}"


def _cascade(run_dir: Path, small: str) -> Row:
    found = cascade(CascadeConfig(str(run_dir), small=small))
    return {
        "small": small,
        "threshold": found.threshold,
        **{name: vars(point) for name, point in found.test.items()},
    }
