"""Whatever a config accepts trains, and goes on as if it had not been stopped: random draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mach.config import Config
from mach.errors import ConfigError
from mach.launcher.app import launch
from mach.launcher.compose import compose
from runs import SMALL, assert_same_tensors, checkpoint_steps, scores, without_its_end
from texts import write_text

STEPS, DRAWS = 5, 16
CUT_DOWN = [
    *SMALL,
    f"steps={STEPS}",
    "eval.samples=20",
    "launch=inprocess",
    "checkpoint.keep=9",
]
ON_IMAGES = (
    ["model.width=8"],
    ["model.width=8", "model.depth=6", "model.balance=params"],
    ["model=resnet", "model.width=8"],
    ["model=resnet", "model.width=8", "model.norm=batch", "data.augment=crop"],
)
ON_TEXT = (
    ["model=gpt", "model.width=16", "data.context=8"],
    ["model=gpt", "model.width=16", "data.context=8", "data.tokenizer=char"],
    ["model=mlp", "model.width=16", "data.context=8"],
)
METHODS = ("mach", "backprop", "ddg", "dgl", "dni", "fdg", "mach2019", "synthetic_inputs", "takd")
CORRECTIONS = ("rate", "surrogate", "rate+surrogate", "shrink", "prediction", "compensation")
CHOICES: dict[str, tuple[object, ...]] = {
    "components": (1, 2, 3, 5),
    "schedule": ("delayed", "sync"),
    "delay": (0, 2, 7),
    "accumulate": (1, 3),
    "microbatch_size": (1, 7),
    "replay": ("recompute", "stash"),
    "feedback": (0, 0.5),
    "one_hop": ("true",),
    "method": METHODS,
    "optim": ("adamw", "sgd"),
    "optim.correction": (*CORRECTIONS, "nesterov", "none"),
    "optim.predict": ("forward", "backward"),
    "optim.precision": ("bf16",),
    "optim.layer_decay": (0.7,),
    "head.weight": (0, 1),
    "head.soft": (0.5,),
    "head.lr": (0.01,),
    "student": ("none",),
    "student.mix": (0.3, 1),
    "student.soft": (0.5,),
    "student.depth": (0, 2),
    "student.optimizer": ("adamw",),
    "predictor.enabled": ("true",),
    "predictor.labels": ("false",),
    "model.checkpointing": ("true",),
    "transport.wire_dtype": ("bfloat16", "int8"),
    "transport.credits": (9,),
    "eval.every": (1, 2),
    "data.validation": (100,),
    "report.salience": (2,),
}


def drawn(seed: int, text: Path, out: Path) -> Config:
    """The first config of this seed that is not refused."""
    draw = random.Random(seed)
    for _ in range(100):
        words = list(draw.choice((*ON_IMAGES, *ON_TEXT)))
        words += ["data=text", f"data.path={text}"] if "data.context=8" in words else []
        keys = draw.sample(sorted(CHOICES), draw.randint(3, 8))
        words += [f"{key}={draw.choice(CHOICES[key])}" for key in keys]
        words.append(f"checkpoint.every={draw.choice((1, 2, 3))}")
        try:
            return compose([*CUT_DOWN, *words, f"out={out}"])
        except ConfigError:
            continue
    raise AssertionError("a hundred configs were refused")


@pytest.mark.parametrize("seed", range(DRAWS))
def test_what_is_accepted_trains_and_goes_on_as_if_it_had_not_been_stopped(seed, tmp_path):
    config = drawn(seed, write_text(tmp_path), tmp_path / "whole")
    launch(config)
    assert checkpoint_steps(tmp_path / "whole")[-1] == STEPS

    cut = without_its_end(tmp_path / "whole", tmp_path / "cut", STEPS)
    config.out, config.resume = str(cut), "auto"
    launch(config)
    last = f"checkpoints/step-{STEPS}"
    assert_same_tensors(tmp_path / "whole" / last, cut / last)
    assert scores(cut) == scores(tmp_path / "whole")
