"""Batch norm counts each microbatch once, however often it is run."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from clouds import weights
from images import images, make_resnet
from mach.component import Component, Late, Student
from mach.component.losses import target_loss
from mach.component.modes import Modes
from mach.config import StudentConfig
from mach.data import Batches
from mach.trainer import Oracle, Simulation
from runs import assert_same_tensors
from test_resume import DiedError, chain

CPU = torch.device("cpu")
BATCH = {"norm": "batch"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def dataset():
    return images(8, 8)


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in module.named_buffers() if n.endswith(STATISTICS)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- the whole chain, against a plain loop ---------------------------------------------------


def lock_step(config, dataset):
    """`delayed` as a plain loop over all components, which knows nothing of uncounting.

    What is run once more is run on copies of the modules, with the present weights, so that their
    statistics are nobody's. Returns the oracle whose components it trained.
    """
    oracle = Oracle(config, dataset)  # for its first weights and its optimizers, no more
    components = [t.worker.component for t in oracle.trainers]
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    lags = [2 * (config.components - 1 - k) * config.delay for k in range(config.components)]
    inputs, graphs, sent_back = {}, {}, {}
    for t in range(config.microbatches + lags[0]):
        if t < config.microbatches:
            h = batches.train(t)[0]
            for k, component in enumerate(components):  # the one run that counts
                inputs[k, t] = h.detach().requires_grad_(k > 0)
                held = {
                    n: p.detach().clone().requires_grad_()
                    for n, p in component.body.named_parameters()
                }
                graphs[k, t] = functional_call(component.body, held, (inputs[k, t],)), held
                h = graphs[k, t][0]
        for k, component in reversed(list(enumerate(components))):
            b = t - lags[k]
            if not 0 <= b < config.microbatches:
                continue
            _, y = batches.train(b)
            h, held = graphs.pop((k, b))
            if config.replay == "recompute":
                unread = copy.deepcopy(component.body)
                h = functional_call(
                    unread, dict(component.body.named_parameters()), (inputs[k, b],)
                )
            top = k == config.components - 1
            loss = target_loss(component.head(h if top else h.detach()), y) / config.accumulate
            roots, seeds = ([loss], [None]) if top else ([h, loss], [sent_back.pop((k, b)), None])
            torch.autograd.backward(roots, seeds)
            if config.replay == "stash":
                for name, p in component.body.named_parameters():
                    p.grad = held[name].grad if p.grad is None else p.grad + held[name].grad
            sent_back[k - 1, b] = inputs.pop((k, b)).grad
            if (b + 1) % config.accumulate == 0:
                component._update.step(b // config.accumulate)
                if not top:
                    component._head_update.step(b // config.accumulate)
    return oracle


@pytest.mark.parametrize(
    ("components", "delay", "replay"), product([2, 3, 4], [0, 1, 2], ["recompute", "stash"])
)
def test_statistics_and_weights_are_those_of_a_plain_loop_bit_by_bit(
    dataset, components, delay, replay
):
    """With students, whose task loss runs bodies and heads once more; the plain loop has none."""
    config = make_resnet(
        components,
        delay=delay,
        replay=replay,
        steps=4,
        model={**BATCH, "layers": 14 if components == 4 else 8},
        student={"enabled": True},
    )
    trained = Oracle(config, dataset)
    trained.run()
    plain = lock_step(replace(config, student=StudentConfig(enabled=False)), dataset)
    for part in ("body", "head"):
        assert_same(weights(trained, part), weights(plain, part))
    for trainer in trained.trainers:
        for part, module in trainer.worker.component.modules().items():
            counts = [b for n, b in statistics(module).items() if n.endswith("tracked")]
            assert counts, part
            assert set(map(int, counts)) == {config.microbatches}, part


@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_checkpointing_changes_neither_statistics_nor_weights(dataset, replay):
    trained = []
    for checkpointing in (False, True):
        model = {**BATCH, "layers": 8, "checkpointing": checkpointing}
        config = make_resnet(2, delay=1, replay=replay, model=model, student={"enabled": True})
        trained.append(Oracle(config, dataset))
        trained[-1].run()
    for part in ("body", "head"):
        assert_same(*(weights(oracle, part) for oracle in trained))


@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_a_run_that_was_interrupted_has_the_statistics_of_one_that_was_not(
    tmp_path, dataset, replay
):
    config = make_resnet(
        3,
        delay=1,
        replay=replay,
        steps=6,
        model={**BATCH, "layers": 8},
        head={"weight": 0.1},
        student={"enabled": True},
        checkpoint={"every": 2},
        report={"wandb": "off"},
    )
    chain(config, dataset, tmp_path / "whole")
    with pytest.raises(DiedError):
        chain(config, dataset, tmp_path / "cut", dies_after=4)
    resumed = chain(replace(config, resume="auto"), dataset, tmp_path / "cut")
    assert_same_tensors(tmp_path / "whole/checkpoints/step-6", tmp_path / "cut/checkpoints/step-6")
    bodies = (trainer.worker.component.body for trainer in resumed)
    counts = {int(b) for body in bodies for n, b in body.named_buffers() if "tracked" in n}
    assert counts == {config.microbatches}


def test_who_has_taken_all_its_steps_and_computes_for_others_counts_no_more(dataset):
    """Under `free`. A simulated run had other scores than what it had saved, by the statistics."""
    config = make_resnet(
        3,
        schedule="free",
        delay=1,
        steps=4,
        head={"weight": 0.1},
        model={**BATCH, "layers": 8},
        student={"enabled": True},
    )
    simulation = Simulation(config, dataset, pace_s=[1.0, 1.0, 3.0])
    simulation.run()
    for k, life in enumerate(simulation.lives):
        for part, module in life.component.modules().items():
            assert_same(module.state_dict(), simulation._saved[k].modules[part])
    moved = [life.worker._begun > config.microbatches for life in simulation.lives]
    assert moved == [True, True, False], "the two below went on for the top"


# --- one component ---------------------------------------------------------------------------

B, D, C = 6, 5, 3


class Keep:
    """An update that takes no step."""

    def step(self, index):
        return torch.zeros(())


class Checkpointed(nn.Sequential):
    """Keeps no activation inside: its forward is run once more in the backward."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def normed(kind=nn.Sequential, momentum=0.1):
    return kind(nn.Linear(D, D), nn.BatchNorm1d(D, momentum=momentum), nn.ReLU())


def counted_once(body, batches):
    """Statistics of a body that has run each batch once."""
    body = copy.deepcopy(body)
    for x in batches:
        body(x)
    return statistics(body)


@pytest.mark.parametrize("kind", [nn.Sequential, Checkpointed])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
@pytest.mark.parametrize(
    ("replay", "staleness"), [("recompute", 0), ("recompute", 1), ("stash", 1)]
)
@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_a_component_counts_a_microbatch_once(kind, momentum, replay, staleness, mix):
    """However the forward is repeated: by a replay, by checkpointing, for the student's task."""
    torch.manual_seed(0)
    body = normed(kind, momentum)
    network = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D))
    student = Student(network, Keep(), task_weight=1.0, accumulate=1)
    component = Component(
        body,
        nn.Linear(D, C),
        Keep(),
        student=student,
        feedback=1.0,
        late=Late(replay=replay),
        mix=mix,
    )
    reference, given = copy.deepcopy(body), []
    body.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    firsts = []
    for b in range(3):
        x, child, y = torch.randn(B, D), torch.randn(B, D), torch.randint(C, (B,))
        given.clear()
        component.forward(b, child, x, y, staleness)
        firsts.append(given[0])
        assert torch.equal(given[0], child) == (mix == 0)
        component.distil(x, child, y)
    for b in range(3):
        component.backward(b, torch.randn(B, D))
    assert_same(statistics(body), counted_once(reference, firsts))
    assert int(network[1].num_batches_tracked) == 3


@pytest.mark.parametrize("kind", [nn.Sequential, Checkpointed])
def test_checkpointing_changes_no_gradient_of_a_batch_norm(kind):
    torch.manual_seed(0)
    body, x, gradient = normed(kind), torch.randn(B, D), torch.randn(B, D)
    plain = nn.Sequential(*copy.deepcopy(list(body)))
    component = Component(body, nn.Linear(D, C), Keep(), head_weight=0.0)
    component.forward(0, x, None, torch.randint(C, (B,)))
    component.backward(0, gradient)
    plain(x).backward(gradient)
    for p, q in zip(body.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_inference_uses_the_running_statistics_and_leaves_all_as_it_was():
    torch.manual_seed(0)
    body = normed()
    body(torch.randn(40, D))
    body[1].train(False)  # as somebody does who wants this one frozen
    component = Component(body, nn.Linear(D, C), Keep())
    before, x = statistics(body), torch.randn(B, D)
    norm = body[1]
    expected = (body[0](x) - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(component.infer(x), expected.relu().detach())
    assert_same(statistics(body), before)
    assert not norm.training


def test_at_inference_attention_drops_nothing_either():
    torch.manual_seed(0)
    head = nn.TransformerEncoderLayer(D, 1, 2 * D, dropout=0.5, batch_first=True)
    component, x = Component(nn.Linear(D, D), head, Keep()), torch.randn(B, 3, D)
    assert all(part.training for part in head.modules())
    found = component.predict(x)
    assert all(part.training for part in head.modules())
    with torch.no_grad():
        torch.testing.assert_close(found, head.eval()(x))


def test_nested_or_ended_by_an_error_the_counting_goes_on_afterwards():
    body = normed()
    own, modes = statistics(body), Modes(body)

    def fail():
        with modes.uncounted():
            with modes.uncounted():
                body(torch.randn(B, D))
            body(torch.randn(B, D))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_same(statistics(body), own)
    body(torch.randn(B, D))
    assert int(body[1].num_batches_tracked) == 1


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_frozen_norm_reads_its_statistics_in_a_replay_too(staleness):
    torch.manual_seed(0)
    body, x, gradient = normed(), torch.randn(B, D), torch.randn(B, D)
    body[1].eval()
    component = Component(body, nn.Linear(D, C), Keep(), head_weight=0.0)
    for name, value in body[1].named_buffers():  # as a checkpoint is loaded, after it was built
        value.copy_(torch.full_like(value, 3 if name == "running_var" else 1))
    reference = copy.deepcopy(body)
    component.forward(0, x, None, torch.randint(C, (B,)), staleness)
    component.backward(0, gradient)
    reference(x).backward(gradient)
    for p, q in zip(body.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert_same(statistics(body), statistics(reference))


def test_an_instance_norm_with_statistics_counts_once_too():
    body = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))
    reference, x = copy.deepcopy(body), torch.randn(B, 2, D)
    component = Component(body, nn.Sequential(nn.Flatten(), nn.Linear(2 * D, C)), Keep())
    component.forward(0, x, None, torch.randint(C, (B,)), staleness=1)
    component.backward(0, None)
    assert_same(statistics(body), counted_once(reference, [x]))
