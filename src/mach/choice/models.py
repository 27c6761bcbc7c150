"""Which models does a run have, how good is each, and what does it cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from mach import runfolder
from mach.checkpoint import consolidated
from mach.checkpoint.consolidated import Consolidated
from mach.choice.frontier import Candidate
from mach.choice.latency import latencies
from mach.config.window import Name
from mach.data import Batches
from mach.errors import CheckpointError
from mach.export.export import from_raw
from mach.inference import Run
from mach.signature import signature_of
from mach.trainer.evaluate import evaluate

_METRICS = ("accuracy", "bits_per_byte", "bits_per_token")


def candidates(run: Run, *, latency: bool) -> list[Candidate]:
    """Exits of the chain, lowest first, then the windows, then what was consolidated.

    Quality and cost are those of the run's result; before it has one, they are measured on what is
    saved so far. Those of a consolidated window were measured when it was made, on the same split.

    Args:
        latency: measure it.

    Raises:
        MachError: nothing can be read of the run.
    """
    rows = [*_rows(run), *map(_row, consolidated.entries(run.run_dir))]
    names = [Name(row["first"], row["last"], row.get("consolidated", False)) for row in rows]
    models = [run.model(name) for name in names]
    found = [_candidate(row, model) for row, model in zip(rows, models, strict=True)]
    if not latency:
        return found
    whole = [from_raw(model, run) for model in models]
    measured = latencies(whole, signature_of(run))
    return [replace(c, latencies=its) for c, its in zip(found, measured, strict=True)]


def _rows(run: Run) -> list[dict[str, Any]]:
    result = runfolder.finished(run.run_dir) or _evaluated(run)
    chain = [{"first": 0, "last": row["exit"], **row} for row in result["chain"]]
    # Of a component that is gone nothing can be loaded.
    return [row for row in [*chain, *result["windows"]] if row.get("loss") is not None]


def _row(entry: Consolidated) -> dict[str, Any]:
    keys = ("first", "last", "params", "flops")
    own = {key: entry.manifest[key] for key in keys}
    return {**own, **entry.manifest["metrics"], "consolidated": True}


def _evaluated(run: Run) -> dict[str, Any]:
    """What result.json will have, of the models as they are saved now."""
    components = run.components()
    if not any(components):
        raise CheckpointError(
            f"run={run.run_dir}: expected a checkpoint; the run has saved none yet. Wait for its "
            "end, or train with checkpoint.every=STEPS."
        )
    cpu = torch.device("cpu")
    config = run.config
    size, split = config.microbatch_size, config.eval.split
    batches = Batches(run.dataset, config.seed, size, cpu, split=split)
    windows = config.student.enabled
    scores = evaluate(components, batches, batches.task, cpu, windows=windows)
    costs = run.assembly.costs()
    return {
        "chain": [
            {"exit": k, **of_k[0], **vars(costs.model(0, k))}
            for k, of_k in enumerate(scores)
            if 0 in of_k
        ],
        "windows": [
            {"first": j, "last": i, **scores[i][j], **vars(costs.model(j, i))}
            for j in range(1, len(scores))
            for i in range(j, len(scores))
            if j in scores[i]
        ],
    }


def _candidate(row: Mapping[str, Any], model: nn.Module) -> Candidate:
    metric = next(key for key in _METRICS if key in row)
    return Candidate(
        first=row["first"],
        last=row["last"],
        metric=metric,
        value=row[metric],
        loss=row["loss"],
        params=row["params"],
        flops=row["flops"],
        consolidated=row.get("consolidated", False),
        bytes=len(save({name: t.contiguous() for name, t in _stored(model).items()})),
    )


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """Each tensor once, as an export writes it."""
    own = {id(t): (name, t) for name, t in model.state_dict(keep_vars=True).items()}
    return {name: tensor.detach() for name, tensor in own.values()}
