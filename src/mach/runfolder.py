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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mach.config import Config, fingerprint, load, to_yaml
from mach.errors import ConfigError, RunFolderError

CONFIG, RESULT, CHECKPOINTS, LOGS = "config.yaml", "result.json", "checkpoints", "logs"


def claim(run_dir: Path, config: Config) -> None:
    """Make the folder this run's own and write its config.

    A folder that holds a run is only taken with `resume=auto`, and only by the same run.

    Raises:
        RunFolderError: it cannot be written, or holds another run.
        ConfigError: `resume=auto`, and the run in the folder had another config.
    """
    if holds_run(run_dir):
        if config.resume != "auto":
            raise RunFolderError(
                f"out={run_dir}: expected a folder without a run, got one with {CONFIG}. "
                "Choose another `out`, or go on with the run there: resume=auto"
            )
        _same_run(run_dir, config)
        return
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
    return (run_dir / CONFIG).exists()


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


def _same_run(run_dir: Path, config: Config) -> None:
    before = load(run_dir / CONFIG)
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
