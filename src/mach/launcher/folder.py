"""Which folder does a run get, and has it come to its end there before?

The same questions whether `mach train` starts the processes or somebody else's torchrun does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mach import runfolder, sweepfolder
from mach.config import Config
from mach.errors import ConfigError


def with_folder(config: Config, default: Path) -> Config:
    """The config with a run folder.

    Args:
        default: the folder of a run that names none.

    Raises:
        ConfigError: the run is to go on, and names none.
    """
    if config.out is not None:
        return config
    if config.resume == "auto":
        raise ConfigError(
            "resume=auto: expected the folder of the run that goes on; got none. Say out=FOLDER"
        )
    return replace(config, out=str(default))


def earlier_result(config: Config, run_dir: Path) -> Mapping[str, Any] | None:
    """What the run in this folder has found, where `resume=auto` meets one that has ended.

    None: there is something to train. Touches nothing.

    Raises:
        MachError: the folder is a sweep's, somebody runs in it now, or the run that has ended there
            is another one.
    """
    sweepfolder.check_none(run_dir)
    runfolder.check_free(run_dir)
    result = runfolder.finished(run_dir) if config.resume == "auto" else None
    if result is not None:
        # Imported here: it waits for torch, and most runs need not do so yet.
        from mach.launcher.preflight import check_folder

        check_folder(config, run_dir)
    return result
