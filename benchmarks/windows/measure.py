"""What is measured of one seed?

    chain                 trained once, with students; its exits and windows as it leaves them
    consolidated          every window of at most half the chain's FLOPs, a third of its steps more
    alone                 a network of the same cost, for as many samples as the chain saw
    alone, longer         and for those of the consolidation as well
    cascade               the consolidated window that is best on validation, then the chain

All are trained on the same samples; 2,000 are kept back from all of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sizes import nearest

from mach.choice.cascade import cascade
from mach.config import CascadeConfig, Config, ConsolidateConfig
from mach.config.window import Name
from mach.consolidation.consolidate import consolidate
from mach.data import open_dataset
from mach.launcher.app import launch
from mach.launcher.compose import compose
from mach.provenance import environment
from mach.trainer import Assembly, Oracle

VALIDATION, PART, SHARE = 2000, 3, 0.5
"""Samples kept back; of the chain's steps one in so many consolidates; most FLOPs of a window."""
STUDENT = 112
"""Width: the widest, in eighths of the chain's, that leaves a window of one body half its FLOPs."""

Row = dict[str, Any]


def seed_of(seed: int, steps: int, path: str, folder: Path) -> dict[str, Any]:
    """One seed, on one thread.

    Args:
        steps: of the chain, 64 samples each.
        path: the data.
        folder: for the run.
    """
    say = Console(stderr=True).print
    torch.set_num_threads(1)
    began_s, here = time.monotonic(), environment()
    common = [f"data.path={path}", f"data.validation={VALIDATION}", f"seed={seed}"]
    run_dir = folder / f"steps-{steps}-seed-{seed}"
    result = _chain([*common, f"steps={steps}"], run_dir)
    chain = result["chain"][-1]
    say(f"seed {seed}: chain {chain['accuracy']:.4f} after {time.monotonic() - began_s:.0f} s")
    models = [_model("exit", Name(0, row["exit"]), row, steps) for row in result["chain"]]
    windows = [(Name(row["first"], row["last"]), row) for row in result["windows"]]
    models += [_model("raw", name, row, steps) for name, row in windows]
    small = [(name, row) for name, row in windows if row["flops"] <= SHARE * chain["flops"]]
    more = steps // PART
    for name, _ in small:
        entry = consolidate(
            ConsolidateConfig(str(run_dir), str(name), steps=more, overwrite=True)
        ).manifest
        found = {**entry["metrics"], "flops": entry["flops"], "params": entry["params"]}
        models.append(_model("consolidated", name, found, steps + more, validated=_best(entry)))
        say(f"seed {seed}: consolidated {name} {found['accuracy']:.4f}")
    for kind, length in (("alone", steps), ("alone, longer", steps + more)):
        found = _alone([*common, f"steps={length}"], small[0][1]["flops"], small[0][0])
        models.append(_model(kind, None, found, length))
        say(f"seed {seed}: {kind} {found['accuracy']:.4f}")
    best = max((m for m in models if m["kind"] == "consolidated"), key=lambda m: m["validated"])
    return {
        "seed": seed,
        "steps": steps,
        "batch": 64,
        "validation": VALIDATION,
        "student": STUDENT,
        "models": models,
        "cascade": _cascade(run_dir, best["name"]),
        "seconds": round(time.monotonic() - began_s),
        "environment": here,
    }


def _model(kind: str, name: Name | None, row: Row, steps: int, **more: Any) -> Row:
    kept = {key: row[key] for key in ("accuracy", "flops", "params")}
    return {
        "kind": kind,
        "name": None if name is None else str(name),
        "steps": steps,
        **kept,
        **more,
    }


def _best(entry: Row) -> float:
    """What its best look was worth on the validation split."""
    stage = entry["stages"][-1]
    return float(next(k["accuracy"] for k in stage["looks"] if k["step"] == stage["best_step"]))


def _chain(words: list[str], run_dir: Path) -> Row:
    own = [
        f"student.width={STUDENT}",
        "launch=inprocess",
        "launch.threads=1",
        "report.wandb=off",
        "report.progress=false",
        f"out={run_dir}",
        "resume=auto",
    ]
    return dict(launch(compose(["experiment=mnist1d", *words, *own])))


def _alone(words: list[str], flops: int, window: Name) -> Row:
    """A network with a block for the student and one for each body, and the width whose FLOPs come
    nearest, by back-propagation in one component."""
    blocks = window.last - window.first + 2
    own = [
        "experiment=mnist1d",
        "components=1",
        "delay=0",
        "student=none",
        f"model.blocks={blocks}",
    ]
    config = compose([*own, "microbatch_size=64", "accumulate=1", "report.every=1000000", *words])
    dataset = open_dataset(config.data)

    def sized(width: int) -> Config:
        return replace(config, model=replace(config.model, width=width))  # type: ignore[call-arg]

    def cost(width: int) -> int:
        return Assembly(sized(width), dataset.task).costs().model(0, 0).flops

    return dict(Oracle(sized(nearest(flops, cost, 128)), dataset).run()["chain"][-1])


def _cascade(run_dir: Path, small: str) -> Row:
    found = cascade(CascadeConfig(str(run_dir), small=f"consolidated/{small}"))
    return {
        "small": small,
        "threshold": found.threshold,
        **{name: vars(point) for name, point in found.test.items()},
    }
