"""The Hydra app behind `mach train`: one job is one launch of a run.

Because the job is the whole launch, Hydra's sweepers and launchers work as they are.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mach.config import Config
from mach.configfile import from_mapping
from mach.errors import ConfigError, MachError
from mach.introduce import default_run_dir
from mach.launcher.compose import conf_dir, explain, register_schema


class JobFailedError(Exception):
    """A job of a sweep that failed; it has been reported. Hydra goes on with the next."""


def main() -> int:
    """Run `mach train` on this process's command line. Returns the exit code."""
    register_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise what it refuses, not to print it
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"mach: {explain(error)}", file=sys.stderr)
        return ConfigError.exit_code
    except JobFailedError as failed:
        print(f"mach: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mach: stopped by Ctrl-C", file=sys.stderr)
        return 130
    return 0


def _job(composed: DictConfig) -> float | None:
    """Launch one run. Returns its objective for sweepers that search: the loss of the top exit."""
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        values = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(values, dict)
        config = from_mapping({str(key): value for key, value in values.items()})
        result = launch(_with_folder(config, sweeping))
    except MachError as error:
        print(f"mach: {error}", file=sys.stderr, flush=True)
        if sweeping:
            overrides = " ".join(HydraConfig.get().overrides.task)
            raise JobFailedError(f"job {HydraConfig.get().job.num} failed: {overrides}") from None
        raise SystemExit(error.exit_code) from None
    loss = result["chain"][-1]["loss"]
    return math.inf if loss is None else float(loss)  # none: the chain lacks a component for good


def _with_folder(config: Config, sweeping: bool) -> Config:
    if config.out is not None:
        return config
    if sweeping:
        sweep = HydraConfig.get().sweep
        return replace(config, out=str(Path(sweep.dir) / sweep.subdir))
    return replace(config, out=str(default_run_dir(datetime.now())))


def launch(config: Config) -> Mapping[str, Any]:
    """Check a run, claim its folder, train it in processes, print and return its result.

    Raises:
        MachError: the run was refused, or a component fell; its text says all.
    """
    if config.launch.name == "slurm":
        raise ConfigError(
            "launch=slurm: expected ranks that somebody else's torchrun starts; got mach train, "
            "which starts its own. See launch/README.md, or choose launch=auto."
        )
    # Imported here: `--help`, `--cfg job` and tab completion must not wait for torch.
    from mach import runfolder
    from mach.launcher.gang import run_gang
    from mach.launcher.preflight import preflight
    from mach.launcher.supervised import run_supervised
    from mach.report.console import result_table

    assert config.out is not None
    run_dir = Path(config.out)
    runfolder.check_free(run_dir)
    goes_on = config.resume == "auto"
    config = preflight(config, run_dir, config.components)
    result = runfolder.finished(run_dir) if goes_on else None
    if result is None:
        with runfolder.hold(run_dir):
            result = (run_supervised if config.supervised else run_gang)(config, run_dir)
    console = Console()
    console.print(result_table(result))
    console.print(f"Result: {run_dir / runfolder.RESULT}", soft_wrap=True)
    return result
