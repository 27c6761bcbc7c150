"""The Hydra app behind `mach train`: one job is one launch of a run.

Because the job is the whole launch, Hydra's sweepers and launchers work as they are.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mach import runfolder, sweepfolder
from mach.config import Config
from mach.config.checks import check_named
from mach.configfile import from_mapping
from mach.errors import ConfigError, MachError
from mach.introduce import default_run_dir
from mach.launcher import sweep
from mach.launcher.compose import conf_dir, explain, register_schema
from mach.launcher.folder import earlier_result, with_folder
from mach.launcher.listener import address_of, listen
from mach.launcher.nursery import Nursery
from mach.launcher.sweep import JobFailedError

_sweeps: list[Path] = []
"""Folders of the sweeps that this process has begun: one, or none."""


class SweepCallback(Callback):
    """What Hydra calls before a sweep; `conf/train.yaml` names it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a sweep that cannot have its folder. (Hydra swallows any other exception.)"""
        try:
            _begin_sweep(config)
        except MachError as error:
            print(f"mach: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from None


def main() -> int:
    """Run `mach train` on this process's command line. Returns the exit code."""
    register_schema()
    sys.argv[1:] = _options_first(sys.argv[1:])
    _run_side_by_side(sys.argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise what it refuses, not to print it
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)
    ended_well = True
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"mach: {explain(error)}", file=sys.stderr)
        return ConfigError.exit_code
    except JobFailedError:  # it has been said
        ended_well = False
    except ValueError as error:
        # optuna's, of what it cannot search in, or when it looks for the best of no trials
        if "hydra/sweeper=optuna" in sys.argv and not any(map(sweepfolder.asked, _sweeps)):
            print(f"mach: hydra/sweeper=optuna: {error}", file=sys.stderr)
            return ConfigError.exit_code
        if not any(sweep.all_failed(sweep_dir) for sweep_dir in _sweeps):
            raise
        ended_well = False
    except BrokenProcessPool:  # joblib's, which then ends the others, too
        print("mach: the process of a job was killed, or had no memory left", file=sys.stderr)
        _write_off(1, "its process was ended, or that of a job beside it")
        ended_well = False
    except KeyboardInterrupt:
        print("mach: stopped by Ctrl-C", file=sys.stderr)
        _write_off(130, sweep.STOPPED)  # joblib kills its processes
        return 130
    for sweep_dir in _sweeps:
        try:
            ended_well &= sweep.close(sweep_dir)
        except MachError as error:
            print(f"mach: {error}", file=sys.stderr)
            return error.exit_code
    return 0 if ended_well else 1


def _write_off(exit_code: int, why: str) -> None:
    with suppress(MachError):  # jobs that had a table to write to have written their rows
        for sweep_dir in _sweeps:
            sweep.write_off(sweep_dir, exit_code, why)


def _options_first(words: list[str]) -> list[str]:
    """The same words, with options before key=value: Hydra takes none of these after an option that
    follows one."""
    known, rest = get_args_parser().parse_known_args(words)
    others = Counter([*known.overrides, *rest])
    options: list[str] = []
    values: list[str] = []
    for word in words:
        (values if others[word] > 0 else options).append(word)
        others[word] -= 1
    return [*options, *values]


def _run_side_by_side(words: list[str]) -> None:
    """Let joblib run the jobs of a sweep, where several are to run at once and nobody is named."""
    several = any(re.fullmatch(r"launch\.parallel=0*([2-9]|1\d+)\d*", word) for word in words)
    if several and not any(word.startswith("hydra/launcher=") for word in words):
        words.append("hydra/launcher=joblib")


_PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
    "optuna": "hydra_optuna_sweeper",
}
"""Packages behind what `conf/hydra/` has."""


def _check_plugins(choices: Mapping[str, str]) -> None:
    for group in ("hydra/launcher", "hydra/sweeper"):
        package = _PLUGINS.get(choices[group])
        if package and not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{package}")):
            raise ConfigError(
                f"{group}={choices[group]}: expected the package {package.replace('_', '-')}; it "
                "is not installed. pip install 'mach[sweep]'"
            )


def _begin_sweep(config: DictConfig) -> None:
    """
    Args:
        config: of the sweep; what is swept has no value in it.
    """
    check_named("out", config.out)
    overrides = config.hydra.overrides.task
    if config.out is None and any(word.startswith("out=") for word in overrides):
        raise ConfigError("out: expected one folder, for the whole sweep; got several")
    resume = config.resume == "auto"
    if resume and config.out is None:
        raise ConfigError(
            "resume=auto: expected the folder of the sweep that goes on; got none. Say out=FOLDER"
        )
    choices = config.hydra.runtime.choices
    _check_plugins(choices)
    if config.launch.parallel > 1 and choices["hydra/launcher"] == "basic":
        raise ConfigError(
            f"launch.parallel={config.launch.parallel}: expected a launcher that runs jobs side by "
            "side; got hydra/launcher=basic. Say hydra/launcher=joblib"
        )
    sweep_dir = Path(config.hydra.sweep.dir)
    sweep.begin(sweep_dir, resume)
    _sweeps.append(sweep_dir)


def _job(composed: DictConfig) -> float | None:
    """Launch one run. Returns its objective for sweepers that search: the loss of the top exit."""

    def config() -> Config:
        values = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(values, dict)
        return from_mapping({str(key): value for key, value in values.items()})

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        job = sweep.Job(
            sweep_dir=Path(hydra.sweep.dir),
            number=hydra.job.num,
            overrides=list(hydra.overrides.task),
            resume=composed.resume == "auto",
            shared=hydra.runtime.choices["hydra/launcher"] != "submitit_slurm",
        )
        return sweep.run_job(job, config, launch)
    try:
        launch(with_folder(config(), default_run_dir(datetime.now())))
    except MachError as error:
        print(f"mach: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    return None


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
    assert config.out is not None
    run_dir = Path(config.out)
    result = earlier_result(config, run_dir)
    if result is None:
        train = _in_this_process if config.launch.name == "inprocess" else _in_processes
        result = train(config, run_dir)
    from mach.report.console import result_table

    console = Console()
    console.print(result_table(result))
    console.print(f"Result: {run_dir / runfolder.RESULT}", soft_wrap=True)
    return result


# torch is imported below, and not before it must: `--help`, `--cfg job` and tab completion do not
# wait for it, and a nursery imports it at the same time.


def _in_this_process(config: Config, run_dir: Path) -> Mapping[str, Any]:
    from mach.launcher.inprocess import run_inprocess
    from mach.launcher.preflight import preflight

    config = preflight(config, run_dir, config.components)
    with runfolder.hold(run_dir):
        return run_inprocess(config, run_dir)


def _in_processes(config: Config, run_dir: Path) -> Mapping[str, Any]:
    components = range(config.components)
    groups = [[k] for k in components] if config.supervised else [list(components)]
    with listen(config.launch.bind if config.supervised else None) as listener:
        address = address_of(listener)
        with Nursery(run_dir, address, groups, config.launch.device) as nursery:
            from mach.launcher import store
            from mach.launcher.failure import no_result
            from mach.launcher.gang import run_gang
            from mach.launcher.preflight import preflight
            from mach.launcher.supervised import run_supervised

            config = preflight(config, run_dir, config.components)
            with runfolder.hold(run_dir) as lock:
                hosted = store.host(listener, address)  # to the end of this block
                if config.supervised:
                    roster = store.found(hosted, address, config)
                    run_supervised(config, run_dir, nursery, roster, lock)
                else:
                    run_gang(config, run_dir, nursery, lock)
            result = runfolder.finished(run_dir)
            if result is None:
                raise no_result(run_dir)
            return result
