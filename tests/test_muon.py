"""Is the Muon that is fast on a CPU torch's?"""

from __future__ import annotations

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz as zeropower

from mach import muon
from mach.muon import Muon, orthogonal

COEFFICIENTS, STEPS, EPS = (3.4445, -4.775, 2.0315), 5, 1e-7
SHAPES = [(16, 64), (64, 16), (24, 24), (1, 9)]


def gradient(shape: tuple[int, int]) -> torch.Tensor:
    """Ill-conditioned, as gradients are."""
    return torch.randn(shape) * torch.rand(shape[0], 1) ** 3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_direction_is_torchs_up_to_the_order_of_a_sum(shape):
    """The order of the terms may move a product over the border between two bfloat16 numbers, and
    Newton-Schulz carries that on: some thousandths of the whole, as bfloat16 itself is."""
    torch.manual_seed(0)
    for _ in range(5):
        matrix = gradient(shape)
        mine = orthogonal(matrix, COEFFICIENTS, STEPS, EPS).float()
        torchs = zeropower(matrix, COEFFICIENTS, STEPS, EPS).float()
        assert mine.shape == torchs.shape
        assert (mine - torchs).norm() <= 4e-3 * torchs.norm()


@pytest.mark.parametrize("shape", [(128, 128), (512, 128), (96, 512)])
def test_with_amx_the_direction_of_a_large_matrix_is_torchs_bit_by_bit(shape, monkeypatch):
    monkeypatch.setattr(muon, "has_amx", lambda: True)
    torch.manual_seed(0)
    matrix = gradient(shape)
    mine = orthogonal(matrix, COEFFICIENTS, STEPS, EPS)
    assert torch.equal(mine, zeropower(matrix, COEFFICIENTS, STEPS, EPS))


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (127, 128)])
def test_with_amx_the_direction_of_a_small_matrix_is_as_without(shape, monkeypatch):
    torch.manual_seed(0)
    matrix = gradient(shape)
    directions = []
    for amx in (False, True):
        monkeypatch.setattr(muon, "has_amx", lambda amx=amx: amx)
        directions.append(orthogonal(matrix, COEFFICIENTS, STEPS, EPS))
    assert torch.equal(*directions)


def test_steps_and_state_are_torchs():
    torch.manual_seed(0)
    start = [gradient(shape) for shape in SHAPES]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    pairs = [(kind, [torch.nn.Parameter(m.clone()) for m in start])
             for kind in (Muon, torch.optim.Muon)]  # fmt: skip
    optimizers = [kind(parameters, **options) for kind, parameters in pairs]
    for _ in range(10):
        gradients = [gradient(shape) for shape in SHAPES]
        for optimizer, (_, parameters) in zip(optimizers, pairs, strict=True):
            for parameter, grad in zip(parameters, gradients, strict=True):
                parameter.grad = grad.clone()
            optimizer.step()
    for mine, torchs in zip(*(parameters for _, parameters in pairs), strict=True):
        moved = (torchs - start[SHAPES.index(tuple(mine.shape))]).norm()
        assert (mine - torchs).norm() <= 4e-3 * moved
    mine, torchs = (optimizer.state_dict() for optimizer in optimizers)
    assert mine["param_groups"] == torchs["param_groups"]
    for index, state in torchs["state"].items():
        assert mine["state"][index].keys() == state.keys()
        torch.testing.assert_close(mine["state"][index], state)


def test_a_matrix_without_a_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(2, 3))
