"""What benchmarks/tolerance/ compares, how it chooses, and what its README says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mach.muon
from mach.data import open_dataset
from mach.launcher.compose import compose
from mach.trainer import Oracle

FOLDER = Path(__file__).parents[1] / "benchmarks" / "tolerance"
sys.path += [str(FOLDER), str(FOLDER.parent / "accuracy")]
stored = importlib.import_module("stored")
trials = importlib.import_module("trials")
ways = importlib.import_module("ways")
STEPS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples as mnist1d has them, and enough to keep some back."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 4300)
    x = rng.normal(size=(4300, 40)).astype(np.float32) + y[:, None] / 5
    np.savez(path, x_train=x[:4200], y_train=y[:4200], x_test=x[4200:], y_test=y[4200:])
    return str(path)


def spec(way: str, delay: int, **more: object) -> object:
    own = {"rate": ways.WAYS[way].first, "seed": 0, "steps": STEPS, "split": "validation"}
    return trials.Spec(way, delay, **{**own, **more})


def test_without_a_delay_every_gradient_is_the_exact_one(data: str):
    run = trials.run_of(spec("muon", 0), data)
    assert len(run["cosines"]) == STEPS // 7
    assert run["cosines"] == [[pytest.approx(1, abs=1e-5)] * 4] * 2
    assert all(0 < moved < 1 for of_all in run["moved"] for moved in of_all)


def test_with_a_delay_it_is_not_and_the_run_is_the_one_nobody_listened_to(data: str):
    run = trials.run_of(spec("sgd", 4), data)
    assert all(-1 <= cosine < 0.9999 for of_all in run["cosines"] for cosine in of_all)
    words = ["experiment=mnist1d", "method=features_replay", "optim=sgd", "optim.lr=0.1", "delay=4"]
    sizes = [f"steps={STEPS}", f"eval.every={STEPS}", f"data.path={data}", "data.validation=4000"]
    config = compose([*words, *sizes, "eval.split=validation"])
    alone = Oracle(config, open_dataset(config.data)).run()
    assert run["value"] == alone["chain"][-1]["accuracy"]


@pytest.mark.parametrize("way", ["muon-0", "muon-2"])
def test_fewer_iterations_leave_the_size_of_the_step_and_not_its_direction(way: str):
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    usual = ((3.4445, -4.775, 2.0315), 5, 1e-7)
    with ways.stepping(ways.WAYS[way]):
        step = mach.muon.orthogonal(matrix, *usual)
    assert step.norm() == pytest.approx(12**0.5, rel=1e-4)
    flatness = torch.linalg.svdvals(step)
    whole = torch.linalg.svdvals(mach.muon.orthogonal(matrix, *usual).float())
    assert flatness[-1] / flatness[0] < whole[-1] / whole[0]
    if way == "muon-0":
        direction = (step * matrix).sum() / step.norm() / matrix.norm()
        assert direction == pytest.approx(1, abs=1e-4)


def climbed(value: Callable[[float], float | None]) -> tuple[float, int]:
    """The choice where rates are worth so much, and after how many runs."""
    runs: list[dict[str, object]] = []
    while True:
        rate, tries = trials.choose("sgd", 4, STEPS, runs)
        if not tries:
            return rate, len(runs)
        runs += [{**vars(one), "value": value(one.rate)} for one in tries]


@pytest.mark.parametrize("best", [0.0125, 0.1, 0.8])
def test_the_rate_is_looked_for_until_both_its_neighbours_are_worse(best: float):
    rate, runs = climbed(lambda rate: -abs(np.log(rate / best)))
    assert rate == best
    assert runs == {0.0125: 12, 0.1: 6, 0.8: 12}[best]


def test_a_rate_at_which_a_run_diverges_is_the_worst():
    assert climbed(lambda rate: None if rate > 0.06 else rate)[0] == 0.05


def test_the_test_split_is_asked_once_a_rate_is_known():
    assert trials.tests_of("sgd", 4, STEPS, []) == []


def test_the_readme_has_the_tables_of_its_runs():
    """The summary by its path, as another benchmark has a module of this name, too."""
    found = importlib.util.spec_from_file_location("tolerance_summary", FOLDER / "summary.py")
    summary = importlib.util.module_from_spec(found)
    found.loader.exec_module(summary)
    runs = stored.read(FOLDER / "runs.jsonl")
    assert summary.markdown(runs) in (FOLDER / "README.md").read_text()
