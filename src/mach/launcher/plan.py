"""What will a run cost? `mach plan` builds and measures it, prints, and writes nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from mach.config import Config

_EXAMPLE = "mach plan components=8 model=resnet model.layers=56 model.balance=time"


def main(arguments: list[str]) -> int:
    """Run `mach plan` on these arguments. Returns the exit code.

    Raises:
        MachError: the config is refused.
    """
    parser = argparse.ArgumentParser(
        prog="mach plan",
        description="Print what a run will cost before it is trained: where the network is cut, "
        "parameters, FLOPs and measured time of every component, its memory, what it sends, how "
        "stale its gradients and how busy it will be. Warns of a cut that is uneven. Writes no "
        "run folder.",
        epilog="Overrides are those of mach train: mach train --help lists the groups, mach train "
        f"--cfg job every key. An example: {_EXAMPLE}",
    )
    parser.add_argument("--config-dir", type=Path, help="a folder of YAML of your own")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for mach train")
    options = parser.parse_intermixed_args(arguments)
    # Imported here: `--help` must not wait for torch.
    from mach.launcher.compose import compose

    _plan(compose(options.overrides, options.config_dir))
    return 0


def _plan(config: Config) -> None:
    import torch
    from rich.console import Console

    from mach.launcher.preflight import prepare
    from mach.rank import available_cores, device_kind
    from mach.report.plan import show
    from mach.topology import lanes_of
    from mach.trainer.measure import threads_of_a_rank
    from mach.trainer.plan import plan

    places, balance = config.components, config.model.balance
    config, dataset = prepare(config, places)
    device = torch.device(device_kind(config))
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    lanes = lanes_of(len(available_cores()), places, config.launch.threads, gpus)
    if config.launch.name == "inprocess":
        lanes = 1
    with threads_of_a_rank(config, places):
        found = plan(config, dataset, device, lanes)
    show(found, balance, Console())
