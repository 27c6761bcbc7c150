"""How does a description in JSON, with weights in safetensors, become a module?

This file imports no mach: its source goes into every exported model.py. No code is read from the
files, and nothing is unpickled: a description can only name classes that are known already.

# B batch
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class Standardise(nn.Module):
    """Raw features as the network was trained on them. [B, ..] of any number type -> float32."""

    def __init__(self, mean: float, scale: float) -> None:
        """
        Args:
            mean: of the features it was trained on.
            scale: one over their standard deviation.
        """
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.float32) - self.mean) * self.scale


def load_folder(folder: Path, classes: Mapping[str, Any]) -> nn.Module:
    """The module of `model.json` with the weights of `model.safetensors`, in evaluation mode.

    Args:
        folder: has both.
        classes: what the description may name, beside torch.nn.

    Raises:
        ValueError: a file is damaged, or the weights are of another network: names the first tensor
            that differs.
    """
    path = folder / "model.json"
    try:
        description = json.loads(path.read_text())
        with torch.random.fork_rng(devices=[]):
            module = build(description["module"], classes)
            if not isinstance(module, nn.Module):
                raise ValueError(f"{module!r:.40}, which is no module")
            share(module, description["shared"])
    except Exception as error:  # a constructor may say anything of arguments it was not made for
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: expected the description of a model; got {said}") from error
    _load_weights(module, folder / "model.safetensors", description["shared"])
    return module.eval()


def build(node: Any, classes: Mapping[str, Any]) -> Any:
    """The module, or the argument of one, that a part of a description means."""
    if isinstance(node, list):
        return [build(one, classes) for one in node]
    if not isinstance(node, dict):
        return node
    if "tuple" in node:
        return tuple(build(one, classes) for one in node["tuple"])
    kind = _class(node["class"], classes)
    if "children" not in node:
        options = {name: build(value, classes) for name, value in node["options"].items()}
        return kind(*build(node["arguments"], classes), **options)
    module = kind()
    for name, child in node["children"].items():
        module.add_module(name, build(child, classes))
    return module


def share(module: nn.Module, shared: Mapping[str, str]) -> None:
    """Let parameters and buffers be the same one: each name with the name it is stored under."""
    for name, first in shared.items():
        owner, _, own = name.rpartition(".")
        other, _, its = first.rpartition(".")
        setattr(module.get_submodule(owner), own, getattr(module.get_submodule(other), its))


def _class(name: str, classes: Mapping[str, Any]) -> type[nn.Module]:
    package, _, own = name.rpartition(".")
    found = getattr(nn, own, None) if package == "nn" else classes.get(name)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    raise ValueError(f"{name}, which is no class of torch.nn and none that is known here")


def _load_weights(module: nn.Module, path: Path, shared: Mapping[str, str]) -> None:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a file of safetensors; got {error}") from error
    here = {name: t for name, t in module.state_dict().items() if name not in shared}
    for name in sorted(here.keys() | stored.keys()):
        expected = _told(here[name]) if name in here else "no such tensor"
        got = _told(stored[name]) if name in stored else "no such tensor"
        if expected != got:
            raise ValueError(
                f"{path}: {name}: expected {expected}, got {got}. The weights are of another "
                "network than model.json beside them describes."
            )
    module.load_state_dict(stored | {name: stored[first] for name, first in shared.items()})


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
