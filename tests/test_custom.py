"""A network of one's own: the same numbers as in one process, and what mach cannot train."""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import brought
import mach
from clouds import clouds, make, weights
from kept import save
from mach import runfolder
from mach.api import _config
from mach.component.losses import target_loss
from mach.config import DigitsConfig, StudentConfig, TextConfig
from mach.configfile import from_mapping, from_yaml, load, to_yaml
from mach.data import Batches, Dataset, open_dataset
from mach.errors import ConfigError, DataError
from mach.launcher.compose import compose
from mach.launcher.preflight import _goes_on_from, preflight
from mach.metrics import Task
from mach.models import gpt, mlp, resnet
from mach.models.defaults import student_for
from mach.models.factory import locate
from mach.shapes import TensorSpec
from mach.trainer import Assembly, Oracle, settle
from mach.trainer.settle import inherit
from runs import SMALL, assert_same_tensors, result, scores
from spawn import TORCHRUN, TRAIN, assert_none_left, run

CPU = torch.device("cpu")
TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def dataset():
    return clouds()


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Dataset:
    file = tmp_path_factory.mktemp("text") / "letters.txt"
    file.write_bytes(b"to be or not to be, that is the question: " * 40)
    return open_dataset(TextConfig(path=str(file), context=8, test_samples=32))


def own(factory: str, components: int = 2, model: dict | None = None, **overrides: object):
    """A small run of a network in tests/brought.py."""
    values = asdict(make(components, **overrides))
    network = {"name": "custom", "factory": f"brought:{factory}", **(model or {})}
    return from_mapping({**values, "model": network})


# --- the chain is the network ------------------------------------------------------------------


def back_propagation(config, dataset, top=None):
    """The blocks as the factory returns them, trained by `loss.backward()` in one process."""
    oracle = Oracle(config, dataset)  # for its first weights and its optimizers, no more
    components = [t.worker.component for t in oracle.trainers]
    blocks = [
        block for c in components for name, block in c.body.named_children() if name != "stem"
    ]
    network = nn.Sequential(*blocks, components[-1].head)
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    for step in range(config.steps):
        for b in range(step * config.accumulate, (step + 1) * config.accumulate):
            x, y = batches.train(b)
            loss = target_loss(network(x), components[-1].targets(y))
            (loss / config.accumulate).backward()
        for component in components:
            component._update.step(step)
    return weights(oracle)


@pytest.mark.parametrize(
    "factory", ["vectors", "uneven", "with_logits", "not_for_meta", "complex_weights", "orthogonal"]
)
@pytest.mark.parametrize("components", [1, 2, 3])
def test_without_delay_the_chain_is_the_network_bit_by_bit(dataset, factory, components):
    config = own(factory, components, steps=5, model={"logits": factory == "with_logits"})
    oracle = Oracle(config, dataset)
    oracle.run()
    reference = back_propagation(config, dataset)
    mine = weights(oracle)
    assert mine.keys() == reference.keys()
    for name, value in mine.items():
        assert torch.equal(value, reference[name]), name


@pytest.mark.parametrize(("factory", "logits"), [("writer", False), ("writer_with_logits", True)])
def test_a_language_model_of_ones_own_is_the_network_bit_by_bit(letters, factory, logits):
    config = own(factory, 3, steps=5, model={"logits": logits})
    oracle = Oracle(config, letters)
    found = oracle.run()
    for name, value in back_propagation(config, letters).items():
        assert torch.equal(weights(oracle)[name], value), name
    assert 0 < found["chain"][-1]["bits_per_byte"] < 9


def test_the_cut_changes_no_weight(dataset):
    def by_block(components, **model):
        config = own("vectors", components, model={"arguments": {"depth": 5}, **model})
        return {n.partition(".")[2]: v for n, v in weights(Oracle(config, dataset)).items()}

    whole = by_block(1)
    for cut in (by_block(2), by_block(3, balance=[1, 3, 1]), by_block(5)):
        assert cut.keys() == whole.keys()
        assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_first_weights_are_those_that_the_factory_draws_and_depend_on_the_seed(dataset):
    one, other = (weights(Oracle(own("vectors", 1, seed=seed), dataset)) for seed in (0, 1))
    assert not torch.equal(one["0.block0.weight"], other["0.block0.weight"])


def test_delay_and_students_run_on_every_rank_of_activation(dataset, letters):
    """Vectors by an MLP, images by convolutions, positions by a causal transformer."""
    digits = open_dataset(DigitsConfig())
    small = {"enabled": True, "width": 8}
    for factory, data, kind in [
        ("vectors", dataset, mlp.ResidualBlock),
        ("picture", digits, resnet.Convolve),
        ("writer", letters, gpt.Block),
    ]:
        config = own(factory, 2, delay=1, steps=3, student=small, eval={"samples": 8})
        oracle = Oracle(config, data)
        student = oracle.trainers[1].worker.component.student.network
        assert any(isinstance(part, kind) for part in student.modules()), factory
        found = oracle.run()
        assert [(w["first"], w["last"]) for w in found["windows"]] == [(1, 1)]
        assert all(row["params"] > 0 and row["loss"] > 0 for row in found["chain"])


def test_a_students_guess_sees_no_later_token(letters):
    """It would tell the heads above it what they are to predict."""
    config = own("writer", 2, student={"enabled": True, "width": 8})
    student = Oracle(config, letters).trainers[1].worker.component.student.network
    tokens = torch.arange(16).view(2, 8)
    other = tokens.clone()
    other[:, -1] += 1
    assert torch.equal(student(tokens)[:, :-1], student(other)[:, :-1])


@pytest.mark.parametrize(
    ("sample", "shape"),
    [((3, 16, 16), (16, 12)), ((3, 16, 16), (17, 12)), ((6, 5), (6, 12)), ((7, 3), (4, 12))],
)
def test_positions_are_made_of_patches_of_vectors_or_of_anything(sample, shape):
    """16 patches of an image, with a class token 17; positions of a sequence; else an MLP."""
    task = Task(TensorSpec(sample), 4, "accuracy")
    student = student_for(TensorSpec(shape), task, StudentConfig(width=8))
    assert student(torch.randn(3, *sample)).shape == (3, *shape)


def test_a_head_and_a_student_of_ones_own_are_used(dataset):
    own_ones = {"head": "brought:own_head", "student": "brought:own_student"}
    config = own("vectors", 2, student={"enabled": True}, model=own_ones)
    parts = Oracle(config, dataset).trainers[1].worker.component.modules()
    assert [type(parts[name]) for name in ("head", "student")] == [nn.Linear, nn.Linear]
    assert parts["head"].bias is None


def test_a_head_draws_the_same_random_numbers_with_students_and_without(dataset):
    """It drew others: a student is trained through it, and drew from the same stream."""
    late = {"delay": 1, "head": {"weight": 0.1}, "model": {"head": "brought:drawing_head"}}
    with_students, without = (
        Oracle(own("vectors", 3, student={"enabled": enabled}, **late), dataset)
        for enabled in (True, False)
    )
    for oracle in (with_students, without):
        oracle.run()
    for part in ("body", "head"):
        for name, value in weights(without, part).items():
            assert torch.equal(weights(with_students, part)[name], value), name


def test_what_a_student_is_trained_through_draws_anew_for_every_microbatch(dataset):
    config = own("vectors", 2, student={"enabled": True}, model={"head": "brought:drawing_head"})
    component = Oracle(config, dataset).trainers[1].worker.component
    dropped = []
    dropout, _ = component.modules()["head"]
    dropout.register_forward_hook(lambda _, args, out: dropped.append((out == 0).flatten()))
    x, y = Batches(dataset, 0, 8, CPU).train(0)
    for _ in range(3):
        component.distil(x, torch.ones(8, 12), y)
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[1], dropped[2])


def test_of_a_student_that_is_frozen_in_part_the_rest_learns(dataset):
    halves = {"student": "brought:half_frozen_student"}
    oracle = Oracle(own("vectors", 2, student={"enabled": True}, model=halves), dataset)
    student = oracle.trainers[1].worker.component.student.network
    before = {name: value.clone() for name, value in student.state_dict().items()}
    oracle.run()
    moved = [name for name, value in student.state_dict().items() if (value != before[name]).any()]
    assert moved == ["1.weight", "1.bias"]


def test_a_head_with_nothing_to_learn_is_none_that_the_chain_feels(dataset):
    config = own("vectors", 3, model={"head": "brought:slice_as_head"}, head={"weight": 0.0})
    oracle = Oracle(config, dataset)
    oracle.run()
    for name, value in back_propagation(config, dataset).items():
        assert torch.equal(weights(oracle)[name], value), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factory", ["keeps_tables", "orthogonal"])
def test_what_dry_runs_leave_behind_in_a_module_can_be_used(dataset, factory, precision):
    """They left tensors of their own, without numbers, in a table that is made once."""
    brought.table.cache_clear()
    before = torch.get_rng_state()
    config = settle(own(factory, 2, optim={"precision": precision}), dataset)
    assert len(Assembly(config, dataset.task).payloads()) == 2
    assert torch.equal(torch.get_rng_state(), before)
    oracle = Oracle(config, dataset)
    oracle.run()
    assert all(bool(value.isfinite().all()) for value in weights(oracle).values())


def test_a_tensor_that_a_module_makes_when_it_is_imported_has_numbers(tmp_path, monkeypatch):
    (tmp_path / "constant.py").write_text("import torch\nONES = torch.ones(3)\ndef f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with torch.device("meta"):
        function = locate("model.head", "constant:f")
    assert function.__globals__["ONES"].sum() == 3


def test_dropout_with_probability_0_is_none(dataset):
    assert settle(own("no_dropout"), dataset).model.depth == 3


def test_a_table_needs_no_token_that_the_text_has_not(tmp_path):
    """Whether blocks see what they are to predict was tried with one that follows the last."""
    (tmp_path / "ab.txt").write_bytes(b"abb" * 300)
    text = open_dataset(TextConfig(path=str(tmp_path / "ab.txt"), context=8, test_samples=32))
    assert settle(own("small_table"), text).model.depth == 2


# --- what was found is kept --------------------------------------------------------------------


def test_the_number_of_blocks_is_found_and_kept_in_the_config(dataset):
    config = settle(own("uneven", 3), dataset)
    assert config.model.depth == 6
    assert config.bodies() == [range(2), range(2, 4), range(4, 6)]
    assert from_yaml(to_yaml(config)) == config
    assert settle(config, dataset) == config


@pytest.mark.parametrize("balance", ["params", "time"])
def test_the_large_block_is_left_to_itself(dataset, balance):
    """Wide enough that time is not all overhead: the second block takes as long as the others."""
    width = {"arguments": {"width": 12 if balance == "params" else 192}}
    config = own("uneven", 3, microbatch_size=64, model={"balance": balance, **width})
    found = settle(config, dataset).model.balance
    assert sum(found) == 6
    assert found[0] in (1, 2), found
    assert max(found) >= 3, found


def test_blocks_that_change_their_input_in_place_are_measured(dataset):
    config = own("in_place", 1, model={"balance": "time"}, student={"enabled": True})
    assert settle(config, dataset).model.balance == [4]


@pytest.mark.parametrize("balance", ["params", "time"])
def test_no_cut_is_put_where_a_block_changes_its_input_in_place(dataset, balance):
    assert settle(own("in_place", 2, model={"balance": balance}), dataset).model.balance == [2, 2]
    said = says(own("in_place", 3, model={"balance": balance}), dataset)
    assert "in place. Take inplace=True from its first layer, or cut elsewhere." in said


def test_a_config_that_is_not_settled_is_no_equal_cut(dataset):
    with pytest.raises(ConfigError, match="expected a config whose cut has been found"):
        own("vectors").bodies()
    assert len(make(2, model={"balance": "params"}).model.balance) == 6
    with pytest.raises(ConfigError, match=r"model.balance=params: expected .* Call mach.trainer"):
        make(2, model={"balance": "params"}).bodies()


# --- refused -----------------------------------------------------------------------------------


def says(config, dataset) -> str:
    with pytest.raises(ConfigError) as refused:
        settle(config, dataset)
    return str(refused.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("missing", "brought:missing: expected a function missing in module brought; it has none"),
        ("not_a_function", "expected a function; got int"),
        ("raises", "expected brought:raises to return; it raised RuntimeError: no such luck"),
        ("exits", r"expected brought:exits to return; it called sys.exit\(0\)"),
        ("nothing", "expected a list of nn.Module blocks or an nn.Sequential; got nothing"),
        ("empty", "expected a list of nn.Module .*; got an empty list"),
        ("one_module", "expected a list of nn.Module .*; got one Residual. Return its layers"),
        ("functions", "block 1: expected an nn.Module; got function"),
        (
            "shapes_that_do_not_meet",
            r"block 2 \(Sequential\): expected it to take what block 1 returns, float32\[12\] of "
            r"each sample; it begins with Linear\(in_features=16, .* shapes cannot be multiplied",
        ),
        ("returns_a_tuple", r"block 1 \(Pair\): expected one tensor .*float32\[12\].*; got tuple"),
        ("folds_the_batch", r"block 1 \(Flatten\): expected float\[2, ..\] .*; got float32\[24\]"),
        (
            "dropout",
            r"block 1 \(Sequential\): expected the same output float32\[2, 12\] for the same input "
            r".*apart. It has 1 = Dropout\(p=0.01, inplace=False\). Set dropout to 0",
        ),
        ("lazy", r"block 1 \(Sequential\): expected weights that have their shapes .*; 1.weight"),
        (
            "picky",
            r"block 1 \(Picky\): expected it to take float32\[2, 12\], numbers from -\S+ to \S+; "
            "it raised AssertionError: only zeros please",
        ),
        (
            "noise",
            r"block 2 \(Noisy\): expected the same output .*; got outputs up to 0\.\d+ apart",
        ),
        ("skips", r"block 2 \(Skips\): expected the same output"),
        ("turns", r"block 2 \(\w+\): expected buffers .*; it changed \S+_v?u?, float32"),
        ("counts", r"block 1 .*: expected buffers that a forward leaves .*; it changed 1.calls"),
        (
            "shared",
            r"block 2 .*: expected parameters of its own in component 2; 1.weight is weight of "
            "block 1 in component 1",
        ),
        ("nothing_to_train", r"component 1 \(blocks 1 to 1\): expected parameters to train"),
        ("unused", r"component 0 \(blocks 0 to 0\): expected parameters to train"),
        ("overwrites", r"block 1 .*: expected its input to stay .*component 1 .* in place"),
        ("overwrites_with_the_same", "block 1 .*: expected its input to stay .*component 1 "),
        ("overwrites_through_a_view", "block 1 .*: expected its input to stay .*component 0 "),
        ("own_random_numbers", r"block 0 \(Linear\): expected the same first weights"),
        ("vectors", None),
    ],
)
def test_blocks_that_mach_cannot_train_are_refused(dataset, factory, message):
    config = own(factory, 3 if factory == "shared" else 2)
    if message is None:
        settle(config, dataset)
        return
    said = says(config, dataset)
    print(said)
    assert re.search(message, said), said
    assert said.startswith(("model.factory=brought:", "component "))
    assert "\n" not in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"factory": "nowhere.at.all:f"}, "expected a module that can be imported; got none named"),
        ({"factory": "brought.py"}, "expected package.module:function; got 'brought.py'"),
        ({"arguments": {"heigth": 3}}, "raised TypeError: .*heigth"),
        ({"arguments": [3]}, r"model.arguments: expected names with values, .*; got \[3\]"),
        ({"arguments": "depth:3"}, "as in 'model.arguments=.*; got 'depth:3'. Put it in quotes"),
        ({"depth": 3}, r"expected model.depth=3 blocks; it returned 4"),
        ({"blocks": 2}, "model.blocks: expected none, as model.factory says"),
        ({"balance": [1, 2]}, r"sum to model.depth=4; got \[1, 2\], which is 3"),
        ({"logits": True}, r"model.logits=true: expected the last block to return \[4\] .*float32"),
        ({"head": "brought:wide_head"}, r"model.head: expected logits float32\[2, 4\] .*\[2, 5\]"),
        ({"head": "brought:nothing"}, "model.head=brought:nothing: .*raised TypeError"),
        ({"head": "brought:narrow_head"}, r"model.head: expected .* float32\[2, 12\], .*Runtime"),
        (
            {"head": "brought:narrow_head", "balance": "time"},
            r"model.head: expected it to train on float32\[8, 12\], .*; it raised RuntimeError",
        ),
        ({"head": "brought:lazy_head"}, "model.head=.*: expected weights that have their shapes"),
        ({"head": "brought:overwriting_head"}, "model.head: expected its input .* in place"),
        ({"student": "brought:own_head"}, "model.student=.*raised TypeError"),
        ({"student": "brought:overwriting_student"}, "model.student: expected its input .* place"),
        ({"student": "brought:frozen_student"}, "model.student: .*to train; Linear has none. Set"),
    ],
)
def test_a_wrong_value_of_the_model_is_refused(dataset, model, message):
    with pytest.raises(ConfigError, match=message):
        settle(own("vectors", model=model, student={"enabled": True}), dataset)


def test_blocks_are_tried_on_no_more_samples_than_a_microbatch_has(dataset):
    """A batch norm has no variance of one."""
    assert settle(own("normed", microbatch_size=2), dataset).model.depth == 2
    said = says(own("normed", microbatch_size=1), dataset)
    assert re.search(r"block 1 .*: expected it to take float32\[1, 12\].* more than 1 value", said)


def test_a_table_that_is_too_small_for_the_text_is_refused(letters):
    said = says(own("small_table"), letters)
    assert re.search(r"block 0 \(Embedding\): .*int64\[2, 8\], numbers from .*IndexError", said)


def test_a_module_that_exits_when_it_is_imported_is_a_mistake(dataset, tmp_path, monkeypatch):
    """It is what a script without `if __name__` does, and the command once exited with 0."""
    (tmp_path / "exiting.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = says(own("vectors", model={"factory": "exiting:blocks"}), dataset)
    assert said.endswith("expected exiting to be imported; importing exiting called sys.exit()")


def test_an_attribute_that_is_missing_during_an_import_is_not_the_function(
    dataset, tmp_path, monkeypatch
):
    (tmp_path / "halfway.py").write_text("import math\nmath.tau_over_two\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = says(own("vectors", model={"factory": "halfway:blocks"}), dataset)
    assert "importing halfway raised AttributeError: module 'math' has no attribute" in said


def test_more_components_than_blocks_are_refused(dataset):
    said = says(own("vectors", 5), dataset)
    assert said.startswith("components: expected at most 4, one for each block that model.factory=")


@pytest.mark.parametrize("model", [{"arguments": {"peeks": True}}, {"factory": "late_peeker"}])
def test_blocks_that_see_the_token_they_are_to_predict_are_refused(letters, model):
    factory = model.get("factory", "writer")
    said = says(own(factory, model={"arguments": model.get("arguments", {})}), letters)
    assert "expected blocks that see no later token" in said


def test_shared_parameters_in_one_component_are_allowed(dataset):
    config = own("shared", 2, model={"balance": [1, 2]})
    oracle = Oracle(config, dataset)
    oracle.run()
    body = oracle.trainers[1].worker.component.body
    assert body.block1.weight is body.block2[1].weight


# --- in processes ------------------------------------------------------------------------------

FACTORY = """
from torch import nn


def blocks(width=16):
    return [nn.Linear(64, width), *(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width),
            nn.ReLU()) for _ in range(3))]


def flat(width=16):
    return [nn.Flatten(), *blocks(width)]


def head(activation, task):
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(activation.shape[0], task.classes))
"""

OURS = [word for word in SMALL if not word.startswith("model.")]
CUSTOM = [*OURS, "model=custom", "model.factory=mine:flat", "model.arguments={width:12}"]
DROPPING = [*CUSTOM, "model.head=mine:head"]


@pytest.mark.timeout(400)
def test_a_file_in_the_folder_where_the_command_is_typed_is_trained_by_processes(
    tmp_path, monkeypatch
):
    """The factory is found there by the launcher, by its ranks and by those of torchrun; the ranks
    train what the oracle trains, cut as has been measured before the run, with heads that draw
    random numbers."""
    (tmp_path / "mine.py").write_text(FACTORY)
    done = run([*TRAIN, *DROPPING, "model.balance=time", "out=run"], tmp_path)
    assert done.code == 0, done
    config = load(tmp_path / "run" / "config.yaml")
    assert config.model.depth == 5
    assert isinstance(config.model.balance, list)
    balance = f"model.balance={config.model.balance}".replace(" ", "")
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "mach.train", *DROPPING, balance, "out=other"]
    other = run(command, tmp_path, OMP_NUM_THREADS="1")
    assert other.code == 0, other
    assert scores(tmp_path / "other") == scores(tmp_path / "run")
    assert_same_tensors(*(tmp_path / out / "checkpoints/step-20" for out in ("run", "other")))
    monkeypatch.chdir(tmp_path)
    oracle = Oracle(config, open_dataset(config.data)).run()
    assert oracle["chain"] == result(tmp_path / "run")["chain"]
    assert_none_left(tmp_path)


@pytest.mark.parametrize("resume", ["auto", "run"])
def test_a_run_that_goes_on_keeps_its_cut_and_does_not_measure_again(tmp_path, resume):
    """No measurement would find [1, 3] of four equal blocks."""
    overrides = ["components=2", "model=custom", "model.factory=brought:flat", "launch.device=cpu"]
    out = tmp_path / ("run" if resume == "auto" else "new")
    asked = compose([*overrides, "model.balance=time", f"out={out}"])
    if resume != "auto":
        asked = replace(asked, resume=str(tmp_path / resume))
    before = compose([*overrides, "model.balance=[1,3]", "model.depth=4", f"out={tmp_path}/run"])
    runfolder.claim(tmp_path / "run", before)
    if resume == "auto":
        found = preflight(replace(asked, resume="auto"), out, 2)
    else:
        found = inherit(asked, _goes_on_from(asked, out))
    assert found.model == before.model
    assert load(tmp_path / "run" / "config.yaml").model == before.model


@pytest.mark.parametrize(
    "model", [{"factory": "brought:tied"}, {"head": "brought:reading_head"}], ids=["tied", "head"]
)
def test_a_run_of_a_network_that_meta_cannot_have_goes_on(tmp_path, model):
    asked = own("flat_of_12", model=model)  # make's data is digits
    digits = open_dataset(asked.data)
    config = settle(asked, digits)
    oracle = Oracle(config, digits)
    oracle.run()
    save(oracle, config, tmp_path / "run")
    found = preflight(replace(asked, steps=9, resume=str(tmp_path / "run")), tmp_path / "new", 2)
    assert found.model == config.model


def test_what_two_layers_share_is_counted_once():
    config = own("tied", 1)
    oracle = Oracle(config, open_dataset(config.data))
    body = oracle.trainers[0].worker.component.body
    assert oracle.assembly.costs().bodies[0].params == sum(p.numel() for p in body.parameters())


@pytest.mark.timeout(200)
def test_a_mistake_in_the_factory_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    done = run([*TRAIN, *CUSTOM, "model.factory=mine:blocks", "out=run"], tmp_path)
    assert done.code == 2, done
    assert re.match(
        r"mach: model.factory=mine:blocks: block 0 \(Linear\): expected it to take the raw sample, "
        r"float32\[8, 8\] of each sample; it begins with Linear\(in_features=64",
        done.stderr,
    ), done
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert_none_left(tmp_path)


# --- from Python -------------------------------------------------------------------------------


def test_fit_trains_the_chain_in_this_process_as_the_config_does():
    values = {"components": 2, "steps": 3, "student": {"enabled": False}}
    found = mach.fit(brought.flat, {"name": "digits"}, processes=False, **values)
    model = {"name": "custom", "factory": "brought:flat"}
    config = from_mapping({**values, "model": model, "data": {"name": "digits"}})
    assert found["chain"] == Oracle(config, open_dataset(config.data)).run()["chain"]


@pytest.mark.parametrize(
    ("array", "place", "value", "says"),
    [
        ("y_test", 3, 9, "y_test: expected labels 0 to 3; got 9 at index 3"),
        ("x_train", (7, 2), np.nan, "x_train: expected finite numbers.*; got nan at sample 7"),
    ],
)
def test_fit_looks_at_the_data_in_this_process_too(tmp_path, array, place, value, says):
    random = np.random.default_rng(0)
    arrays = {f"x_{split}": random.normal(size=(32, 8, 8)) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(32) % 4 for split in ("train", "test")}
    arrays[array][place] = value
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=says):
        mach.fit(brought.flat, tmp_path / "mine.npz", processes=False, components=2, steps=2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"out": "run"}, "out: expected none with processes=False, .*; got run. Set processes"),
        ({"resume": "nowhere"}, "resume: expected none with processes=False"),
        ({"checkpoint": {"every": 5}}, "checkpoint.every: expected none with processes=False"),
        ({"report": {"trace": True}}, "report.trace: expected none with processes=False"),
        ({"report": {"wandb": "offline"}}, "report.wandb: expected none with processes=False"),
        ({"faults": {"kind": "kill"}}, "faults.kind: expected none with processes=False"),
        ({"launch": {"name": "gang"}}, "launch.name: expected none with processes=False"),
        ({"launch": {"device": "cuda"}}, "launch.device=cuda: expected a GPU, found none"),
    ],
)
def test_fit_refuses_what_it_cannot_have_in_this_process(tmp_path, monkeypatch, values, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        mach.fit(brought.flat, {"name": "digits"}, processes=False, components=2, **values)
    assert list(tmp_path.iterdir()) == []


def test_fit_does_not_go_on_with_a_run_without_saying_where():
    with pytest.raises(ConfigError, match=r"resume=auto: .* got none. Say out=FOLDER"):
        mach.fit(brought.flat, {"name": "digits"}, components=2, resume="auto")


def test_fit_takes_a_path_for_the_kind_of_file_it_is(tmp_path):
    names = {"mine.npz": "npz", "words.txt": "text", ".": "idx"}
    for file, name in names.items():
        (tmp_path / file).touch()
        found = _config(brought.flat, tmp_path / file, True, {"model": {"balance": "time"}}).data
        assert (found.name, Path(found.path)) == (name, tmp_path / file)


def test_fit_takes_keys_as_a_command_line_has_them():
    values = {"optim.lr": 0.5, "optim": {"clip": 2.0}, "model.balance": "params", "steps": 3}
    found = _config(brought.flat, "mine.npz", True, values)
    assert (found.optim.lr, found.optim.clip, found.steps) == (0.5, 2.0, 3)
    assert found.model.balance == "params"
    assert found.model.factory == "brought:flat"


def test_fit_says_what_to_do_with_arrays():
    with pytest.raises(ConfigError, match=r"expected a file.*; got x_train as an array. Save it"):
        mach.fit(brought.flat, {"x_train": np.zeros((3, 2))}, processes=False)


def test_fit_refuses_what_other_processes_cannot_import():
    def inner():
        return brought.flat()

    for function in (inner, lambda: brought.flat()):
        with pytest.raises(ConfigError, match="expected a function at the top of a module"):
            mach.fit(function, {"name": "digits"}, processes=False)
    with pytest.raises(ConfigError, match="other processes can import; got blocks of the program"):
        mach.fit("__main__:blocks", {"name": "digits"})
    with pytest.raises(ConfigError, match="expected schedule=sync or delayed in one process"):
        mach.fit(brought.flat, {"name": "digits"}, processes=False, schedule="free")


@pytest.mark.parametrize("processes", [True, False])
def test_fit_in_the_body_of_the_module_that_processes_import_is_refused(
    tmp_path, monkeypatch, processes
):
    """Each of them started a run of its own, whose processes did so, too."""
    call = f"mach.fit('calls:blocks', {{'name': 'digits'}}, components=2, processes={processes})"
    (tmp_path / "calls.py").write_text(f"import mach\nfrom brought import flat as blocks\n{call}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"mach.fit: .* call from calls while it is imported"):
        mach.fit("calls:blocks", {"name": "digits"}, components=2, processes=processes)
    assert not (tmp_path / "runs").exists()


# --- the example -------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_the_example_trains_a_hugging_face_model_by_the_command_it_opens_with(tmp_path):
    pytest.importorskip("transformers", reason="needs pip install 'mach[examples]'")
    example = Path(__file__).parents[1] / "examples" / "hugging_face.py"
    shutil.copy(example, tmp_path)
    (tmp_path / "FILE").write_bytes(b"to be or not to be, that is the question: " * 40)
    opening = ast.get_docstring(ast.parse(example.read_text()))
    command = re.search(r"mach train (.*?)\n\n", opening, re.DOTALL)[1].replace("\\\n", " ")
    smaller = "model.arguments={layers:1,width:16,context:16}"
    words = [*command.split(), *OURS, smaller, "data.context=16", "data.test_samples=32"]
    done = run([*TRAIN, *words, "steps=4", "out=run"], tmp_path, deadline_s=300)
    assert done.code == 0, done
    assert 0 < result(tmp_path / "run")["chain"][-1]["bits_per_byte"] < 9
    assert load(tmp_path / "run" / "config.yaml").model.depth == 3
    assert_none_left(tmp_path)
