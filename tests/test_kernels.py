"""To Muon the kernel of a convolution is a matrix in the same memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clouds import make
from images import images, make_resnet
from mach.config import OptimConfig
from mach.errors import CheckpointError
from mach.optim import Optimizer
from mach.trainer import Assembly

STEPS = 4
CONFIG = make(optim={"clip": 0.0, "warmup": 0.0, "cosine": False, "muon_lr": 0.02}).optim


def optimizer_of(kernel):
    return Optimizer([("k", kernel)], CONFIG, steps=STEPS, matrices=frozenset("k"))


def reference(start, gradients):
    """torch's own Muon on a matrix whose rows are the output channels."""
    matrix = nn.Parameter(start.reshape(len(start), -1).clone())
    muon = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.0, momentum=CONFIG.muon_momentum)
    for gradient in gradients:
        matrix.grad = gradient.reshape(len(start), -1).clone()
        muon.step()
    return matrix.detach().reshape(start.shape)


@pytest.mark.parametrize(
    "shape", [(6, 4, 3, 3), (4, 8, 1, 1), (5, 3, 7), (8, 1, 3, 3), (2, 3, 2, 2, 2)]
)
def test_a_kernel_is_stepped_as_its_matrix_is_bit_by_bit(shape):
    torch.manual_seed(0)
    kernel, gradients = nn.Parameter(torch.randn(shape)), torch.randn(STEPS, *shape)
    wanted = reference(kernel.detach(), gradients)
    optimizer = optimizer_of(kernel)
    for step, gradient in enumerate(gradients):
        kernel.grad = gradient.clone()
        norm = optimizer.step(step)
        torch.testing.assert_close(norm, gradient.norm())
        assert kernel.grad is None
    assert torch.equal(kernel.detach(), wanted)
    assert {name: v.ndim for name, v in optimizer.state().items()} == {"k/momentum_buffer": 2}


def test_a_kernel_that_lies_channels_last_is_stepped_where_it_lies():
    """Its columns come in another order, so sums round otherwise (Muon's matrices are bfloat16)."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 4, 3, 3), torch.randn(STEPS, 6, 4, 3, 3)
    kernel = nn.Parameter(start.clone(memory_format=torch.channels_last))
    optimizer = optimizer_of(kernel)
    for step, gradient in enumerate(gradients):
        kernel.grad = gradient.clone(memory_format=torch.channels_last)
        optimizer.step(step)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kernel.detach(), reference(start, gradients), rtol=0, atol=2e-3)


def test_a_kernels_momentum_is_saved_and_goes_on_where_it_was():
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 4, 3, 3), torch.randn(STEPS, 6, 4, 3, 3)

    def stepped(kernel, optimizer, steps):
        for step in steps:
            kernel.grad = gradients[step].clone()
            optimizer.step(step)
        return kernel.detach()

    first = nn.Parameter(start.clone())
    before = optimizer_of(first)
    stepped(first, before, [0, 1])
    saved = {name: value.clone() for name, value in before.state().items()}
    second = nn.Parameter(first.detach().clone())
    after = optimizer_of(second)
    assert all(after.owns(name) for name in saved)
    after.load_state(saved)
    whole = stepped(first, before, [2, 3])
    assert torch.equal(stepped(second, after, [2, 3]), whole)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_what_an_optimizer_remembers_lies_as_its_parameter_does_after_a_resume(name):
    """Fused kernels go through both as they lie in memory."""
    torch.manual_seed(0)
    start = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    gradients = torch.randn(4, 6, 4, 3, 3).to(memory_format=torch.preserve_format)

    def stepped(kernel, optimizer, steps):
        for step in steps:
            kernel.grad = gradients[step].contiguous(memory_format=torch.channels_last)
            optimizer.step(step)
        return kernel.detach()

    def optimizer_of_rest(kernel):
        return Optimizer({"k": kernel}.items(), OptimConfig(name=name), steps=STEPS)

    first = nn.Parameter(start.clone())
    before = optimizer_of_rest(first)
    stepped(first, before, [0, 1])
    saved = {n: torch.empty(v.shape, dtype=v.dtype).copy_(v) for n, v in before.state().items()}
    second = nn.Parameter(first.detach().clone())
    after = optimizer_of_rest(second)
    after.load_state(saved)
    whole = stepped(first, before, [2, 3]).clone()
    kept = {n: v.clone() for n, v in saved.items()}
    assert torch.equal(stepped(second, after, [2, 3]), whole)
    assert all(torch.equal(saved[n], kept[n]) for n in saved), "what was saved is not stepped"


@pytest.mark.parametrize(
    ("was", "now"), [("muon", "adamw"), ("muon", "sgd"), ("sgd", "adamw"), ("adamw", "sgd")]
)
def test_the_state_of_another_optimizer_is_refused_by_name(was, now):
    kernel, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def made(name):
        named = {"k": kernel, "b": bias}.items()
        return Optimizer(named, OptimConfig(name=name), steps=STEPS, matrices=frozenset({"k"}))

    before = made(was)
    kernel.grad, bias.grad = torch.ones(4, 3), torch.ones(4)
    before.step(0)
    with pytest.raises(CheckpointError, match=f"optim.name={now}: expected of [kb] what it rem"):
        made(now).load_state(before.state())


def test_muon_takes_the_kernels_of_a_residual_network_and_adamw_its_norms():
    assembly = Assembly(make_resnet(3), images(8, 8).task)
    for k in range(3):
        component, optimizers = assembly.component(k, torch.device("cpu"))
        kernels = {f"body.{n}" for n, p in component.body.named_parameters() if p.ndim == 4}
        assert kernels
        chain = optimizers["chain"]
        by_muon = set(chain._kernels)
        assert by_muon == kernels
