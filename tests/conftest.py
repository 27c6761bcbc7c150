"""What all tests share: one compute thread, one finished run, and no process left at the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from browser import CHROMIUM
from kept import SHAPE, keep, of_images
from runs import LONG, SMALL
from spawn import TRAIN, Done, assert_none_left, processes_of, run
from texts import make as make_text
from texts import write_text

# Commands that run side by side: two threads of one on a core that another needs wait for each
# other by spinning, and take four times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a script starts in its background ignores Ctrl-C, and hands that down to what is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """On CPU the numbers depend on how many threads compute them; a test may have changed that."""
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


@pytest.fixture(scope="session")
def asked_images(tmp_path_factory) -> Path:
    """A run on pictures, to be asked. Not to be changed."""
    folder = tmp_path_factory.mktemp("asked_images")
    return keep(of_images(folder, *SHAPE, test=70), folder / "run")


@pytest.fixture(scope="session")
def asked_text(tmp_path_factory) -> Path:
    """The same of a small language model, trained for long enough to say characters of the text."""
    folder = tmp_path_factory.mktemp("asked_text")
    config = make_text(write_text(folder), student={"enabled": True}, steps=30)
    return keep(config, folder / "run")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; see tests/browser.py."""
    if CHROMIUM is None:
        reason = "no Chromium: apt install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"],  # containers run tests as root
        )
        yield browser
        browser.close()
