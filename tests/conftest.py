"""What all tests share: one compute thread, one finished run, and no process left at the end."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from runs import LONG, SMALL
from spawn import TRAIN, Done, assert_none_left, processes_of, run
from texts import write_text


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On CPU the numbers depend on how many threads compute them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_process_left(tmp_path_factory):
    """Fails where a run of these tests outlives them."""
    yield
    folder = tmp_path_factory.getbasetemp()
    _, alive = psutil.wait_procs(processes_of(folder), timeout=5)
    commands = [process.cmdline() for process in alive]
    for process in alive:
        process.kill()
    assert not commands, f"ranks left behind: {commands}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, Done]:
    """A run of `mach train` to its end: its folder and what it printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    done = run([*TRAIN, *LONG, f"out={folder / 'run'}"], folder)
    assert done.code == 0, done
    assert_none_left(folder)
    return folder / "run", done


@pytest.fixture(scope="session")
def language_run(tmp_path_factory) -> tuple[Path, Done]:
    """The same of a language model: two components of one block, each late by one microbatch."""
    folder = tmp_path_factory.mktemp("language")
    text = ["data=text", f"data.path={write_text(folder)}", "data.context=16"]
    small = [*SMALL, "model=gpt", "microbatch_size=4", "data.test_samples=8", "accumulate=2"]
    done = run([*TRAIN, *small, *text, f"out={folder / 'run'}"], folder)
    assert done.code == 0, done
    assert_none_left(folder)
    return folder / "run", done
