"""Every named method, compared with its equations written out in a few lines of plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from clouds import clouds, weights
from mach.component.losses import target_loss
from mach.config import Config
from mach.data import Batches, Dataset
from mach.errors import ConfigError
from mach.launcher.compose import compose, conf_dir
from mach.schedule import lag
from mach.trainer import Oracle

CPU = torch.device("cpu")
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
TINY = [
    "components=3",
    "accumulate=2",
    "steps=6",
    "microbatch_size=8",
    "model.width=12",
    "student.width=8",
    "optim.clip=0",
    "report.wandb=off",
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return clouds()


def config_of(method: str, *overrides: str) -> Config:
    """A method of conf/ with its size cut down."""
    return compose([f"method={method}", *TINY, *overrides])


def train(config: Config, dataset: Dataset) -> Oracle:
    oracle = Oracle(config, dataset)
    oracle.run()
    return oracle


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def late_gradients(
    config: Config, dataset: Dataset, *, old_graph: bool, factor: float = 1.0
) -> dict:
    """Training with late gradients and the loss at the top alone, one microbatch after another.

    Microbatch b is back-propagated by everyone after b // M steps, but what went up had been made
    `lag` microbatches before.
    """
    oracle = Oracle(config, dataset)  # for its first weights and its optimizers, no more
    components = [t.worker.component for t in oracle.trainers]
    last, m = len(components) - 1, config.accumulate
    history: list[list[dict]] = [[] for _ in components]
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    for b in range(config.microbatches):
        if b % m == 0:
            for versions, c in zip(history, components, strict=True):
                versions.append({n: p.detach().clone() for n, p in c.body.named_parameters()})
        x, y = batches.train(b)
        inputs, then = [x], []
        for k, c in enumerate(components):  # up
            then.append(history[k][max(0, b - lag(last + 1, k, config.delay)) // m])
            inputs.append(functional_call(c.body, then[k], (inputs[k],)).detach())
        gradient = None
        for k in range(last, -1, -1):  # down
            c, leaf = components[k], inputs[k].clone().requires_grad_()
            used = {n: p.detach().requires_grad_() for n, p in c.body.named_parameters()}
            if old_graph:
                used = {n: p.clone().requires_grad_() for n, p in then[k].items()}
            h = functional_call(c.body, used, (leaf,))
            if k == last:
                (target_loss(c.head(h), y) / m).backward()
            else:
                h.backward(gradient)
            for n, p in c.body.named_parameters():
                p.grad = used[n].grad if p.grad is None else p.grad + used[n].grad
            gradient = leaf.grad * factor
            if (b + 1) % m == 0:
                c._update.step(b // m)
    return weights(oracle)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
@pytest.mark.parametrize(
    ("method", "old_graph"), [("ddg", True), ("features_replay", False), ("ampnet", False)]
)
def test_a_late_gradient_meets_the_weights_that_the_method_says(
    dataset, method, old_graph, optimizer
):
    config = config_of(method, f"optim={optimizer}", "delay=1")
    by_hand = late_gradients(config, dataset, old_graph=old_graph)
    assert_same(weights(train(config, dataset)), by_hand)
    other = late_gradients(config, dataset, old_graph=not old_graph)
    assert any(not torch.equal(other[name], by_hand[name]) for name in by_hand)


def test_fdg_shrinks_the_gradient_with_every_hop_down(dataset):
    config = config_of("fdg", "optim=sgd", "delay=1", "optim.shrink=0.3")
    by_hand = late_gradients(config, dataset, old_graph=True, factor=0.3)
    assert_same(weights(train(config, dataset)), by_hand)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_fdg_shrinks_the_rate_where_the_optimizer_divides_by_the_gradients_size(dataset, optimizer):
    oracle = Oracle(config_of("fdg", f"optim={optimizer}", "optim.shrink=0.3"), dataset)
    rates = [trainer._optimizer.rate(3) for trainer in oracle.trainers]
    assert [rate / rates[2] for rate in rates] == pytest.approx([0.09, 0.3, 1])


def test_nothing_shrinks_where_nothing_is_late(dataset):
    ddg, fdg = (config_of(method, "optim=sgd", "delay=0") for method in ("ddg", "fdg"))
    assert_same(weights(train(ddg, dataset)), weights(train(fdg, dataset)))


def test_ampnet_has_as_many_microbatches_in_flight_as_it_says(dataset):
    oracle = Oracle(config_of("ampnet", "delay=2"), dataset)
    bottom, most = oracle.trainers[0].worker.component, 0
    forward = bottom.forward

    def counted(*args, **options):
        nonlocal most
        h = forward(*args, **options)
        most = max(most, len(bottom.pending))
        return h

    bottom.forward = counted
    oracle.run()
    assert most == 2 * (3 - 1) * 2 + 1


# --- predicted gradients ---------------------------------------------------------------------


def predicted_gradients(config: Config, dataset: Dataset) -> dict:
    """DNI of two components: component 0 learns at once from a guess p(h, y) / s; what comes 2 d
    microbatches late teaches p. With students that make every input, from those."""
    oracle = Oracle(config, dataset)
    low, high = (t.worker.component for t in oracle.trainers)
    network, m = low.predictor.network, config.accumulate
    scale = config.microbatch_size * m
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    arriving, lag_, taught = [], 2 * config.delay, 0

    def teach() -> None:
        nonlocal taught
        h, y, gradient = arriving.pop(0)
        target = gradient * scale
        error = nn.functional.mse_loss(network(h, y), target)
        (error / target.var(correction=0).clamp_min(1e-8) / m).backward()
        taught += 1
        if taught % m == 0:
            low.predictor._update.step(taught // m - 1)

    for b in range(config.microbatches):
        x, y = batches.train(b)
        h = low.body(x)
        h.backward(network(h.detach(), y).detach() / scale)
        if config.student.mix:
            leaf = high.student.network(x).detach().requires_grad_()
            high.distil(x, h.detach(), y)
        else:
            leaf = h.detach().requires_grad_()
        (target_loss(high.head(high.body(leaf)), y) / m).backward()
        arriving.append((h.detach(), y, leaf.grad))
        if len(arriving) > lag_:
            teach()
        if (b + 1) % m == 0:
            low._update.step(b // m)
            high._update.step(b // m)
    while arriving:
        teach()
    return weights(oracle) | {
        f"predictor.{name}": value for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("method", ["dni", "synthetic_inputs"])
@pytest.mark.parametrize("delay", [0, 2])
def test_dni_learns_at_once_and_teaches_its_predictor_late(dataset, method, delay):
    config = config_of(method, "components=2", f"delay={delay}")
    oracle = train(config, dataset)
    network = oracle.trainers[0].worker.component.predictor.network
    trained = {f"predictor.{name}": value for name, value in network.state_dict().items()}
    assert_same(weights(oracle) | trained, predicted_gradients(config, dataset))
    assert any(value.abs().sum() > 0 for value in trained.values() if value.ndim == 2)


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(dataset, method):
    result = Oracle(config_of(method, "steps=40"), dataset).run()
    rows = [*result["chain"], *result["windows"]]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert result["chain"][-1]["accuracy"] > 0.5  # 0.25 is guessing


@pytest.mark.parametrize(
    ("method", "overrides", "says"),
    [
        ("backprop", "schedule=delayed delay=1", "delay=0, or schedule=sync; got 1. .*exact"),
        ("dgl", "feedback=0.5", "feedback=0; got 0.5. It learns from local losses"),
        ("ddg", "replay=recompute", "replay=stash; got recompute. .*weights of then"),
        ("features_replay", "replay=stash", "replay=recompute; got stash. .*present weights"),
        ("ddg", "feedback=0 head.weight=1", "feedback=more than 0; got 0"),
        ("fdg", "replay=recompute", "replay=stash; got recompute"),
        ("fdg", "optim.correction=rate", "optim.correction=shrink; got rate. Shrinking is what"),
        ("ampnet", "replay=stash", "replay=recompute; got stash"),
        ("dni", "predictor.enabled=false", "predictor.enabled=true; got False"),
        ("synthetic_inputs", "student=none", "student.enabled=true; got False. Bodies learn on"),
        ("synthetic_inputs", "student.mix=0.5", "student.mix=1; got 0.5"),
    ],
)
def test_a_method_whose_needs_contradict_the_config_is_refused(method, overrides, says):
    with pytest.raises(ConfigError, match=f"method={method}: expected {says}") as refused:
        config_of(method, *overrides.split())
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
