"""What should somebody know who is given an exported model: its model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from mach.config import Config, ExportConfig
from mach.configfile import shown_yaml
from mach.secrets import secrets_of, without
from mach.signature import Signature

_FILES = {
    "safetensors": "`model.safetensors` (weights), `model.py` and `model.json` (how it is built)",
    "torch": "`model.pt2` (torch.export) and `model.json`",
    "onnx": "`model.onnx` and `model.json`",
}

_INT8 = "; weights of matrix products in int8"
_ONE_BY_ONE = """
Give it one sample at a time: samples that are computed together share the scale in which their
numbers are rounded, so that one of odd size changes the answers of the others."""

_USE = {
    "safetensors": """\
```python
from model import load  # in this folder, or with it on PYTHONPATH; needs torch and safetensors

model = load()
logits = model(x)
```""",
    "torch": """\
```python
import torch

model = torch.export.load("model.pt2").module()
logits = model(x)
```

torch unpickles parts of a .pt2: load one from people you trust alone.""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"x": x})  # x: a numpy array
```""",
}


def card(
    title: str,
    config: Config,
    asked: ExportConfig,
    signature: Signature,
    description: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    data: str,
    consolidated: Mapping[str, Any] | None = None,
) -> str:
    """The README of an exported folder, in Markdown.

    Args:
        title: what the model is.
        config: the run's.
        asked: what was asked for.
        description: the content of model.json.
        result: the run's result.json; None: it has not ended.
        data: what the data is, in one line.
        consolidated: how the window was trained together after the run; None: it was not.
    """
    check, found = description["check"], description["metrics"]
    lines = [
        f"# {title}",
        "",
        f"A {config.model.name} network of the run `{config.out}`, exported as "
        f"{_FILES[asked.format]}{_INT8 if asked.quantize else ''}.",
        "",
        "## Use",
        "",
        _USE[asked.format] + (_ONE_BY_ONE if asked.quantize else ""),
        "",
        f"It takes {takes(signature)}{', any number at once' * (asked.quantize is None)}, and "
        f"returns {gives(signature)}.",
        "",
        "## Data",
        "",
        f"{data}. The samples are given as the data has them: "
        + ("tokens." if signature.text else "the model standardises them itself."),
        "",
        "## Metrics",
        "",
        "| on the whole test split | value |",
        "| --- | --- |",
        *(f"| {_words(key)} | {value:.6g} |" for key, value in found.items()),
        "",
        f"Compared with the run's own model on {check['samples']:,} test samples: the largest "
        f"difference of a logit is {check['max_difference']:.3g} (the largest logit is "
        f"{check['max_logit']:.3g}), and {100 * check['same_answer']:.2f} % of the answers are the "
        "same.",
        "",
        "## Cost",
        "",
        "| | |",
        "| --- | --- |",
        f"| parameters | {description['params']:,} |",
        f"| FLOPs of a sample | {description['flops']:,} |",
        f"| bytes on disk | {description['bytes']:,} |",
        "",
        "## Training",
        "",
        *_training(result),
        *_consolidation(consolidated),
        "```yaml",
        shown_yaml(config).rstrip(),
        "```",
        "",
        "## Licence",
        "",
        asked.licence or "Nobody has said which licence the weights have (`licence=`).",
        "The source of the layers in `model.py`, where there is one, is mach's, under the MIT "
        "licence.",
        "",
    ]
    return without("\n".join(lines), secrets_of(os.environ))


def takes(signature: Signature) -> str:
    """What goes in, in words."""
    shape = ", ".join(map(str, signature.shape))
    if signature.text:
        fewer = " or fewer" if signature.shorter else ""
        return f"int64 [B, {shape}]: tokens below {signature.classes}, {shape}{fewer} of each text"
    return f"float32 [B, {shape}], {signature.low:g} to {signature.high:g} in training"


def gives(signature: Signature) -> str:
    """What comes out, in words."""
    classes = signature.classes
    if signature.per_position:
        return f"logits [B * T, {classes}]: of the token after each one"
    what = "the token after the text" if signature.text else "each class"
    return f"logits [B, {classes}]: of {what}"


def _training(result: Mapping[str, Any] | None) -> list[str]:
    made = f"Exported with mach {version('mach')} and torch {torch.__version__}."
    if result is None:
        return [f"The run had not ended. {made}", ""]
    commit = f" at commit `{result['git']}`" if result.get("git") else ""
    return [
        f"Trained on {result['samples']:,} samples in {result['steps']:,} steps, "
        f"{_took(result)}, by {result['components']} components "
        f"(schedule={result['schedule']}, delay={result['delay']}, seed={result['seed']}), with "
        f"torch {result['torch']}{commit}. {made}",
        "",
    ]


def _took(result: Mapping[str, Any]) -> str:
    """Of a run that was resumed the result knows the time since then alone."""
    took, first = f"{result['wall_s']:,.0f} s", result["first_step"]
    return f"the last {result['steps'] - first:,} of them in {took}" if first else took


def _consolidation(manifest: Mapping[str, Any] | None) -> list[str]:
    if manifest is None:
        return []
    stage = manifest["stages"][-1]
    key = next(key for key in manifest["metrics"] if key != "loss")
    return [
        f"Then student, bodies and head were trained together for {stage['best_step']:,} steps of "
        f"{manifest['batch']} samples, with labels and what {stage['teacher']} said of them: "
        f"{_words(key)} {manifest['before'][key]:.6g} before, {manifest['metrics'][key]:.6g} after "
        f"({manifest['split']} split).",
        "",
    ]


def _words(key: str) -> str:
    return key.replace("_", " ")
