"""The head as a stand-in for the parents: what it adds to a late gradient."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mach.component import Component, Late

B, D, C, M = 8, 6, 3, 4


class Keep:
    """An update that takes no step: the gradients stay to be looked at."""

    def step(self, index):
        return torch.zeros(())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def late_gradients(parent, weight=0.0, correction=1.0, moved=0.1, replay="recompute", head=None):
    """Body and head after a backward with the parent's gradient of an old activation, and what
    went into it: the activation then, the input, the targets."""
    body = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    head = nn.Linear(D, C) if head is None else head
    x, y = torch.randn(B, D), torch.randint(C, (B,))
    component = Component(
        body,
        head,
        Keep(),
        head_update=Keep(),
        head_weight=weight,
        late=Late(replay, surrogate=correction),
        accumulate=M,
    )
    sent = component.forward(0, x, None, y, staleness=1)
    with torch.no_grad():
        for p in body.parameters():
            p.add_(moved * torch.randn_like(p))  # the steps in between
    component.backward(0, parent(head, sent, y))
    return body, head, sent, x, y


def slope(head, h, y):
    at = h.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(head(at), y) / M, at)[0]


def gradients(module):
    return [p.grad for p in module.parameters()]


def of_fresh(body, x, seed):
    """Gradients of a body, run now, for a gradient of its output."""
    body = copy.deepcopy(body)
    body.zero_grad()
    h = body(x)
    h.backward(seed(h.detach()))
    return gradients(body)


def test_a_head_that_draws_random_numbers_adds_nothing_where_nothing_has_moved():
    """It draws the same ones at both activations, or their difference would be noise."""
    G = torch.randn(B, D)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(D, C))
    body, _, _, x, _ = late_gradients(lambda *_: G, moved=0.0, head=head)
    for got, expected in zip(gradients(body), of_fresh(body, x, lambda h: G), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_late_gradient_changes_as_the_heads_has_changed():
    G = torch.randn(B, D)
    weight, c = 0.3, 0.7
    body, head, sent, x, y = late_gradients(lambda *_: G, weight, c)

    def seed(h):
        now, then = slope(head, h, y), slope(head, sent, y)
        return G + weight * now + c * (now - then)

    assert not torch.equal(sent, body(x))
    for got, expected in zip(gradients(body), of_fresh(body, x, seed), strict=True):
        torch.testing.assert_close(got, expected)


def test_where_the_parent_is_as_the_head_the_late_gradient_is_the_fresh_one():
    body, head, _, x, y = late_gradients(slope)
    for got, expected in zip(
        gradients(body), of_fresh(body, x, lambda h: slope(head, h, y)), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_the_head_itself_learns_from_the_present_activation_alone():
    body, head, _, x, y = late_gradients(lambda _, h, __: torch.randn_like(h))
    alone = copy.deepcopy(head)
    alone.zero_grad()
    (F.cross_entropy(alone(body(x).detach()), y) / M).backward()
    for got, expected in zip(gradients(head), gradients(alone), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("options", [{"moved": 0.0}, {"replay": "stash"}])
def test_nothing_is_added_where_the_gradient_fits(options):
    """Because nothing has moved, or because the graph of then is back-propagated."""
    found = []
    for correction in (0.0, 1.0):
        torch.manual_seed(1)
        body, *_ = late_gradients(
            lambda _, h, __: torch.ones_like(h), correction=correction, **options
        )
        found.append(gradients(body))
    for without, with_it in zip(*found, strict=True):
        torch.testing.assert_close(with_it, without)
