"""Can one choose without looking at the test split?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clouds import clouds, make, weights
from mach.config import LabelledConfig, NpzConfig, TextConfig, TokensConfig
from mach.data import Batches, check, open_dataset
from mach.errors import ConfigError, DataError
from mach.trainer import Oracle
from texts import LINE, write_text

CPU = torch.device("cpu")
TOTAL, KEPT = 90, 30


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Samples that are their own numbers: 0 to 89 to train on, from 1,000 on to test."""
    np.savez(
        tmp_path / "numbers.npz",
        x_train=np.arange(TOTAL, dtype="f4")[:, None],
        y_train=np.arange(TOTAL) % 3,
        x_test=np.arange(1000, 1020, dtype="f4")[:, None],
        y_test=np.zeros(20, dtype=int),
    )
    return tmp_path / "numbers.npz"


def numbers(config: LabelledConfig, split: str, epochs: int = 3) -> tuple[list[int], list[int]]:
    """Samples that are trained on in some epochs, and those that are evaluated on, in order."""
    dataset = open_dataset(config)
    batches = Batches(dataset, 0, 8, CPU, split=split)
    count = -(-epochs * batches.samples // 8)
    trained = [batches.train(b)[0] for b in range(count)]
    evaluated = [batches.evaluation(b)[0] for b in range(batches.evaluation_batches())]

    def of(parts: list[torch.Tensor]) -> list[int]:
        return [round(v) for v in (torch.cat(parts)[:, 0] * dataset.std + dataset.mean).tolist()]

    return of(trained), of(evaluated)


@pytest.mark.parametrize("samples", [None, 20, TOTAL - KEPT])
def test_what_is_kept_back_is_spread_and_never_trained_on(file: Path, samples: int | None) -> None:
    config = NpzConfig(path=str(file), validation=KEPT, samples=samples)
    trained, evaluated = numbers(config, "validation")
    assert [number // 3 for number in evaluated] == list(range(KEPT))
    assert not set(evaluated) & set(trained)
    assert len(set(trained)) == (samples or TOTAL - KEPT)
    assert numbers(replace(config, samples=None), "validation")[1] == evaluated
    labels = open_dataset(config).split("validation").y
    assert labels is not None


def test_every_sample_keeps_its_label(file: Path) -> None:
    dataset = open_dataset(NpzConfig(path=str(file), validation=KEPT))
    batches = Batches(dataset, 0, KEPT, CPU, split="validation")
    for x, y in (batches.train(1), batches.evaluation(0)):
        number = (x[:, 0] * dataset.std + dataset.mean).round().long()
        assert torch.equal(number % 3, y)


def test_the_test_split_is_the_test_split_whatever_is_kept_back(file: Path) -> None:
    for kept in (0, KEPT):
        config = NpzConfig(path=str(file), validation=kept)
        assert numbers(config, "test")[1] == list(range(1000, 1020))
    trained, _ = numbers(NpzConfig(path=str(file)), "test")
    assert set(trained) == set(range(TOTAL))


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_of_text_a_stretch_at_its_end_is_kept_back(tmp_path: Path, tokenizer: str) -> None:
    text = "".join(chr(256 + i) if tokenizer == "char" else chr(i % 128) for i in range(600))
    (tmp_path / "text.txt").write_text(text)
    config = TextConfig(
        path=str(tmp_path / "text.txt"),
        cache=str(tmp_path / "cache"),
        tokenizer=tokenizer,
        context=8,
        test_fraction=0.5,
        validation=5,
    )
    whole, kept = open_dataset(replace(config, validation=0)), open_dataset(config)
    check(kept)
    assert kept.x_validation is not None
    assert len(kept.x_validation) == 5 * 8 + 1
    assert np.array_equal(np.concatenate([kept.x_train, kept.x_validation]), whole.x_train)
    batches = Batches(kept, 0, 5, CPU, split="validation")
    x, y = batches.evaluation(0)
    assert torch.equal(x.flatten(), torch.from_numpy(np.array(kept.x_validation[:-1])).long())
    assert torch.equal(y.flatten(), torch.from_numpy(np.array(kept.x_validation[1:])).long())
    bytes_per_token = 2.0 if tokenizer == "char" else 1.0  # U+0100 to U+07FF are two bytes each
    assert batches.task.bytes_per_target == bytes_per_token


def test_bits_per_byte_are_those_of_the_text_that_is_evaluated_on(tmp_path: Path) -> None:
    """One part of the text has two bytes in a character, the other one."""
    (tmp_path / "text.txt").write_text("é" * 200 + "e" * 200)
    config = TextConfig(
        path=str(tmp_path / "text.txt"),
        cache=str(tmp_path / "cache"),
        tokenizer="char",
        context=8,
        test_fraction=1 / 3,
        validation=4,
    )
    dataset = open_dataset(config)
    assert dataset.split("test").task.bytes_per_target == 1.0
    assert dataset.split("validation").task.bytes_per_target == 2.0


def test_a_run_evaluates_on_the_split_it_is_asked_for_and_says_so() -> None:
    dataset = replace(clouds(), validation=60)
    found = {}
    for split in ("test", "validation"):
        config = make(2, eval={"split": split, "every": 3}, data={"validation": 60})
        oracle = Oracle(config, dataset)
        found[split] = oracle.run(), weights(oracle)
    (on_test, trained), (on_kept, again) = found["test"], found["validation"]
    assert (on_test["split"], on_kept["split"]) == ("test", "validation")
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    assert on_test["chain"][-1]["loss"] != on_kept["chain"][-1]["loss"]
    part = dataset.split("validation")
    assert part.chosen is not None
    x, y = part.x[part.chosen], part.y[part.chosen]
    alone = replace(dataset, x_test=x, y_test=y, test_samples=60)
    assert Oracle(make(2, eval={"every": 3}), alone).run()["chain"] == on_kept["chain"]


@pytest.mark.parametrize("kind", ["labels", "text", "tokens"])
def test_more_than_there_is_to_keep_back_is_refused(file: Path, tmp_path: Path, kind: str) -> None:
    text = write_text(tmp_path)
    np.arange(100, dtype="u2").tofile(tmp_path / "tokens.bin")
    config = {
        "labels": NpzConfig(path=str(file), validation=TOTAL),
        "text": TextConfig(path=str(text), context=len(LINE), validation=100),
        "tokens": TokensConfig(
            train=str(tmp_path / "tokens.bin"), vocabulary=100, context=9, validation=10
        ),
    }[kind]
    with pytest.raises(DataError, match=r"expected .* data\.validation=.*; got \d+\. .* to fewer"):
        open_dataset(config)


def test_samples_and_validation_must_fit_together(file: Path) -> None:
    with pytest.raises(DataError, match=r"data\.samples=70 .* beside data\.validation=30; got 90"):
        open_dataset(NpzConfig(path=str(file), validation=KEPT, samples=70))


def test_there_must_be_something_to_evaluate_on() -> None:
    with pytest.raises(ConfigError, match=r"eval\.split=validation: .* Set data\.validation"):
        make(2, eval={"split": "validation"})
    with pytest.raises(ConfigError, match="split=validation"):
        clouds().split("validation")
    with pytest.raises(ConfigError, match="split: expected one of"):
        clouds().split("all")
