"""The code reads as one hand wrote it: ruff, mypy and shellcheck find nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spawn import run

ROOT = Path(__file__).parents[1]
MOST_S = 400.0
"""mypy reads torch and all else that is imported: a minute on a quiet machine, the first time."""
MYPY = ["mypy", "--cache-dir", str(ROOT / ".mypy_cache")]


@pytest.mark.timeout(MOST_S + 10)
@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", str(ROOT)],
        ["ruff", "format", "--check", str(ROOT)],
        [*MYPY, "--config-file", str(ROOT / "pyproject.toml"), str(ROOT / "src" / "mach")],
    ],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_the_code_is_clean(tmp_path, command):
    cache = {"RUFF_CACHE_DIR": str(tmp_path), "MYPYPATH": str(ROOT / "src")}
    done = run([sys.executable, "-m", *command], tmp_path, deadline_s=MOST_S, **cache)
    assert done.code == 0, done


def test_the_scripts_are_clean(tmp_path):
    scripts = [*(ROOT / "launch").glob("*.s*"), ROOT / ".ci" / "run"]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = run(
        [str(shellcheck), "-x", "-P", str(ROOT), *map(str, scripts)], tmp_path, deadline_s=30
    )
    assert done.code == 0, done
