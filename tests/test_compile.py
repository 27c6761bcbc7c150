"""Compiled components: the same network under the same names, compiled once and before training."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from clouds import clouds, make, weights
from mach.component import Component, Student
from mach.component.component import Component as ComponentType
from mach.config import Config
from mach.data import Batches
from mach.errors import ConfigError
from mach.launcher.preflight import prepare
from mach.models.mlp import ResidualBlock
from mach.trainer import Oracle

CPU = torch.device("cpu")
# torch's compiler looks at the .grad of what goes between two blocks, and silences itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


class Keep:
    """Leaves the weights and their gradients as they are."""

    def step(self, index):
        return torch.zeros(())


@pytest.fixture(scope="module")
def dataset():
    return clouds()


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Limits and caches as a new process has them."""
    limits = torch._dynamo.config
    before = limits.recompile_limit, limits.fail_on_recompile_limit_hit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    limits.recompile_limit, limits.fail_on_recompile_limit_hit = before


@pytest.fixture
def traced(monkeypatch):
    """Compile in name only: graphs are taken and run as they are, which needs no C++ compiler."""
    counter = CompileCounter()
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **more: plain(module, backend=counter, **more)
    )
    return counter


def compiled(components=3, **more):
    model = {"compile": True, **more.pop("model", {})}
    return make(components, model=model, student={"enabled": True}, **more)


CASES = [
    {"delay": 1},
    {"delay": 2, "accumulate": 1, "replay": "stash"},
    {"delay": 1, "model": {"checkpointing": True, "blocks": 2}},
    {"delay": 1, "optim": {"precision": "bf16"}},
]


@pytest.mark.parametrize("case", CASES, ids=["recompute", "stash", "checkpointing", "bf16"])
def test_nothing_is_compiled_after_the_first_step_begins(dataset, traced, case):
    """Not for stale gradients, test batches that are short, students or windows; and blocks that
    are alike share what was compiled for the first. Graphs as they were: same numbers, too."""
    oracle = Oracle(compiled(**case), dataset)
    before = traced.frame_count
    result = oracle.run()
    assert traced.frame_count == before > 0
    more_blocks = {**case, "model": {**case.get("model", {}), "blocks": 3}}
    torch._dynamo.reset()
    traced.frame_count = 0
    Oracle(compiled(**more_blocks), dataset)
    assert traced.frame_count <= before

    uncompiled = compiled(**case)
    uncompiled.model.compile = False
    plain = Oracle(uncompiled, dataset)
    assert plain.run()["chain"] == result["chain"]
    mine, other = weights(plain), weights(oracle)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_rehearsal_leaves_no_trace(dataset, traced):
    config = compiled(2)
    config.model.compile = False
    oracle = Oracle(config, dataset)
    component: ComponentType = oracle.trainers[1].worker.component
    state = {n: v.clone() for n, v in component.body.state_dict().items()}
    random = torch.get_rng_state()
    x, y = Batches(dataset, 0, 8, CPU).train(0)
    component.rehearse(torch.zeros(8, 12), x, y)
    assert torch.equal(torch.get_rng_state(), random)
    assert not component.pending
    assert component.totals.backwards == component.totals.loss.item() == 0
    assert component.student.steps == 0
    for module in component.modules().values():
        assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(state[n], v) for n, v in component.body.state_dict().items())


def test_a_batch_norm_does_not_count_a_rehearsal(traced):
    body = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6)))
    student = Student(torch.nn.Linear(6, 6), Keep(), task_weight=1.0, accumulate=1)
    component = Component(body, torch.nn.Linear(6, 4), Keep(), student=student, compiled=True)
    x, y = torch.randn(8, 6), torch.arange(8) % 4
    component.rehearse(x, x, y)
    assert body.state_dict()["0.1.num_batches_tracked"] == 0
    compilations = traced.frame_count
    component.forward(0, x, x, y, staleness=1)
    component.distil(x, x, y)
    component.backward(0, torch.randn(8, 6))
    component.infer(x[:3])
    assert body.state_dict()["0.1.num_batches_tracked"] == 1
    assert traced.frame_count == compilations


def test_what_torch_cannot_compile_is_refused_in_one_sentence(dataset, traced, monkeypatch):
    def graph_break(self, x):
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(ResidualBlock, "forward", graph_break)
    with pytest.raises(ConfigError, match=r"model.compile=true: .* Set model.compile=false"):
        Oracle(compiled(2), dataset)


def test_without_a_compiler_a_run_is_refused_before_it_starts():
    config = Config(components=2, launch=make(2).launch)
    config.launch.device = "cpu"
    config.model.compile = True
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"model.compile=true: expected a C\+\+ compiler"),
    ):
        prepare(config, 2)


def test_a_neighbour_that_compiles_is_waited_for_longer():
    assert compiled(2).start_timeout_s > make(2).start_timeout_s == 120.0


def test_compiled_code_computes_the_same_up_to_rounding():
    """torch's own compiler, once: sums in another order, so 1e-5 of the largest gradient."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(*[ResidualBlock(16, 64) for _ in range(2)])
    head = torch.nn.Linear(16, 4)
    x, y, gradient = torch.randn(8, 16), torch.arange(8) % 4, torch.randn(8, 16)
    found = []
    for is_compiled in (False, True):
        component = Component(plain, head, Keep(), feedback=1.0, compiled=is_compiled)
        h = component.forward(0, x, None, y)
        down = component.backward(0, gradient)
        found.append([h, down, *(p.grad.clone() for p in plain.parameters())])
        plain.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item())
