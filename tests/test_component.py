"""A component alone: its gradients, compared with autograd on the whole network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mach.component import Ages, Component, Late, Student
from mach.component.losses import distillation_loss, scale_gradient

B, D, C = 8, 6, 3


class Keep:
    """An update that takes no step: the gradients stay to be looked at."""

    def step(self, index):
        return torch.zeros(())


class Descend:
    """Plain gradient descent, and a count of its steps."""

    def __init__(self, module, rate=0.1):
        self.parameters, self.rate = list(module.parameters()), rate

    def step(self, index):
        with torch.no_grad():
            for p in self.parameters:
                p -= self.rate * p.grad
                p.grad = None
        return torch.zeros(())


def linear():
    return nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch():
    return torch.randn(B, D), torch.randint(C, (B,))


def gradients(module):
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_body_gradient_is_that_of_head_loss_plus_the_parents_inner_product(replay):
    body, head = linear(), nn.Linear(D, C)
    x, y = batch()
    parent_gradient = torch.randn(B, D)
    component = Component(
        body, head, Keep(), head_weight=0.3, feedback=0.5, accumulate=4, late=Late(replay=replay)
    )

    sent_up = component.forward(0, x, None, y)
    sent_down = component.backward(0, parent_gradient)
    mine = gradients(body)

    reference, leaf = copy.deepcopy(body), x.clone().requires_grad_()
    reference.zero_grad()
    h = reference(leaf)
    loss = 0.3 * F.cross_entropy(head(h), y) / 4 + (h * parent_gradient).sum()
    loss.backward()
    assert torch.equal(sent_up, h.detach())
    for got, p in zip(mine, reference.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad)
    torch.testing.assert_close(sent_down, 0.5 * leaf.grad)


def test_a_head_learns_in_full_whatever_its_weight_on_the_body():
    x, y = batch()
    wanted = None
    for weight in (0.0, 0.1, 1.0):
        torch.manual_seed(1)
        body, head = linear(), nn.Linear(D, C)
        component = Component(body, head, Keep(), head_update=Keep(), head_weight=weight)
        component.forward(0, x, None, y)
        component.backward(0, torch.zeros(B, D))
        wanted = wanted or gradients(head)
        assert all(map(torch.equal, gradients(head), wanted))
    assert any(p.abs().sum() > 0 for p in wanted)


def test_with_head_weight_0_the_body_does_not_know_of_its_head():
    x, y = batch()
    body = linear()
    component = Component(body, nn.Linear(D, C), Keep(), head_weight=0.0)
    component.forward(0, x, None, y)
    component.backward(0, torch.zeros(B, D))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(body))


def test_recompute_evaluates_the_gradient_at_the_present_weights():
    body, head = linear(), nn.Linear(D, C)
    x, y = batch()
    parent_gradient = torch.randn(B, D)
    component = Component(body, head, Keep(), head_weight=0.0)
    component.forward(0, x, None, y, staleness=1)
    with torch.no_grad():
        for p in body.parameters():
            p.add_(0.1)  # the step in between
    component.backward(0, parent_gradient)

    reference = copy.deepcopy(body)
    reference.zero_grad()
    reference(x).backward(parent_gradient)
    for p, q in zip(body.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_stash_evaluates_the_gradient_at_the_weights_of_the_forward():
    body, head = linear(), nn.Linear(D, C)
    x, y = batch()
    parent_gradient = torch.randn(B, D)
    reference = copy.deepcopy(body)  # the weights of the forward
    component = Component(body, head, Descend(body), head_weight=0.0, late=Late(replay="stash"))
    component.forward(0, x, None, y, staleness=2)
    for number in (1, 2):  # two steps on other microbatches
        component.forward(number, *batch(), y)
        component.backward(number, torch.randn(B, D))
        component.step()
    component.backward(0, parent_gradient)

    reference(x).backward(parent_gradient)
    for p, q in zip(body.parameters(), reference.parameters(), strict=True):
        assert not torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)
    assert component.ages == Ages(total=2, gradients=3, oldest=2)
    component.read_totals()
    assert component.ages == Ages(total=2, gradients=3, oldest=2), "of the whole run"


@pytest.mark.parametrize(("replay", "age"), [("recompute", 0), ("stash", 1)])
def test_what_is_trained_alone_is_as_old_as_the_weights_it_is_trained_at(replay, age):
    """Its wait for a gradient that never came counted as the age of one."""
    body, head = linear(), nn.Linear(D, C)
    component = Component(body, head, Descend(body), late=Late(replay=replay))
    x, y = batch()
    component.forward(0, x, None, y, staleness=1)
    component.forward(1, x, None, y)
    component.backward(1, torch.randn(B, D))
    component.step()
    component.backward(0, None, alone=True)
    assert component.ages == Ages(total=age, gradients=2, oldest=age)


def test_weight_versions_live_only_as_long_as_their_graphs():
    import gc
    import weakref

    body = linear()
    component = Component(body, nn.Linear(D, C), Descend(body), late=Late(replay="stash"))
    x, y = batch()
    component.forward(0, x, None, y, staleness=1)
    copies = [weakref.ref(t) for t in component.pending[0].weights.values()]
    component.forward(1, x, None, y)
    component.backward(1, torch.randn(B, D))
    component.step()
    assert all(ref() is not None for ref in copies)
    component.backward(0, torch.randn(B, D))
    gc.collect()
    assert all(ref() is None for ref in copies)


def test_student_loss_is_error_over_variance_plus_task_loss_and_trains_the_student_alone():
    body, head, network = linear(), nn.Linear(D, C), nn.Linear(D, D)
    x, y = batch()
    child = torch.randn(B, D)
    student = Student(network, Keep(), task_weight=0.7, accumulate=2)
    component = Component(body, head, Keep(), student=student, feedback=1.0)
    component.distil(x, child, y)
    assert all(p.grad is None for module in (body, head) for p in module.parameters())

    reference = copy.deepcopy(network)
    reference.zero_grad()
    prediction = reference(x)
    error = ((prediction - child) ** 2).mean() / child.var(correction=0)
    loss = error + 0.7 * F.cross_entropy(head(body(prediction)), y)
    (loss / 2).backward()
    for p, q in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(component.totals.student_loss, loss.detach())


def test_a_student_steps_once_for_every_m_microbatches():
    network = nn.Linear(D, D)
    student = Student(network, Descend(network), task_weight=0.0, accumulate=3)
    before = network.weight.clone()
    for _ in range(2):
        student.distil(torch.randn(B, D), torch.randn(B, D), lambda h: h.sum())
        assert torch.equal(network.weight, before)
    student.distil(torch.randn(B, D), torch.randn(B, D), lambda h: h.sum())
    assert not torch.equal(network.weight, before)
    assert student.steps == 1


def test_mixed_rows_come_from_the_student_and_return_no_gradient_to_the_child():
    body, head, network = linear(), nn.Linear(D, C), nn.Linear(D, D)
    x, y = batch()
    child = torch.randn(B, D)
    student = Student(network, Keep(), task_weight=0.0, accumulate=1)
    component = Component(body, head, Keep(), student=student, mix=0.25, feedback=1.0)
    h = component.forward(0, child, x, y)
    expected = child.clone()
    expected[:2] = network(x[:2]).detach()
    assert torch.equal(h, body(expected).detach())
    sent_down = component.backward(0, torch.randn(B, D))
    assert torch.equal(sent_down[:2], torch.zeros(2, D))
    assert (sent_down[2:] != 0).any()


def test_bf16_runs_the_network_in_bf16_and_the_loss_in_float32():
    body, head = linear(), nn.Linear(D, C)
    seen = []
    head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x, y = batch()
    component = Component(body, head, Keep(), precision="bf16", feedback=1.0)
    assert component.forward(0, x, None, y).dtype == torch.bfloat16
    sent_down = component.backward(0, torch.randn(B, D))
    assert seen == [torch.bfloat16]
    assert component.totals.loss.dtype == torch.float32
    assert sent_down.dtype == torch.float32


def test_distillation_loss_is_1_for_guessing_the_mean():
    target = torch.randn(1000, D) * 5 + 2
    guess = torch.full_like(target, float(target.mean()))
    torch.testing.assert_close(distillation_loss(guess, target), torch.tensor(1.0))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_scale_gradient_changes_the_gradient_and_not_the_value(factor):
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, factor)
    assert torch.equal(x, y)
    (y.sum() + 0 * x.sum()).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, factor))
