"""Does reporting to wandb and TensorBoard cost the training nothing, whatever becomes of it?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mach.config import Config, ReportConfig
from mach.report import build
from reported import DEADLINE_S, environment, inspect, record
from runs import LONG, scores
from spawn import TRAIN, run, until

KEY = "0123456789abcdef0123456789abcdef01234567"
"""Nobody's."""

COMPONENT = """
import json, sys
from pathlib import Path
from mach.config import Config
from mach.report import build
with build(Config(), Path(sys.argv[1]), 0, 0) as reporter:
    for line in sys.stdin:  # logs what it is told
        reporter.log(json.loads(line))
        print("logged", flush=True)
print(*sorted({"wandb", "torch", "tensorboard"} & sys.modules.keys()), flush=True)
"""


class Component:
    """A process that logs; the companion is its child, wandb-core the companion's."""

    def __init__(self, run_dir: Path, **environ: str) -> None:
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMPONENT, str(run_dir)],
            env=environment(run_dir, **environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what Ctrl-C reaches
        )

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def log(self, step: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(record(step)) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "logged\n"

    def child(self, name: str) -> psutil.Process:
        """The process below it with this in its command line, once it is there."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(name in word for word in process.cmdline()):
                        found.append(process)
            return bool(found)

        until(look, DEADLINE_S, lambda: f"no {name} was started")
        return found[0]

    def file(self) -> Path:
        """What wandb has written, once there is something."""
        files: list[Path] = []

        def look() -> bool:
            files[:] = self.run_dir.glob("wandb/offline-run-*/*.wandb")
            return bool(files) and files[0].stat().st_size > 0

        until(look, DEADLINE_S)
        return files[0]

    def end(self) -> tuple[str, str]:
        """Let it end; what it wrote on stdout and stderr."""
        done = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, done
        return done


def steps(file: Path) -> list[int]:
    rows = [r["history"]["item"] for r in inspect(file) if r["type"] == "history"]
    return [row["optimizer_step"] for row in rows]


def test_a_component_imports_nothing_to_report_to_wandb_and_starts_no_thread(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with Component(tmp_path, WANDB_MODE="offline", TMPDIR=str(scratch)) as component:
        component.log(1)
        companion = component.child("mach.report.relay")
        assert component.file()
        assert list(scratch.iterdir())
        until(lambda: companion.nice() == 19, DEADLINE_S)
        assert psutil.Process(component.process.pid).num_threads() == 1
        imported, complaints = component.end()
    assert imported == "\n"
    assert complaints == ""
    assert steps(component.file()) == [1]
    assert not companion.is_running()
    assert not list(scratch.iterdir()), "what wandb makes is gone with it"


def test_kill_9_of_a_component_loses_no_line_of_wandb_either(tmp_path: Path) -> None:
    with Component(tmp_path, WANDB_MODE="offline") as component:
        for step in range(1, 31):
            component.log(step)
        companion = component.child("mach.report.relay")
        component.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([companion], timeout=DEADLINE_S)
    assert not alive
    assert steps(component.file()) == list(range(1, 31))
    exits = [r["exit"] for r in inspect(component.file()) if r["type"] == "exit"]
    assert exits[-1]["exit_code"] == 1  # nobody said that it had ended well


@pytest.mark.parametrize("victim", ["wandb-core", "mach.report.relay"])
def test_kill_9_of_wandb_costs_one_warning_and_no_time(victim: str, tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with Component(tmp_path, WANDB_MODE="offline", TMPDIR=str(scratch)) as component:
        component.log(1)
        component.file()
        component.child(victim).kill()
        slowest_s = 0.0
        for step in range(2, 200):
            before = time.perf_counter()
            component.log(step)
            slowest_s = max(slowest_s, time.perf_counter() - before)
        before = time.perf_counter()
        _, complaints = component.end()
        assert time.perf_counter() - before < 20.0
    assert slowest_s < 5.0
    assert not list(scratch.glob("mach-relay-*"))
    assert complaints.count("\n") == 1, complaints
    assert "the training goes on" in complaints or "the log itself is complete" in complaints
    logged = (tmp_path / "component-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, 200))


def test_a_run_whose_wandb_server_is_gone_ends_as_one_without_wandb(
    finished: Any, tmp_path: Path
) -> None:
    """And no file of it holds the key."""
    gone = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "1"}
    out = tmp_path / "run"
    command = [*TRAIN, *LONG, "report.wandb=online", f"out={out}"]
    done = run(command, tmp_path, HOME=str(tmp_path), **gone)
    assert done.code == 0, done
    assert scores(out) == scores(finished[0])
    for k in (0, 1):
        (said,) = out.glob(f"logs/*/attempt_0/{k}/stderr.log")
        assert said.read_text().count("cannot go online") == 1
        assert len(said.read_text().splitlines()) == 1, said.read_text()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix == ".wandb"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr


def test_ctrl_c_is_for_the_component_and_the_companion_ends_after_it(tmp_path: Path) -> None:
    with Component(tmp_path, WANDB_MODE="offline") as component:
        component.log(1)
        component.file()  # wandb has started
        companion = component.child("mach.report.relay")
        os.killpg(component.process.pid, signal.SIGINT)
        component.process.wait(DEADLINE_S)
        assert "KeyboardInterrupt" in component.process.communicate()[1]
        _, alive = psutil.wait_procs([companion], timeout=DEADLINE_S)
    assert not alive
    assert steps(component.file()) == [1]


def test_tensorboard_has_every_number_of_the_log_at_its_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = Config(report=ReportConfig(wandb="off", tensorboard=True))
    for first, last in ((0, 3), (3, 5)):  # the second life goes on where the first was
        with build(config, tmp_path, component=1, resume_step=first) as reporter:
            for step in range(first + 1, last + 1):
                reporter.log(record(step, student_loss=0.5 * step))
    found = EventAccumulator(str(tmp_path / "tensorboard" / "component-1"))
    found.Reload()
    keys = record(1, student_loss=0.5).keys() - {"step"}
    assert set(found.Tags()["scalars"]) == keys
    assert [(e.step, e.value) for e in found.Scalars("student_loss")] == [
        (n, 0.5 * n) for n in range(1, 6)
    ]
    (text,) = found.Tensors("config")[:1]
    assert "schedule: delayed" in text.tensor_proto.string_val[0].decode()
