"""The README's commands and its Python run as they are printed, on small sizes."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runs import SMALL
from spawn import TORCHRUN, TRAIN, assert_none_left, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line
    for language, text in BLOCKS
    for line in text.splitlines()
    if not language and line.startswith(("mach train", "torchrun"))
]
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))

SMALLER = [word for word in SMALL if not word.startswith("components=")]


def a_data_file(folder):
    """What the README calls mnist.npz, a hundredth of it."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 600), ("test", 100)):
        arrays[f"y_{split}"] = np.arange(number) % 10
        arrays[f"x_{split}"] = random.integers(0, 256, (number, 28, 28)).astype("u1")
    np.savez(folder / "mnist.npz", **arrays)
    shutil.copy(folder / "mnist.npz", folder / "mnist1d.npz")
    for name in ("x_train", "y_train"):  # the experiment takes 10,000 of them
        arrays[name] = np.resize(arrays[name], (10_000, *arrays[name].shape[1:]))
    np.savez(folder / "fashion_mnist.npz", **arrays)
    (folder / "FILE").write_bytes(bytes(range(256)) * 40)
    (folder / "mine.py").write_text(next(code for code in PYTHON if "def blocks" in code))


def test_the_readme_has_what_these_tests_run():
    assert len(PYTHON) == 3
    assert len(COMMANDS) == 6
    for script in ("launch/demo.sh", "launch/test.sh"):
        assert f"bash {script}" in README
        assert (ROOT / script).stat().st_mode & 0o111


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command, tmp_path):
    a_data_file(tmp_path)
    program, *words = shlex.split(command)
    if program == "torchrun":
        words = [*TORCHRUN, *words]
    else:
        assert words.pop(0) == "train"
        # A sweep's lists are cut to their first two values; each value is a launch of its own.
        words = [*TRAIN, *(re.sub(r"=([^,]+,[^,]+),.*", r"=\1", word) for word in words)]
        if "-m" in words:
            words = [word.replace("=2,4", "=1,2").replace("=0,1", "=0") for word in words]
    own = "model=custom" in words  # its width is an argument of the factory
    smaller = [word for word in SMALLER if not (own and word.startswith("model."))]
    done = run([*words, *smaller, "steps=3"], tmp_path, deadline_s=400)
    assert done.code == 0, done
    assert_none_left(tmp_path)
    assert list(tmp_path.glob("runs/**/result.json"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("code", PYTHON, ids=["own", "component", "oracle"])
def test_the_python_of_the_readme_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(660)
def test_the_demo_prints_the_table_of_its_result(tmp_path):
    command = ["bash", str(ROOT / "launch" / "demo.sh"), *SMALL, f"out={tmp_path / 'run'}"]
    done = run(command, tmp_path, deadline_s=600)  # it installs, where launch/test.sh has not
    assert done.code == 0, done
    assert "chain 0..1 (top exit)" in done.stdout
    assert "window 1..1" in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_runs_by_the_command_it_opens_with(path, tmp_path):
    a_data_file(tmp_path)
    command = path.read_text().splitlines()[1].removeprefix("# ")
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("mach", "train")
    small = [*SMALL, "steps=2", "microbatch_size=8", f"out={tmp_path / 'run'}"]
    done = run([*TRAIN, *words, *small], tmp_path)
    assert done.code == 0, done
