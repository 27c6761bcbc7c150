"""The models of a run, what they cost, and which one is chosen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kept import keep, of_images
from mach import cli
from mach.choice.frontier import Candidate, Latency, choose, frontier
from mach.config import ModelsConfig
from mach.errors import ConfigError
from spawn import MACH


def candidate(value: float | None, flops: int, first: int = 0, last: int = 0, **values: object):
    its = (Latency(1, 1, flops / 100, flops / 50),)
    found = Candidate(first, last, "accuracy", value, 0.1, 10 * flops, flops, 40 * flops, its)
    return replace(found, **values)


A, B, C, D = candidate(0.8, 100), candidate(0.9, 300), candidate(0.85, 400), candidate(0.9, 200)


# --- the frontier and the choice -----------------------------------------------------------------


def test_what_another_model_beats_is_not_on_the_frontier():
    assert frontier([A, B, C, D], "flops") == [True, False, False, True]


def test_equal_models_are_both_on_it():
    assert frontier([A, replace(A, last=1)], "flops") == [True, True]


def test_a_model_whose_quality_nobody_knows_is_not():
    assert frontier([A, candidate(None, 1)], "flops") == [True, False]


def test_the_frontier_may_weigh_another_cost():
    slow = replace(A, latencies=(Latency(1, 1, 99.0, 99.0),))
    assert frontier([slow, D], "latency") == [False, True]
    assert frontier([slow, D], "flops") == [True, True]


def test_fewer_bits_are_better():
    many, few = (replace(A, metric="bits_per_byte", value=bits) for bits in (3.0, 2.0))
    assert frontier([many, few], "flops") == [False, True]


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ({"min_accuracy": 0.85}, D),
        ({"min_accuracy": 0.5}, A),
        ({"max_params": 1999}, A),
        ({"max_params": 2000}, D),
        ({"max_latency_ms": 1.5}, A),
        ({"max_latency_ms": 100, "min_accuracy": 0.86}, D),
        ({"max_flops": 250}, D),
    ],
)
def test_the_cheapest_that_is_good_enough_or_the_best_within_limits_is_chosen(wish, chosen):
    assert choose([A, B, C, D], ModelsConfig("run", **wish)) is chosen


def test_wishes_that_no_model_meets_are_refused_with_what_is_nearest():
    says = r"none of 4 is\. .*min_accuracy: 0\.9, max_params: 1000"
    with pytest.raises(ConfigError, match=says):
        choose([A, B, C, D], ModelsConfig("run", min_accuracy=0.95, max_params=500))


def test_an_accuracy_is_not_asked_of_a_language_model():
    few = replace(A, metric="bits_per_byte", value=2.0)
    with pytest.raises(ConfigError, match=r"min_accuracy: .*bits_per_byte. Set max_bits_per_byte"):
        choose([few], ModelsConfig("run", min_accuracy=0.9))
    assert choose([few], ModelsConfig("run", max_bits_per_byte=2.5)) is few


# --- mach models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return keep(of_images(folder, 6, 5), folder / "run")


def models(*words: object, capsys) -> str:
    assert cli.answer("models", list(map(str, words))) == 0
    return capsys.readouterr().out


def test_every_exit_and_window_is_listed_with_what_it_costs(run_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    told = models(run_dir, capsys=capsys)
    result = json.loads((run_dir / "result.json").read_text())
    for row in result["chain"]:
        line = next(line for line in told.splitlines() if f"chain 0..{row['exit']}" in line)
        assert f"{100 * row['accuracy']:.2f}" in line
    for row in result["windows"]:
        assert f"window {row['first']}..{row['last']}" in told
    assert "B=1 t=1" in told
    assert "B=64 t=1" in told
    assert re.search(r"\* (chain|window)", told)
    assert "Models, on the test split" in told


def test_programs_get_the_same_as_json(run_dir, capsys):
    threads = torch.get_num_threads()
    found = json.loads(models(run_dir, "format=json", "--max-params", 10**6, capsys=capsys))
    assert torch.get_num_threads() == threads
    assert found["split"] == "test"
    rows = found["models"]
    assert len(rows) == 6
    chosen = [row for row in rows if row["chosen"]]
    assert [f"{row['first']}..{row['last']}" for row in chosen] == [found["chosen"]]
    assert max(row["value"] for row in rows) == chosen[0]["value"]
    assert any(row["frontier"] for row in rows)
    for row in rows:
        assert 4 * row["params"] <= row["bytes"] <= 4 * row["params"] + 4000
        assert {(its["batch"], its["threads"]) for its in row["latencies"]} >= {(1, 1), (64, 1)}
        assert all(0 < its["median_ms"] <= its["p95_ms"] for its in row["latencies"])


def test_the_choice_is_told_with_the_command_that_exports_it(run_dir, capsys):
    told = models(run_dir, "--min-accuracy=0", "latency=false", capsys=capsys)
    assert re.search(rf"Chosen: \w+ (\d\.\.\d)\. mach export {run_dir} window=\1", told)


def test_a_run_without_a_result_is_measured_as_it_is_saved(run_dir, tmp_path, capsys):
    before = json.loads(models(run_dir, "format=json", "latency=false", capsys=capsys))
    result = (run_dir / "result.json").rename(tmp_path / "result.json")
    try:
        now = json.loads(models(run_dir, "format=json", "latency=false", capsys=capsys))
    finally:
        result.rename(run_dir / "result.json")
    for row, other in zip(before["models"], now["models"], strict=True):
        assert row.pop("loss") == pytest.approx(other.pop("loss"))
        assert row == other


def test_a_reader_that_has_enough_ends_it_without_a_trace(run_dir):
    reads, writes = os.pipe()
    os.close(reads)
    command = [*MACH, "models", str(run_dir), "latency=false", "format=json"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "run=nowhere: expected a run folder"),
        (["{run}", "--min-accuracy", "98"], "min_accuracy: expected 0 to 1; got 98"),
        (["{run}", "latency=false", "max_latency_ms=1"], "latency=false: expected it to be meas"),
        (["{run}", "latency=false", "max_params=1"], "none of 6 is"),
        (["{run}", "max_params=few"], "max_params: .*few"),
        (["{run}", "cost=money"], "cost: expected one of flops, params, latency"),
    ],
)
def test_what_cannot_be_asked_is_refused(run_dir, capsys, words, says):
    assert cli.answer("models", [word.format(run=run_dir) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1
