"""A small model that is asked first, and a large one where it is not sure."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kept import keep, of_images
from mach import cli
from mach.checkpoint import consolidated
from mach.choice.cascade import (
    Answers,
    Cascade,
    Point,
    answers_of,
    calibrated,
    cascade,
    confidence,
    curve,
)
from mach.config import CascadeConfig, ConsolidateConfig
from mach.consolidation.consolidate import consolidate
from mach.data import Batches
from mach.errors import ConfigError
from mach.inference import Run
from texts import make as make_text
from texts import write_text

KEPT = 60


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """Three components on pictures, with samples that were never trained on, and window 2..2
    consolidated."""
    folder = tmp_path_factory.mktemp("cascade")
    config = of_images(folder, 6, 5, test=150, steps=25)
    config = replace(config, data=replace(config.data, validation=KEPT))
    keep(config, folder / "run")
    consolidate(ConsolidateConfig(str(folder / "run"), "2..2", steps=10))
    return folder / "run"


def batches_of(run: Run, split: str) -> Batches:
    return Batches(run.dataset, 0, 64, torch.device("cpu"), split=split)


def all_of(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*(batches.evaluation(b) for b in range(batches.evaluation_batches())), strict=True)
    return torch.cat(x), torch.cat(y)


# --- one at a threshold ------------------------------------------------------------------------


def test_at_threshold_0_it_is_the_small_and_at_1_the_large_model_bit_by_bit(run_dir):
    run = Run(run_dir)
    small, large = run.window(2, 2), run.window()
    x, _ = all_of(batches_of(run, "test"))
    with torch.no_grad():
        for threshold, model, asked in ((0.0, small, 0), (1.0, large, len(x))):
            both = Cascade(small, large, threshold)
            assert torch.equal(both(x), model(x))
            assert both.asked == asked


def test_each_sample_is_answered_by_the_model_that_is_due(run_dir):
    run = Run(run_dir)
    small, large = run.window(2, 2), run.window()
    x, _ = all_of(batches_of(run, "test"))
    with torch.no_grad():
        sure = small(x).double().softmax(-1).max(-1).values
        both = Cascade(small, large, float(sure.median()))
        found, expected = both(x), torch.where((sure > sure.median())[:, None], small(x), large(x))
    assert 0 < both.asked < len(x)
    torch.testing.assert_close(found, expected)  # the large one sees another batch


def test_no_confidence_is_0_or_above_1():
    logits = torch.tensor([[0.0, 0.0], [1e4, 0.0], [-1e4, 1e4], [3.0, 2.0]])
    values = confidence(logits)
    assert float(values.min()) > 0
    assert float(values.max()) <= 1


# --- which threshold ---------------------------------------------------------------------------


def brute_force(answers: Answers, threshold: float, small: int, large: int) -> Point:
    right = asked = 0
    for sure, by_small, by_large in zip(*map(torch.Tensor.tolist, vars(answers).values())):  # noqa: B905
        stays = sure > threshold
        right += by_small if stays else by_large
        asked += not stays
    total = len(answers.small)
    return Point(threshold, right / total, asked / total, small + asked / total * large)


def answers(seed: int, levels: int) -> Answers:
    """Confidences of so many levels, so that some are the same."""
    draw = torch.Generator().manual_seed(seed)
    sure = torch.randint(1, levels + 1, (50,), generator=draw).double() / levels
    small, large = (torch.rand(50, generator=draw) < part for part in (0.6, 0.8))
    return Answers(sure, small, large)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [1, 7, 1000])
def test_the_curve_and_the_threshold_equal_brute_force(seed, levels):
    known = answers(seed, levels)
    points = curve(known, 3, 10)
    assert points == [brute_force(known, point.threshold, 3, 10) for point in points]
    assert [point.asked for point in (points[0], points[-1])] == [0, 1]
    every = [brute_force(known, k / 2000, 3, 10) for k in range(2001)]
    assert {point.accuracy for point in points} == {point.accuracy for point in every}
    for wished in (None, 0.5, 0.62, 0.7, 0.8, 0.99):
        least = points[-1].accuracy if wished is None else wished
        able = [point.flops for point in every if point.accuracy >= least]
        found = calibrated(points, wished)
        assert (found and found.flops) == (min(able) if able else None)


# --- of a run ----------------------------------------------------------------------------------


def test_it_is_chosen_on_validation_and_told_of_the_test_split(run_dir):
    run = Run(run_dir)
    found = cascade(CascadeConfig(str(run_dir), small="2..2", large="0..2"))
    small, large = run.window(2, 2), run.window()
    (known,) = answers_of(run, [small], large, batches_of(run, "validation"))
    costs = run.assembly.costs()
    pair = costs.model(2, 2).flops, costs.model(0, 2).flops
    assert found.points == curve(known, *pair)
    assert found.chosen == calibrated(found.points, None)
    assert found.samples == {"validation": KEPT, "test": 150}
    x, y = all_of(batches_of(run, "test"))
    both = Cascade(small, large, found.threshold)
    with torch.no_grad():
        assert found.test["cascade"].accuracy == (both(x).argmax(-1) == y).double().mean().item()
    result = json.loads((run_dir / "result.json").read_text())
    window = next(w for w in result["windows"] if (w["first"], w["last"]) == (2, 2))
    assert found.test["small"].accuracy == window["accuracy"]
    assert found.test["large"].accuracy == result["chain"][-1]["accuracy"]
    assert found.test["cascade"].flops == pair[0] + both.asked / 150 * pair[1]


def test_without_a_small_model_the_one_is_taken_whose_cascade_costs_least(run_dir):
    found = cascade(CascadeConfig(str(run_dir), accuracy=0.9))
    names = ["0..0", "0..1", "2..2", "consolidated/2..2"]
    costs = {}
    for name in names:
        one = cascade(CascadeConfig(str(run_dir), small=name, accuracy=0.9))
        costs[name] = one.chosen.flops
    assert found.chosen.flops == min(costs.values())
    assert costs[str(found.small)] == found.chosen.flops


def test_a_given_threshold_needs_no_validation(run_dir, tmp_path):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace(f"validation: {KEPT}", "validation: 0"))
    found = cascade(CascadeConfig(str(copied), small="2..2", threshold=0.7))
    assert (found.threshold, found.points, found.chosen) == (0.7, [], None)
    assert found.samples == {"test": 150}
    with pytest.raises(ConfigError, match=r"never trained on.*data\.validation=0.*give small= and"):
        cascade(CascadeConfig(str(copied), small="2..2"))


def test_a_model_that_has_diverged_is_not_asked(run_dir, tmp_path):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    (entry,) = consolidated.entries(copied)
    window = Run(copied).model(entry.name)
    torch.nn.init.constant_(window.head[1].bias, float("nan"))
    consolidated.write(copied, entry.name, window, entry.manifest, "")
    with pytest.raises(ConfigError, match=r"small=consolidated/2\.\.2: .* it has diverged"):
        cascade(CascadeConfig(str(copied), small="consolidated/2..2"))
    assert not cascade(CascadeConfig(str(copied))).small.consolidated


def test_the_command_tells_both_splits_in_80_columns(run_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.answer("cascade", [str(run_dir), "small=consolidated/2..2"]) == 0
    told = capsys.readouterr().out
    assert "On 60 validation samples" in told
    assert "On 150 test samples" in told
    assert re.search(r"consolidated 2\.\.2(, and| answers all,) chain 0\.\.2", told)
    assert cli.answer("cascade", [str(run_dir), "small=2..2", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibrated"]
    assert found["curve"][0]["asked"] == 0
    assert found["test"]["cascade"]["threshold"] == found["threshold"]
    words = [str(run_dir), "small=2..2", "threshold=0.5"]
    assert cli.answer("cascade", words) == 0
    assert "validation" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("threshold", "says"),
    [
        ("0", "window 2..2 answers all, chain 0..2 is never asked: "),
        ("0.5", "window 2..2, and chain 0..2 where its answer has a probability of 0.5000 or less"),
    ],
)
def test_who_answers_when_is_told(run_dir, capsys, threshold, says):
    words = [str(run_dir), "small=2..2", f"threshold={threshold}"]
    assert cli.answer("cascade", words) == 0
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "run=nowhere: expected a run folder.*no such folder"),
        (["{run}", "small=2..7"], r"window=2\.\.7: expected j\.\.i with 0 <= j <= i <= 2"),
        (["{run}", "small=two"], r"window: expected j\.\.i.*got 'two'"),
        (
            ["{run}", "small=consolidated/1..1"],
            "expected a window that was consolidated; .* has con",
        ),
        (["{run}", "small=0..2"], r"small=0\.\.2: expected a model that costs less than large=0"),
        (["{run}", "large=0..0"], r"large=0\.\.0: expected a model that costs more than another"),
        (["{run}", "small=2..2", "accuracy=98"], "accuracy: expected 0 to 1; got 98"),
        (["{run}", "small=0..0", "accuracy=1"], r"accuracy=1\.0: expected what a cascade reaches"),
        (["{run}", "threshold=0.5"], r"threshold=0\.5: expected small= beside it"),
        (["{run}", "small=0..0", "threshold=0.5", "accuracy=0.5"], "expected it alone.*got both"),
        (["{run}", "format=xml"], "format: expected one of table, json"),
    ],
)
def test_what_cannot_be_asked_is_refused(run_dir, capsys, words, says):
    assert cli.answer("cascade", [word.format(run=run_dir) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1


def test_a_language_model_has_no_cascade(tmp_path):
    config = make_text(write_text(tmp_path), student={"enabled": True}, steps=2)
    run_dir = keep(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="these are language models, in bits_per_byte"):
        cascade(CascadeConfig(str(run_dir)))
