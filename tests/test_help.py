"""What a person finds out on the command line itself: options, groups, and what Tab offers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mach.config import Config
from mach.config.describe import options
from mach.launcher.app import _options_first
from mach.launcher.compose import conf_dir
from spawn import MACH, TRAIN, run


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> str:
    done = run([*TRAIN, "--help"], tmp_path_factory.mktemp("help"), deadline_s=60)
    assert done.code == 0, done
    return done.stdout


def test_help_tells_every_option_with_its_default_and_what_it_means(told):
    flat = " ".join(told.split())
    for option in options(Config):
        assert re.search(rf"^  {option.key}=", told, re.MULTILINE), option
        assert option.text in flat, option
    assert "\n  delay=1\n" in told
    assert "\n  launch.pin=true\n" in told
    assert max(map(len, told.splitlines())) <= 100


def test_help_tells_every_choice_of_every_group(told):
    for path in conf_dir().rglob("*.yaml"):
        group = path.parent.relative_to(conf_dir())
        if path.parent != conf_dir():
            assert f"\n  {group}=\n" in told
            assert f"\n    {path.stem} " in told, path


def test_help_tells_the_options_of_another_choice(tmp_path):
    words = ["--help", "model=gpt", "data=text", "data.path=FILE"]
    done = run([*TRAIN, *words], tmp_path, deadline_s=60)
    assert "\n  model.heads=4\n" in done.stdout, done
    assert "\n  data.path=..  (must be given)\n" in done.stdout, done


@pytest.mark.parametrize(
    ("install", "line", "offered"),
    [
        ("mach -sc", "mach tr", {"train"}),
        ("mach train -sc", "mach train comp", {"components="}),
        ("mach train -sc", "mach train model=", {"model=gpt", "model=mlp"}),
        ("mach train -sc", "mach train launch.p", {"launch.pin=", "launch.parallel="}),
        ("mach train -sc", "mach plan delay=0 hydra/launcher=j", {"hydra/launcher=joblib"}),
    ],
)
def test_tab_completes_verbs_groups_and_options_in_bash(tmp_path, install, line, offered):
    script = f"""
        eval "$({install} install=bash)"
        complete -p mach >/dev/null || exit 3
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(line.split()) - 1}
        hydra_bash_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{Path(MACH[0]).parent}{os.pathsep}{os.environ['PATH']}"
    done = run(["bash", "-c", script], tmp_path, deadline_s=60, PATH=path)
    assert done.code == 0, done
    assert done.stderr == "", done
    found = set(done.stdout.split())
    assert offered <= found
    assert not [word for word in found if word.endswith("_schema")]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["components=2", "-m", "seed=0,1"], ["-m"]),
        (["components=2", "--cfg", "job", "steps=5"], ["--cfg", "job"]),
        (["a=1", "--config-dir", "mine", "b=1", "-m", "a=1"], ["--config-dir", "mine", "-m"]),
        (["--help", "model=gpt"], ["--help"]),
    ],
)
def test_options_may_stand_anywhere(words, first):
    """Hydra refused every word after the first that followed one, and listed them as unknown."""
    values = [word for word in words if "=" in word]
    assert _options_first(words) == [*first, *values]
