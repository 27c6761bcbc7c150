"""The chain in one process, compared with `loss.backward()` on the whole network."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from clouds import clouds, make, weights
from mach.component.losses import target_loss
from mach.data import Batches
from mach.errors import ConfigError
from mach.optim import Optimizer
from mach.trainer import Oracle
from mach.trainer.step import Worker

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset():
    return clouds()


def train(config, dataset):
    oracle = Oracle(config, dataset)
    result = oracle.run()
    return oracle, result


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def back_propagation(config, dataset):
    """Ordinary training of the whole network: one forward, `loss.backward()`, one step."""
    oracle = Oracle(config, dataset)  # for its first weights and its optimizers, no more
    components = [t.worker.component for t in oracle.trainers]
    top = components[-1]
    network = nn.Sequential(*(c.body for c in components), top.head)
    updates = [c._update for c in components]
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    for step in range(config.steps):
        for b in range(step * config.accumulate, (step + 1) * config.accumulate):
            x, y = batches.train(b)
            (target_loss(network(x), y) / config.accumulate).backward()
        for update in updates:
            update.step(step)
    return weights(oracle)


@pytest.mark.parametrize(
    ("components", "schedule", "accumulate", "optimizer"),
    product([1, 2, 3, 4], ["delayed", "sync"], [1, 4], ["muon", "adamw", "sgd"]),
)
def test_without_delay_it_is_back_propagation_bit_by_bit(
    dataset, components, schedule, accumulate, optimizer
):
    config = make(components, schedule=schedule, accumulate=accumulate, optim={"name": optimizer})
    trained, _ = train(config, dataset)
    assert_same(weights(trained), back_propagation(config, dataset))


def test_the_cut_does_not_change_the_network(dataset):
    """One process with four blocks, or four with one each: the same first and last weights."""
    whole, _ = train(make(1, model={"depth": 4}), dataset)
    parts, _ = train(make(4, model={"depth": 4}), dataset)

    def by_block(w):
        return {name.partition(".")[2]: value for name, value in w.items()}

    assert_same(by_block(weights(whole)), by_block(weights(parts)))


def test_each_component_clips_its_own_gradient(dataset):
    """So where gradients are large the cut matters: the chain is the network with clip=0 alone."""
    config = make(2, model={"depth": 4}, optim={"clip": 0.01})
    clipped, _ = train(config, dataset)
    assert_same(weights(clipped), back_propagation(config, dataset))  # with optimizers of its own
    whole, _ = train(make(1, model={"depth": 4}, optim={"clip": 0.01}), dataset)
    cut = {name.partition(".")[2]: value for name, value in weights(clipped).items()}
    assert any(
        not torch.equal(cut[name.partition(".")[2]], value)
        for name, value in weights(whole).items()
    )


@pytest.mark.parametrize(("schedule", "delay"), [("sync", 0), ("delayed", 0), ("delayed", 2)])
@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_students_leave_the_chain_as_it_is_bit_by_bit(dataset, schedule, delay, replay):
    common = {"schedule": schedule, "delay": delay, "replay": replay, "head": {"weight": 0.1}}
    without, alone = train(make(**common), dataset)
    with_students, result = train(make(**common, student={"enabled": True}), dataset)
    assert_same(weights(without), weights(with_students))
    assert_same(weights(without, "head"), weights(with_students, "head"))
    assert alone["chain"] == result["chain"]
    assert [(w["first"], w["last"]) for w in result["windows"]] == [(1, 1), (1, 2), (2, 2)]


def test_probes_leave_the_chain_as_it_is_bit_by_bit(dataset):
    """At head.weight 0 a head learns and its body does not know: same weights as without."""
    config = make(2, delay=1)
    untrained = weights(Oracle(config, dataset), "head")
    trained, _ = train(config, dataset)
    assert_same(weights(trained), delayed_reference(config, dataset, replay="recompute"))
    probe = weights(trained, "head")
    assert not torch.equal(probe["0.1.weight"], untrained["0.1.weight"])


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_heads_below_the_top_learn_at_their_own_rate_and_the_chain_at_its(dataset, name):
    def first_step(lr, head_lr=None):
        optim = {"name": name, "lr": lr, "muon_lr": 0.01}
        trained, _ = train(make(2, steps=1, optim=optim, head={"lr": head_lr}), dataset)
        heads = weights(trained, "head")
        probe = {key: heads.pop(key) for key in list(heads) if key.startswith("0.")}
        return weights(trained) | heads, probe  # of the top its head is the chain's

    chain, probe = first_step(1e-3, head_lr=0.1)
    assert_same(chain, first_step(1e-3)[0])
    assert_same(probe, first_step(0.1)[1])
    assert not torch.equal(probe["0.1.weight"], first_step(1e-3)[1]["0.1.weight"])


def delayed_reference(config, dataset, replay):
    """Two components under `delayed`, written out by hand: component 0 is 2 d microbatches late."""
    oracle = Oracle(config, dataset)
    low, high = (t.worker.component for t in oracle.trainers)
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    lag, m, total = 2 * config.delay, config.accumulate, config.microbatches
    sent_back, seen, graphs = {}, {}, {}
    step_low = step_high = 0
    for b in range(total + lag):
        if b < total:
            x, y = batches.train(b)
            # h is made with the weights the child has now; the parent is never late.
            snapshot = {
                n: p.detach().clone().requires_grad_() for n, p in low.body.named_parameters()
            }
            graph = torch.func.functional_call(low.body, snapshot, (x,))
            graphs[b], seen[b] = (graph, snapshot), x
            h = graph.detach().requires_grad_()
            (target_loss(high.head(high.body(h)), y) / m).backward()
            sent_back[b] = h.grad
            if (b + 1) % m == 0:
                high._update.step(step_high)
                step_high += 1
        late = b - lag
        if late >= 0:
            if replay == "recompute":
                low.body(seen[late]).backward(sent_back[late])
            else:
                graph, snapshot = graphs[late]
                grads = torch.autograd.grad(graph, list(snapshot.values()), sent_back[late])
                for p, g in zip(low.body.parameters(), grads, strict=True):
                    p.grad = g if p.grad is None else p.grad + g
            if (late + 1) % m == 0:
                low._update.step(step_low)
                step_low += 1
    return weights(oracle)


@pytest.mark.parametrize("replay", ["recompute", "stash"])
@pytest.mark.parametrize("delay", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_delayed_is_the_algorithm_written_out_by_hand(dataset, replay, delay, accumulate):
    config = make(2, delay=delay, accumulate=accumulate, replay=replay)
    trained, result = train(config, dataset)
    assert_same(weights(trained), delayed_reference(config, dataset, replay))
    assert result["staleness_steps"][1]["max"] == 0
    assert result["staleness_steps"][0]["max"] == min(-(-2 * delay // accumulate), config.steps - 1)


def test_stash_and_recompute_differ_only_where_something_is_stale(dataset):
    def pair(**common):
        return [
            weights(train(make(2, replay=r, **common), dataset)[0]) for r in ("recompute", "stash")
        ]

    assert_same(*pair(delay=1, accumulate=4, steps=1))
    stale = pair(delay=1, accumulate=1)
    assert any(not torch.equal(stale[0][name], stale[1][name]) for name in stale[0])


def local_losses(config, dataset):
    """Every component by itself: on what its child makes now, by the loss of its own head."""
    oracle = Oracle(config, dataset)
    components = [t.worker.component for t in oracle.trainers]
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    for b in range(config.microbatches):
        h, y = batches.train(b)
        for c in components:
            h = c.body(h.detach())
            (target_loss(c.head(h), y) / config.accumulate).backward()
            if (b + 1) % config.accumulate == 0:
                c._update.step(b // config.accumulate)
                if c._head_update is not None:
                    c._head_update.step(b // config.accumulate)
    return oracle


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_feedback_0_trains_every_component_on_its_own_loss(dataset, optimizer):
    cut = {"feedback": 0, "head": {"weight": 1.0}, "delay": 1}
    config = make(3, **cut, optim={"name": optimizer})
    trained, _ = train(config, dataset)
    by_hand = local_losses(config, dataset)
    for part in ("body", "head"):
        assert_same(weights(trained, part), weights(by_hand, part))
    # The lowest component learns as it does alone. Alone, clipping aside, head and body are stepped
    # by one optimizer, which does not mix parameters, so the body's weights are the same.
    alone, _ = train(make(1, optim={"name": optimizer}), dataset)
    lowest = {n: v for n, v in weights(trained).items() if n.startswith("0.")}
    assert_same(lowest, weights(alone))


def test_a_run_can_be_repeated_bit_by_bit(dataset):
    config = make(3, delay=2, student={"enabled": True})
    (first, a), (second, b) = train(config, dataset), train(config, dataset)
    assert_same(weights(first), weights(second))
    assert_same(weights(first, "head"), weights(second, "head"))
    assert a["windows"] == b["windows"]


def test_the_components_of_one_process_share_its_wait_for_data(dataset):
    """Each told the wait of all, as all draw from the same batches."""
    oracle, _ = train(make(3), dataset)
    workers = [trainer.worker for trainer in oracle.trainers]
    assert all(worker.wait_data_s > 0 for worker in workers)
    whole_s = workers[0]._batches.wait_s
    assert sum(worker.wait_data_s for worker in workers) == pytest.approx(whole_s)


@pytest.mark.parametrize("schedule", ["sync", "delayed"])
@pytest.mark.parametrize(
    ("looks", "by_all"),
    [
        ({}, False),
        ({"student": {"enabled": True}}, True),
        ({"model": {"raw_input": True}}, True),
        ({"report": {"salience": 1}}, True),
    ],
    ids=str,
)
def test_raw_inputs_are_made_for_those_alone_who_look_at_them(
    dataset, monkeypatch, schedule, looks, by_all
):
    """Each component made them all, augmented, for nobody. The numbers are the same."""
    config = make(3, schedule=schedule, delay=1, head={"weight": 0.1}, **looks)
    made: list[int] = []
    train_batch = Batches.train

    def counted(batches, b, *stream):
        made.append(b)
        return train_batch(batches, b, *stream)

    monkeypatch.setattr(Batches, "train", counted)
    sparing, result = train(config, dataset)
    assert len(made) == config.microbatches * (3 if by_all else 1)
    monkeypatch.setattr(Worker, "_looks_at_x", True)
    lavish, same = train(config, dataset)
    for part in ("body", "head"):
        assert_same(weights(sparing, part), weights(lavish, part))
    assert result["chain"] == same["chain"]


@pytest.mark.parametrize("raw_input", [False, True])
def test_an_evaluation_makes_raw_inputs_where_they_enter_alone(dataset, monkeypatch, raw_input):
    made: list[int] = []
    evaluation = Batches.evaluation

    def counted(batches, batch, samples):
        made.append(batch)
        return evaluation(batches, batch, samples)

    monkeypatch.setattr(Batches, "evaluation", counted)
    train(make(3, student={"enabled": True}, model={"raw_input": raw_input}), dataset)
    origins = [0] * 3 + [1] * 2 + [2] if raw_input else [0, 1, 2]
    assert sorted(made) == sorted([*range(5)] * len(origins))  # 36 samples, 8 at a time


@pytest.mark.parametrize("credits", [3, 4, 9])
def test_the_number_of_credits_changes_no_number(dataset, credits):
    config = make(4, delay=2, transport={"credits": credits})
    trained, _ = train(config, dataset)
    assert_same(weights(trained), weights(train(make(4, delay=2), dataset)[0]))


@pytest.mark.parametrize("schedule", ["sync", "delayed"])
@pytest.mark.parametrize("components", [2, 3, 5, 8])
@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_least_credits_never_lock(dataset, schedule, components, delay, accumulate):
    """The oracle would find every component waiting for another."""
    config = make(components, schedule=schedule, delay=delay, accumulate=accumulate, steps=4)
    train(config, dataset)


def test_fewer_credits_than_the_schedule_needs_are_refused():
    with pytest.raises(ConfigError, match="credits: expected 3 or more; got 2"):
        make(2, delay=2, transport={"credits": 2})


def test_clipping_warm_up_and_rates_follow_their_formulas():
    weight = nn.Parameter(torch.zeros(2))
    config = make(optim={"name": "sgd", "lr": 0.5, "momentum": 0.0, "clip": 1.0, "warmup": 0.2})
    optimizer = Optimizer([("w", weight)], config.optim, steps=10, tau=3.0)
    weight.grad = torch.tensor([3.0, 4.0])
    norm = optimizer.step(0)
    assert norm == 5.0
    # warm-up 1/2 of the way, rate by staleness (1 + 3)^-1 at the first step
    torch.testing.assert_close(weight.detach(), -0.5 * 0.5 / 4 * torch.tensor([0.6, 0.8]))
    assert optimizer.rate(9) == pytest.approx(0.5 * 0.5 * (1 + np.cos(np.pi * 7 / 8)))
    assert weight.grad is None


@pytest.mark.parametrize("length", [0.5, 1 - 1e-6, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0, float("nan")])
def test_gradients_are_clipped_to_the_bits_of_torch(length):
    """Also where nothing is to be clipped, which is not asked of torch."""
    config = make(optim={"name": "sgd", "momentum": 0.0, "clip": 1.0})
    ours, plain = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Optimizer([("w", ours)], config.optim, steps=10)
    for weight in (ours, plain):
        weight.grad = torch.tensor([0.36, 0.48, 0.8]) * length
    optimizer.step(0)
    nn.utils.clip_grad_norm_([plain], 1.0)
    with torch.no_grad():
        plain -= optimizer.rate(0) * plain.grad
    torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


def test_layer_wise_rates_fall_with_every_component_above():
    config = make(optim={"layer_decay": 0.5, "warmup": 0.0, "correction": "none"})
    rates = [
        trainer._optimizer.rate(0) / config.optim.muon_lr
        for trainer in Oracle(config, clouds()).trainers
    ]
    assert rates == [0.25, 0.5, 1.0]
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: expected more than 0; got 0"):
        make(optim={"layer_decay": 0.0})
