"""A body that runs its blocks again gives the same numbers and keeps less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from clouds import clouds, make, weights
from mach.component import Component, Late, Recomputing
from mach.config import ResNetConfig
from mach.metrics import Task
from mach.models import build_body
from mach.models.mlp import ResidualBlock
from mach.models.resnet import ResNet
from mach.shapes import TensorSpec
from mach.trainer import Oracle


class Keep:
    """Leaves the weights and their gradients as they are."""

    def step(self, index):
        return torch.zeros(())


@pytest.fixture(scope="module")
def dataset():
    return clouds()


def saved_bytes(module, x):
    """Bytes that autograd keeps from the forward to the backward, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    return sum(kept.values()), out


@pytest.mark.parametrize("schedule", ["delayed", "sync"])
@pytest.mark.parametrize("replay", ["recompute", "stash"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_no_number(dataset, schedule, replay, precision):
    """Weights, exits and windows: with students, stale gradients and stashed weights."""

    def run(checkpointing):
        config = make(
            3,
            schedule=schedule,
            delay=2,
            accumulate=1,
            replay=replay,
            model={"checkpointing": checkpointing, "blocks": 2},
            head={"weight": 0.1},
            optim={"precision": precision},
            student={"enabled": True},
        )
        oracle = Oracle(config, dataset)
        return oracle, oracle.run()

    (without, a), (with_it, b) = run(False), run(True)
    for part in ("body", "head"):
        mine, other = weights(without, part), weights(with_it, part)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert (a["chain"], a["windows"]) == (b["chain"], b["windows"])


def test_gradients_are_the_same_bit_by_bit():
    torch.manual_seed(0)
    body = nn.Sequential(*[ResidualBlock(16, 64) for _ in range(5)])
    again = Recomputing(copy.deepcopy(body))
    x = torch.randn(8, 16)
    for module in (body, again):
        module(x).square().sum().backward()
    assert body.state_dict().keys() == again.state_dict().keys()
    for p, q in zip(body.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_random_blocks_drop_the_same_when_they_run_again():
    torch.manual_seed(0)
    body = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)) for _ in range(3)])
    x = torch.randn(8, 16)
    gradients = []
    for module in (body, Recomputing(copy.deepcopy(body))):
        torch.manual_seed(1)
        out = module(x)
        torch.randn(100)  # whatever draws between forward and backward
        out.square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_a_batch_norm_counts_each_microbatch_once(staleness, replay):
    def counted(recomputing):
        torch.manual_seed(0)
        body = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3)])
        body = Recomputing(body) if recomputing else body
        component = Component(body, nn.Linear(6, 4), Keep(), late=Late(replay=replay), feedback=1.0)
        for b in range(4):
            component.forward(b, torch.randn(8, 6), None, torch.arange(8) % 4, staleness)
            component.backward(b, torch.randn(8, 6))
        return body.state_dict()

    without, with_it = counted(False), counted(True)
    assert without["0.1.num_batches_tracked"] == 4
    assert without.keys() == with_it.keys()
    assert all(torch.equal(without[name], with_it[name]) for name in without)


def test_without_gradients_nothing_runs_twice():
    calls = []
    block = nn.Linear(4, 4)
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    body = Recomputing(nn.Sequential(block))
    with torch.no_grad():
        body(torch.randn(2, 4))
    assert len(calls) == 1
    body(torch.randn(2, 4)).sum().backward()
    assert len(calls) == 3


def test_resnet_110_keeps_less_than_half():
    """Narrow, as the share does not depend on the width."""
    family = ResNet(
        ResNetConfig(layers=110, width=8), Task(TensorSpec((3, 16, 16)), 10, "accuracy"), 2
    )
    body = build_body(family, range(54), 0)
    x = torch.randn(2, 3, 16, 16)
    without, out = saved_bytes(body, x)
    with_it, again = saved_bytes(Recomputing(body), x)
    assert torch.equal(out, again)
    assert with_it <= 0.5 * without  # it is 0.25: of a block's four tensors its input
