"""Who teaches whom, between the whole chain and the window that is to be made?

Teacher assistants (Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", 2019,
section 4): a small network learns better from one that is not much larger. Here a run has them
already, as windows:

    # K = 4, window=2..2, assistants=all
    # chain 0..3 -> window 1..3 -> window 2..3 -> window 2..2
"""

from __future__ import annotations

from itertools import pairwise

from mach.config.window import Name
from mach.errors import ConfigError
from mach.inference import Run


def way(run: Run, name: Name, assistants: list[tuple[int, int]] | None) -> list[Name]:
    """The models of the way, the whole chain first and the window last.

    Args:
        run: that has them.
        name: the window.
        assistants: first and last component of each; None: all there are, those aside that cost as
            much as the one before them, or as little as the window.

    Raises:
        ConfigError: there is no such assistant, or they do not become smaller, by FLOPs.
    """
    chain = Name(0, run.config.components - 1)
    if name == chain:
        raise ConfigError(
            f"window={name}: expected a part of the chain, which learns from the whole; got the "
            "whole. Train it longer with mach train, or choose another window: mach models "
            f"{run.run_dir}"
        )
    if assistants is None:
        return [chain, *_all_between(run, name), name]
    found = [chain, *(Name(*bounds) for bounds in assistants), name]
    if not assistants:
        return found
    for one in found:
        run.check(one.first, one.last)
    costs = run.assembly.costs()
    flops = [costs.model(one.first, one.last).flops for one in found]
    for k, (larger, smaller) in enumerate(pairwise(found)):
        if flops[k] <= flops[k + 1]:
            raise ConfigError(
                f"assistants: expected models from large to small; got {larger.title} "
                f"({flops[k]:,} FLOPs), then {smaller.title} ({flops[k + 1]:,}). Leave one out: "
                f"mach models {run.run_dir} lists them."
            )
    return found


def _all_between(run: Run, name: Name) -> list[Name]:
    top = run.config.components - 1
    higher = [Name(j, top) for j in range(1, name.first + 1)]
    shorter = [Name(name.first, i) for i in range(top - 1, name.last, -1)]
    costs = run.assembly.costs()
    last, least = costs.model(0, top).flops, costs.model(name.first, name.last).flops
    found = []
    for one in [*higher, *shorter]:
        flops = costs.model(one.first, one.last).flops
        if least < flops < last:
            found.append(one)
            last = flops
    if not found:
        raise ConfigError(
            f"assistants=all: expected a model between chain 0..{top} and {name.title}, by FLOPs; "
            f"{run.run_dir} has none. Set assistants=none."
        )
    return found
