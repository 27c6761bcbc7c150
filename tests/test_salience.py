"""What a component leans on: scores against their formulas, and a training that does not notice."""

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn
from torch.nn import functional as F

from clouds import clouds, make
from mach.component import Component, Student
from mach.component.join import Join
from mach.component.salience import integrated_gradients, salience
from mach.models.mlp import ResidualBlock
from mach.trainer import Oracle, Simulation

B, D, F_IN, C = 8, 6, 5, 3


class Keep:
    def step(self, index):
        return torch.zeros(())


class Lines:
    """Hooks that keep the log."""

    def __init__(self):
        self.kept = []

    def logged(self, record):
        self.kept.append(record)

    def stepped(self, step):
        pass

    def flushed(self, step, last):
        pass


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def block():
    return nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))


def batch():
    return torch.randn(B, D), torch.randn(B, F_IN), torch.randint(C, (B,))


def test_integrated_gradients_are_complete():
    """Over all sources and numbers they add up to what the loss changes from zeros to them."""
    network = nn.Sequential(nn.Linear(D + F_IN, 32), nn.GELU(), nn.Linear(32, C))
    h, x, y = batch()

    def loss(sources):
        joined = torch.cat([sources["child"], sources["input"]], 1)
        return F.cross_entropy(network(joined), y, reduction="sum")

    sources = {"child": 3 * h, "input": 3 * x}
    found = integrated_gradients(sources, loss)
    nothing = {name: torch.zeros_like(v) for name, v in sources.items()}
    change = loss(sources) - loss(nothing)
    torch.testing.assert_close(sum(v.sum() for v in found.values()), change, rtol=1e-4, atol=1e-4)
    assert {name: v.shape for name, v in found.items()} == {
        name: v.shape for name, v in sources.items()
    }


def normed():
    """Layers of the mlp. A LayerNorm bends the way from zero at a thousandth of it: points that
    were no denser there missed the bend, and with it most of the rise, at times even its sign."""
    return ResidualBlock(D, 16), nn.Sequential(nn.LayerNorm(D), nn.Linear(D, C))


def test_what_enters_alone_adds_what_the_loss_rises_by_without_it():
    body, head = normed()
    component = Component(nn.Sequential(body), head, Keep())
    h, x, y = batch()
    h = 3 * h
    scores = salience(component, h, x, y)
    rise = F.cross_entropy(head(body(0 * h)), y) - F.cross_entropy(head(body(h)), y)
    assert scores["salience/child/integrated"] == pytest.approx(rise.item(), rel=1e-5)


def test_what_enters_together_adds_together_what_the_loss_rises_by_without_both():
    join, (body, head) = Join(D, F_IN), normed()
    nn.init.zeros_(join.linear.bias)  # else what is divided by is large from the beginning
    component = Component(nn.Sequential(join, body), head, Keep())
    h, x, y = (10 * v if v.is_floating_point() else v for v in batch())
    scores = salience(component, h, x, y)
    with_both, without = (F.cross_entropy(head(body(join((a * h, a * x)))), y) for a in (1, 0))
    together = sum(scores[f"salience/{name}/integrated"] for name in ("child", "input"))
    # By quadrature; with 24 points spread evenly it was 0.07 off.
    assert together == pytest.approx((without - with_both).item(), abs=1e-3)


def test_integrated_gradients_are_those_of_captum():
    network = nn.Sequential(nn.Linear(D, 32), nn.GELU(), nn.Linear(32, C))
    h, _, y = batch()

    def loss(h):
        return F.cross_entropy(network(h), y.repeat(len(h) // B), reduction="none")

    theirs = IntegratedGradients(loss).attribute(h, n_steps=48, method="gausslegendre")
    ours = integrated_gradients({"child": h}, lambda sources: loss(sources["child"]).sum())
    torch.testing.assert_close(ours["child"], theirs.float(), rtol=1e-4, atol=1e-6)


def test_scores_are_their_formulas():
    head, network = nn.Linear(D, C), nn.Linear(F_IN, D)
    student = Student(network, Keep(), task_weight=0.0, accumulate=1)
    body = block()
    component = Component(body, head, Keep(), student=student)
    h, x, y = batch()
    scores = salience(component, h, x, y)
    for name, value in (("child", h), ("student", network(x).detach())):
        leaf = value.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(head(body(leaf)), y, reduction="sum"), leaf)
        first = -(g * value).sum(1).mean()
        second = first + 0.5 * ((g * value) ** 2).sum(1).mean()
        of = {key.rpartition("/")[2]: v for key, v in scores.items() if f"/{name}/" in key}
        assert of["pruning_first"] == pytest.approx(first.item(), rel=1e-4)
        assert of["pruning_second"] == pytest.approx(second.item(), rel=1e-4)
        assert of["gradient"] == pytest.approx(g.abs().sum(1).mean().item(), rel=1e-4)
        without = F.cross_entropy(head(body(torch.zeros_like(value))), y)
        rise = without - F.cross_entropy(head(body(value)), y)
        assert of["integrated"] == pytest.approx(rise.item(), rel=1e-4)
    weight = body[0].weight.abs().sum().item()
    assert scores["salience/child/weight"] == pytest.approx(weight)


def test_a_body_that_sees_the_input_leans_on_what_its_weights_take():
    """Cut off from its child, nothing is owed to the child."""
    join = Join(D, F_IN)
    with torch.no_grad():
        join.linear.weight[:, :D] = 0
    component = Component(nn.Sequential(join, *block()), nn.Linear(D, C), Keep())
    scores = salience(component, *batch())
    assert all(v == 0 for name, v in scores.items() if name.startswith("salience/child/"))
    assert all(v != 0 for name, v in scores.items() if name.startswith("salience/input/"))
    assert len(scores) == 10


def test_child_and_input_are_each_told_of_their_own_weights():
    join = Join(D, F_IN)
    component = Component(nn.Sequential(join, *block()), nn.Linear(D, C), Keep())
    scores, weight = salience(component, *batch()), join.linear.weight
    assert scores["salience/child/weight"] == pytest.approx(weight[:, :D].abs().sum().item())
    assert scores["salience/input/weight"] == pytest.approx(weight[:, D:].abs().sum().item())


def test_a_free_run_does_not_notice_that_somebody_looks():
    chains = []
    for every in (0, 2):
        free = {"schedule": "free", "delay": 1, "report": {"salience": every}}
        simulation = Simulation(make(3, **free, student={"enabled": True}), clouds())
        simulation.run()
        chains.append(simulation.result()["chain"])
        looked = [
            any("salience" in key for r in life.records for key in r) for life in simulation.lives
        ]
        assert looked == [every > 0] * 3
    assert chains[0] == chains[1]


def test_weights_are_the_same_bit_by_bit_and_lines_come_as_often_as_asked():
    tensors, logs = [], []
    for every in (0, 2):
        config = make(3, delay=1, student={"enabled": True}, report={"salience": every})
        hooks = [Lines() for _ in range(3)]
        oracle = Oracle(config, clouds(), hooks)
        oracle.run()
        components = [t.worker.component for t in oracle.trainers]
        modules = [m for c in components for m in c.modules().values()]
        tensors.append([v for m in modules for v in m.state_dict().values()])
        logs.append(
            [[line for line in h.kept if any("salience" in key for key in line)] for h in hooks]
        )
    assert all(map(torch.equal, *tensors))
    assert logs[0] == [[], [], []]
    assert [[line["step"] for line in log] for log in logs[1]] == [[2, 4, 6]] * 3
    sources = [{key.split("/")[1] for key in log[0] if "/" in key} for log in logs[1]]
    assert sources == [{"input"}, {"child", "student"}, {"child", "student"}]
