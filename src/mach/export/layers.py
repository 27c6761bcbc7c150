"""Which classes, beside those of torch.nn, may the description of a model name?"""

from __future__ import annotations

from torch import nn

from mach import inference
from mach.export import plain
from mach.models import defaults, gpt, mlp, resnet

LAYERS: dict[str, type[nn.Module]] = {
    name: kind
    for module in (mlp, gpt, resnet, defaults, inference, plain)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
}
"""By name; no two of them have the same."""
