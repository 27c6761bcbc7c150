"""Residual networks: their shapes, their size, and their chain beside one process."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clouds import weights
from images import images, make_resnet
from mach import checkpoint
from mach.component.losses import target_loss
from mach.configfile import from_mapping
from mach.data import Batches, open_dataset
from mach.errors import ConfigError
from mach.launcher.compose import compose
from mach.metrics import Task
from mach.models import family_of
from mach.shapes import TensorSpec, output_spec
from mach.trainer import Assembly, Oracle
from runs import result
from spawn import TRAIN, assert_none_left, run

CPU = torch.device("cpu")
GREY, COLOUR = (8, 8), (3, 9, 7)


@pytest.fixture(scope="module")
def dataset():
    return images(*GREY)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- the network ---------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "published"), [(20, 0.27e6), (56, 0.85e6), (110, 1.7e6)])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_it_has_as_many_parameters_as_published(layers, published, norm):
    """He et al. (CVPR 2016), table 6, on CIFAR-10; given there with two digits."""
    config = make_resnet(1, model={"layers": layers, "width": 16, "norm": norm})
    task = Task(TensorSpec((3, 32, 32)), 10, "accuracy")
    component, _ = Assembly(config, task).component(0, torch.device("meta"))
    params = sum(p.numel() for m in component.modules().values() for p in m.parameters())
    assert params == pytest.approx(published, rel=0.02)


class Plain(nn.Module):
    """The same network, written as one function of its weights by the paper's formula."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.parts = nn.ModuleList(t.worker.component.body for t in oracle.trainers)
        self.head = oracle.trainers[-1].worker.component.head

    def forward(self, x):
        stem, *blocks = [module for body in self.parts for module in body]
        if x.ndim == 3:
            x = x[:, None]
        h = F.relu(stem.layers[1](F.conv2d(x, stem.layers[0].weight, padding=1)))
        for number, block in enumerate(blocks):
            a = h if number == 0 else F.relu(block.norm1(h))
            stride = 1 if h.shape[1] == block.conv2.weight.shape[0] else 2
            a = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
            a = F.conv2d(F.relu(block.norm2(a)), block.conv2.weight, padding=1)
            shortcut = torch.zeros_like(a)
            shortcut[:, : h.shape[1]] = h[:, :, ::stride, ::stride]
            h = shortcut + a
        h = F.relu(self.head[0](h)).mean((2, 3))
        return self.head[-1](h)


@pytest.mark.parametrize("shape", [GREY, COLOUR, (1, 5)])
def test_it_is_the_function_of_the_paper(shape):
    dataset = images(*shape)
    oracle = Oracle(make_resnet(2), dataset)
    x, _ = Batches(dataset, 0, 8, CPU).train(0)
    h = x
    for trainer in oracle.trainers:
        h = trainer.worker.component.body(h)
    logits = oracle.trainers[-1].worker.component.head(h)
    torch.testing.assert_close(Plain(oracle)(x), logits)


@pytest.mark.parametrize("shape", [GREY, COLOUR, (28, 28), (3, 32, 32), (1, 5), (2, 1, 1)])
def test_it_knows_the_shapes_a_dry_run_finds(shape):
    config = make_resnet(6)
    task = Task(TensorSpec(shape), 4, "accuracy")
    family = family_of(config, task)
    ends = list(range(1, 7))
    assert family.activations(ends) == super(type(family), family).activations(ends)
    with torch.device("meta"):
        for spec in family.activations(ends):
            assert output_spec(family.student(spec, config.student), task.sample) == spec
            assert output_spec(family.head(spec), spec).shape == (4,)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_student_of_any_size_ends_in_the_shape_of_the_child(width, depth):
    config = make_resnet(6, student={"width": width, "depth": depth})
    family = family_of(config, Task(TensorSpec(COLOUR), 4, "accuracy"))
    for spec in family.activations(range(1, 7)):
        with torch.device("meta"):
            student = family.student(spec, config.student)
        assert output_spec(student, TensorSpec(COLOUR)) == spec


# --- the chain -----------------------------------------------------------------------------


def back_propagation(config, dataset):
    """Ordinary training of the whole network: one forward, `loss.backward()`, one step."""
    oracle = Oracle(config, dataset)  # for its first weights and its optimizers, no more
    components = [t.worker.component for t in oracle.trainers]
    network = nn.Sequential(*(c.body for c in components), components[-1].head)
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    for step in range(config.steps):
        for b in range(step * config.accumulate, (step + 1) * config.accumulate):
            x, y = batches.train(b)
            (target_loss(network(x), y) / config.accumulate).backward()
        for component in components:
            component._update.step(step)
    return weights(oracle)


@pytest.mark.parametrize(
    ("cut", "norm", "optimizer"),
    [
        *product([[6], [3, 3], [2, 2, 2], [1, 2, 2, 1]], ["group", "batch"], ["muon"]),
        ([2, 1, 3], "group", "adamw"),
        ([2, 1, 3], "batch", "sgd"),
    ],
)
def test_without_delay_it_is_back_propagation_bit_by_bit(dataset, cut, norm, optimizer):
    """Five steps; no tolerance: cutting changes no operation, so no bit. Statistics included."""
    model = {"norm": norm, "balance": cut}
    config = make_resnet(len(cut), model=model, optim={"name": optimizer})
    oracle = Oracle(config, dataset)
    oracle.run()
    assert_same(weights(oracle), back_propagation(config, dataset))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_cut_does_not_change_the_network(dataset, norm):
    def trained(components):
        oracle = Oracle(make_resnet(components, model={"norm": norm}), dataset)
        oracle.run()
        return {name.partition(".")[2]: value for name, value in weights(oracle).items()}

    assert_same(trained(1), trained(4))


def test_students_leave_the_chain_as_it_is_bit_by_bit(dataset):
    trained = []
    for enabled in (False, True):
        oracle = Oracle(make_resnet(3, delay=1, student={"enabled": enabled}), dataset)
        trained.append((oracle.run(), weights(oracle)))
    (alone, without), (result, with_students) = trained
    assert_same(without, with_students)
    assert alone["chain"] == result["chain"]
    assert [(w["first"], w["last"]) for w in result["windows"]] == [(1, 1), (1, 2), (2, 2)]


def test_processes_give_the_weights_of_the_oracle_bit_by_bit(tmp_path):
    """With batch norm, whose statistics are a part of them, and images augmented."""
    overrides = [
        "model=resnet",
        "model.layers=8",
        "model.width=4",
        "model.groups=2",
        "model.norm=batch",
        "student.width=4",
        "data.augment=crop_flip",
        "data.padding=2",
        "data.samples=200",
        "components=3",
        "steps=4",
        "launch.device=cpu",
        "launch.threads=1",
        "report.wandb=off",
        "report.progress=false",
    ]
    done = run([*TRAIN, *overrides, "out=run"], tmp_path)
    assert done.code == 0, done
    assert_none_left(tmp_path)
    config = compose(overrides)
    oracle = Oracle(config, open_dataset(config.data))
    expected = oracle.run()
    assert result(tmp_path / "run")["chain"] == expected["chain"]
    assert result(tmp_path / "run")["windows"] == expected["windows"]
    saved = checkpoint.find(tmp_path / "run")
    for trainer in oracle.trainers:
        k = trainer.worker.index
        component, _ = oracle.assembly.component(k, CPU)
        checkpoint.load_weights(saved, k, component)
        for part, module in trainer.worker.component.modules().items():
            assert_same(component.modules()[part].state_dict(), module.state_dict())


def test_the_experiment_runs(tmp_path):
    """On random images, for two steps."""
    path, random = tmp_path / "images.npz", np.random.default_rng(0)
    values = {"x": random.integers(0, 256, (40, 28, 28), "u1"), "y": np.arange(40) % 10}
    np.savez(path, **{f"{key}_{s}": v for key, v in values.items() for s in ("train", "test")})
    config = compose(
        ["experiment=resnet-fashion", f"data.path={path}", "data.samples=30", "steps=2"]
    )
    found = Oracle(config, open_dataset(config.data)).run()
    assert len(found["chain"]) == 3
    assert len(found["windows"]) == 3
    assert found["staleness_steps"][0]["max"] == 1
    assert [len(blocks) for blocks in config.bodies()] == [3, 3, 3]


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "model", "says"),
    [
        (3, {"layers": 21}, r"model.layers: expected 6 n \+ 2.*got 21. The nearest are 20 and 26"),
        (3, {"layers": 7}, "model.layers: expected 8 or more; got 7"),
        (3, {"width": 0}, "model.width: expected 1 or more"),
        (3, {"norm": "layer"}, "model.norm: expected one of group, batch; got 'layer'"),
        (3, {"groups": 0}, "model.groups: expected 1 or more"),
        (3, {"width": 12}, "model.width: expected a multiple of model.groups=8.*; got 12"),
        (3, {"depth": 8}, "model.depth: expected 9, the blocks of model.layers=20; got 8"),
        (3, {"blocks": 2}, "model.blocks: expected none, as model.layers=20 .*; got 2"),
        (2, {"balance": [4, 4]}, r"model.balance: .* sum to 9, .* got \[4, 4\], which is 8"),
        (3, {"balance": [4, 5]}, "model.balance: expected 3 numbers"),
        (10, {}, "components: expected at most 9, one for each block of model.layers=20; got 10"),
    ],
)
def test_a_network_that_cannot_be_is_refused(components, model, says):
    with pytest.raises(ConfigError, match=says):
        from_mapping({"components": components, "model": {"name": "resnet", **model}})


def test_depth_may_repeat_what_layers_say():
    config = from_mapping({"components": 4, "model": {"name": "resnet", "layers": 56, "depth": 27}})
    assert [len(blocks) for blocks in config.bodies()] == [7, 7, 7, 6]
    batch = from_mapping({"model": {"name": "resnet", "width": 12, "norm": "batch"}})
    assert batch.model.width == 12  # no groups to share the channels


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (TensorSpec((40,)), r"model=resnet: expected images, .*; got samples of float32\[40\]"),
        (TensorSpec((64,), torch.int64), r"model=resnet: expected images.*int64\[64\]"),
        (TensorSpec((2, 3, 8, 8)), "model=resnet: expected images"),
        (TensorSpec((32, 32, 3)), r"channels last. Store them as x.transpose\(0, 3, 1, 2\)"),
        (TensorSpec((28, 28, 1)), "channels last"),
    ],
)
def test_what_is_no_image_is_refused(sample, says):
    with pytest.raises(ConfigError, match=says):
        Assembly(make_resnet(), Task(sample, 4, "accuracy"))


def test_a_batch_norm_of_single_values_is_refused():
    task = Task(TensorSpec((4, 3)), 4, "accuracy")  # 1 x 1 pixel in the third stage
    Assembly(make_resnet(microbatch_size=1), task)
    Assembly(make_resnet(microbatch_size=2, model={"norm": "batch"}), task)
    with pytest.raises(ConfigError, match=r"model.norm=batch: expected more than one"):
        Assembly(make_resnet(microbatch_size=1, model={"norm": "batch"}), task)


def test_text_and_vectors_are_refused_before_any_process_starts(tmp_path):
    text = tmp_path / "text"
    text.write_text("to be or not to be " * 200)
    done = run([*TRAIN, "model=resnet", "data=text", f"data.path={text}", "out=run"], tmp_path)
    assert done.code == 2, done
    assert done.stderr.startswith("mach: model=resnet: expected images"), done
    assert done.stderr.count("\n") == 1, done
    assert not (tmp_path / "run").exists()
