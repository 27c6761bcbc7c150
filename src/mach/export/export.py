"""How does a window of a run become a folder that needs no mach?

build, describe, write, read again, compare, measure, then let it appear: a folder that is there has
passed its check.
"""

from __future__ import annotations

import json
import math
import runpy
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from mach import runfolder
from mach.checkpoint import consolidated
from mach.config import ExportConfig
from mach.config.window import Name
from mach.errors import ExportError
from mach.export import formats
from mach.export.card import card, gives, takes
from mach.export.check import Agreement, agreement, metrics
from mach.export.describe import describe, noting
from mach.export.folder import (
    CARD,
    DESCRIPTION,
    FILES,
    FORMAT,
    SOURCE,
    digest_of,
    signed,
    writing,
)
from mach.export.plain import Standardise, load_folder
from mach.export.standalone import standalone
from mach.inference import Run, open_model
from mach.signature import Signature, signature_of

EXPORTS = "exports"


def export(config: ExportConfig) -> Path:
    """Write the model that was asked for.

    Returns:
        The folder.

    Raises:
        MachError: the run has no such model, the format cannot hold it, or what was written answers
            otherwise than the run's own model.
    """
    run, name = open_model(config.run, config.window)
    first, last = name.first, name.last
    window = run.model(name)
    entry = consolidated.find(run.run_dir, name) if name.consolidated else None
    model, signature = from_raw(window, run), signature_of(run)
    out = Path(config.out) if config.out else run.run_dir / EXPORTS / _folder(config, name)
    with writing(out, replace=config.overwrite or config.out is None) as folder:
        description: dict[str, Any] = {
            "format": FORMAT,
            "kind": config.format,
            "mach": version("mach"),
            "title": name.title,
            "first": first,
            "last": last,
            "consolidated": name.consolidated,
            "quantize": config.quantize,
            "signature": signature.to_json(),
        }
        _write(folder, config, run, model, description, signature)
        exported = _read(folder, config)
        found = agreement(run, window, exported, config.samples)
        _refuse_disagreement(config, found)
        description["check"] = found.to_json()
        description["metrics"] = metrics(run, exported)
        if config.quantize:
            _refuse_loss(config, metrics(run, model), description["metrics"])
        cost = run.assembly.costs().model(first, last)
        file = folder / FILES[config.format]
        description |= {**vars(cost), "bytes": file.stat().st_size}
        description["files"] = {file.name: digest_of(file)}
        text = card(
            f"{name.title} of {run.run_dir.resolve().name}",
            run.config,
            config,
            signature,
            description,
            runfolder.finished(run.run_dir),
            str(run.dataset),
            None if entry is None else entry.manifest,
        )
        (folder / CARD).write_text(text)
        # Last: what has no description is no exported model.
        (folder / DESCRIPTION).write_text(json.dumps(signed(description), indent=1))
    return out


def from_raw(window: nn.Module, run: Run) -> nn.Module:
    """A window that takes samples as the data has them, and standardises features itself."""
    if not run.task.sample.dtype.is_floating_point:  # then the data is not even needed
        return window
    dataset = run.dataset
    standardise = Standardise(dataset.mean, 1.0 / dataset.std)
    return nn.Sequential(OrderedDict(standardise=standardise, window=window)).eval()


def _folder(config: ExportConfig, name: Name) -> str:
    parts = [f"{name.first}..{name.last}", "consolidated" * name.consolidated, config.format]
    return "-".join(part for part in [*parts, config.quantize] if part)


def _write(
    folder: Path,
    config: ExportConfig,
    run: Run,
    model: nn.Module,
    description: dict[str, Any],
    signature: Signature,
) -> None:
    path = folder / FILES[config.format]
    if config.format == "torch":
        formats.write_program(path, model, signature)
    elif config.format == "onnx":
        formats.write_onnx(path, model, signature, int8=config.quantize == "int8")
    else:
        node, kinds = _described(run, description["first"], description["last"])
        description |= {"module": node, "shared": formats.write_weights(path, model)}
        ours = sorted(
            (k for k in kinds if k.__module__.startswith("mach.")), key=lambda k: k.__name__
        )
        usage = f"{takes(signature)}; {gives(signature)}"
        text = standalone(description["title"], usage, [*ours, load_folder])
        (folder / SOURCE).write_text(text)
        # The description is read by the check already.
        (folder / DESCRIPTION).write_text(json.dumps(description))


def _described(run: Run, first: int, last: int) -> tuple[dict[str, Any], set[type[nn.Module]]]:
    """The model as JSON, and the classes it is made of."""
    kinds = {type(part) for part in run.untrained(first, last).modules()} | {Standardise}
    with noting(kinds) as made:
        model = from_raw(run.untrained(first, last), run)
    return describe(model, made), {type(part) for part in model.modules()}


def _read(folder: Path, config: ExportConfig) -> nn.Module:
    kind = config.format
    if kind == "torch":
        return formats.read_program(folder / FILES[kind])
    if kind == "onnx":
        return formats.OnnxModel(folder / FILES[kind], int8=config.quantize == "int8")
    try:  # as somebody without mach does it
        model: nn.Module = runpy.run_path(str(folder / SOURCE))["load"]()
    except ValueError as error:
        raise ExportError(
            f"format={kind}: expected to read again what was written; {error}. Nothing was "
            "written. Set format=torch or format=onnx."
        ) from error
    return model


def _refuse_disagreement(config: ExportConfig, found: Agreement) -> None:
    if not math.isfinite(found.max_difference):
        raise ExportError(
            f"format={config.format}: expected finite logits on {found.samples:,} test samples, of "
            "the run's own model and of what was written; got others. Nothing was written. Look "
            "for the step at which the run diverged, or choose another format."
        )
    if config.quantize or found.relative <= config.tolerance:
        return
    raise ExportError(
        f"format={config.format}: expected the logits of the run's own model on {found.samples:,} "
        f"test samples, to {config.tolerance:g} of the largest ({found.max_logit:.4g}); got a "
        f"difference of {found.max_difference:.3g}. Nothing was written. Choose another format, or "
        "a larger tolerance if that will do."
    )


def _refuse_loss(config: ExportConfig, before: dict[str, float], after: dict[str, float]) -> None:
    key = next(key for key in after if key != "loss")
    sign = 1 if key == "accuracy" else -1
    lost = sign * (before[key] - after[key]) / max(before[key], 1e-30)
    if lost <= config.max_drop:
        return
    raise ExportError(
        f"quantize={config.quantize}: expected {key} to lose at most {100 * config.max_drop:g} "
        f"%; got {after[key]:.4g} after {before[key]:.4g}. Nothing was written. Leave quantize "
        "out, or set max_drop if that will do."
    )
