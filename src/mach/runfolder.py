"""Where does a run keep its files, and whose folder is it?

runs/<name>/
  config.yaml              resolved, reloadable
  component-<k>.jsonl      one line per logged step
  checkpoints/step-<n>/    see mach.checkpoint
  logs/                    what the ranks printed
  result.json              written once, at the end, atomically
  wandb/
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mach.config import Config
from mach.configfile import fingerprint, load, to_yaml
from mach.errors import ConfigError, RunFolderError

CONFIG, RESULT, CHECKPOINTS, LOGS = "config.yaml", "result.json", "checkpoints", "logs"


def check(run_dir: Path, config: Config) -> Config:
    """Whether this run may have the folder: a new one, or its own with `resume=auto`.

    Returns:
        The config; in its own folder, with the `resume` that the run began from.

    Raises:
        RunFolderError: it holds a run, and `resume=auto` was not asked for.
        ConfigError: `resume=auto`, and the run in the folder had another config.
    """
    if not holds_run(run_dir):
        return config
    if config.resume != "auto":
        raise RunFolderError(
            f"out={run_dir}: expected a folder without a run, got one that holds a run. "
            "Choose another `out`, or go on with the run there: resume=auto"
        )
    before = load(run_dir / CONFIG)
    _same_run(run_dir, before, config)
    return replace(config, resume=before.resume or config.resume)


def claim(run_dir: Path, config: Config) -> None:
    """Make the folder this run's own: write the config that its components will read.

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / CONFIG, to_yaml(config))
    except OSError as error:
        raise RunFolderError(
            f"out={run_dir}: expected a folder that can be written; {error.strerror or error}. "
            "Choose another `out`."
        ) from error


def holds_run(run_dir: Path) -> bool:
    """Whether a run lives in this folder."""
    try:
        return (run_dir / CONFIG).exists() or (run_dir / CHECKPOINTS).exists()
    except OSError:  # below a folder we may not read: `claim` says so
        return False


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The result of the run in this folder, or None while it has none."""
    path = run_dir / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers, and a crash, see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _same_run(run_dir: Path, before: Config, config: Config) -> None:
    if fingerprint(before) != fingerprint(config):
        raise ConfigError(
            f"resume=auto: the run in {run_dir} has another config: "
            f"{'; '.join(differences(before, config))}. Repeat its overrides, or begin a new run "
            f"from it: resume={run_dir} out=.."
        )


def differences(before: Config, now: Config) -> list[str]:
    """`key was a, is b` for every value that differs, `out` and `resume` aside."""
    old, new = _flat(asdict(before)), _flat(asdict(now))
    return [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in ("out", "resume")
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
