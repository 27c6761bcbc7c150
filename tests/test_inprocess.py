"""A run in one process: the same numbers, and the same folder, as of a run of many."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mach.config import Config
from mach.errors import ConfigError
from mach.launcher.app import launch
from mach.launcher.compose import compose
from mach.randomness import seed_of
from runs import LONG, checkpoint_steps, lines, result, scores, stored_tensors, without_its_end

pytestmark = pytest.mark.timeout(400)  # the first waits for a run to end


def asked(out: Path, *words: str) -> Config:
    return compose([*LONG, "launch=inprocess", f"out={out}", *words])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """All of the last checkpoint but the state of a generator that nothing draws from."""
    stored = stored_tensors(run_dir / "checkpoints" / "step-100")
    return {name: tensor for name, tensor in stored.items() if "random_state" not in name}


def assert_same_weights(a: Path, b: Path) -> None:
    mine, other = weights(a), weights(b)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


@pytest.fixture(scope="module")
def inprocess(tmp_path_factory) -> Path:
    """A run in this process. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("inprocess") / "run"
    launch(asked(run_dir))
    return run_dir


def test_it_has_the_weights_and_the_result_of_a_run_in_processes(inprocess, finished):
    assert_same_weights(inprocess, finished[0])
    assert scores(inprocess) == scores(finished[0])
    assert result(inprocess).keys() == result(finished[0]).keys()


def test_it_leaves_what_a_run_in_processes_leaves(inprocess, finished):
    def left(folder: Path) -> set[str]:
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        return {name for name in names if not name.startswith("logs/")}

    assert left(inprocess) == left(finished[0])
    for k in (0, 1):
        mine, other = lines(inprocess, k), lines(finished[0], k)
        assert [line.keys() for line in mine] == [line.keys() for line in other]
        for key in ("step", "samples", "loss", "student_loss", "gradient_norm", "staleness_steps"):
            assert [line.get(key) for line in mine] == [line.get(key) for line in other], key


def test_it_goes_on_from_its_last_checkpoint_with_the_same_numbers(inprocess, tmp_path):
    run_dir = without_its_end(inprocess, tmp_path / "run", 100)
    launch(asked(run_dir, "resume=auto"))
    assert result(run_dir)["first_step"] == 80
    assert checkpoint_steps(run_dir) == [80, 100]
    assert_same_weights(run_dir, inprocess)
    assert scores(run_dir) == scores(inprocess)
    steps = [line["step"] for line in lines(run_dir, 0) if "loss" in line]
    assert steps == [1, *range(10, 101, 10)]


def test_heads_that_draw_random_numbers_go_on_drawing_where_they_were(tmp_path):
    """Each component has its own stream, as it has in a process of its own."""
    own = ["model=custom", "model.factory=brought:flat", "model.head=brought:drawing_head"]
    words = ["launch=inprocess", "components=3", *own, "checkpoint.every=10", "checkpoint.keep=2"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    launch(compose([*words, "steps=20", f"out={whole}"]))
    without_its_end(whole, again, 20)
    launch(compose([*words, "steps=20", f"out={again}", "resume=auto"]))
    mine, other = (stored_tensors(run / "checkpoints" / "step-20") for run in (again, whole))
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    streams = [mine[name] for name in mine if "random_state" in name]
    assert len(streams) == 3
    assert not torch.equal(streams[0], streams[1])


def test_seeds_are_as_large_as_eight_bytes_hold(tmp_path):
    """Each component's streams have a seed of their own, made of this one."""
    launch(compose([*LONG, "launch=inprocess", "steps=1", f"seed={2**63 - 1}", f"out={tmp_path}"]))
    assert result(tmp_path)["seed"] == 2**63 - 1
    assert seed_of(2**62, 4, 1) == 1
    assert seed_of(5, 4, 1) == 21


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["schedule=free"], "launch=inprocess: expected schedule=delayed or sync.*got free"),
        (["faults=kill"], "launch=inprocess: expected faults=none.*got faults=kill"),
    ],
)
def test_what_one_process_cannot_do_is_refused(tmp_path, words, says):
    with pytest.raises(ConfigError, match=says):
        asked(tmp_path / "run", *words)
