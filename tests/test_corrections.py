"""Every correction of staleness, compared with its formula."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

import texts
from clouds import clouds, make, weights
from mach.component.compensation import compensated
from mach.component.losses import target_loss
from mach.component.prediction import WeightPrediction
from mach.config import Config
from mach.config.learning import CORRECTIONS
from mach.data import Batches, Dataset, open_dataset
from mach.errors import ConfigError
from mach.launcher.compose import compose
from mach.optim import Optimizer
from mach.trainer import Oracle, Simulation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return clouds()


def corrected(correction: str, optimizer: str = "sgd", **more: object) -> Config:
    optim = {"name": optimizer, "correction": correction, "lr": 0.05}
    return make(2, delay=2, **{**more, "optim": {**optim, **more.get("optim", {})}})


def trained(config: Config, dataset: Dataset) -> dict:
    oracle = Oracle(config, dataset)
    oracle.run()
    return weights(oracle)


def copy_of(module: nn.Module) -> dict:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def slope(head: nn.Module, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the head's loss at an activation."""
    leaf = h.detach().requires_grad_()
    return torch.autograd.grad(target_loss(head(leaf), y), leaf)[0]


def by_hand(config: Config, dataset: Dataset) -> dict:
    """Two components, the lower one 2 d microbatches late, and what the correction adds."""
    oracle = Oracle(config, dataset)
    low, high = (t.worker.component for t in oracle.trainers)
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    m, lag, optim = config.accumulate, 2 * config.delay, config.optim
    forward = optim.correction == "prediction" and optim.predict == "forward"
    backward = optim.correction == "prediction" and optim.predict == "backward"
    lows, highs = [copy_of(low.body)], [(copy_of(high.body), copy_of(high.head))]

    def ahead(versions: list[dict], n: int, steps: float) -> dict:
        now, before = versions[n], versions[max(0, n - 1)]
        return {name: now[name] + steps * (now[name] - before[name]) for name in now}

    for b in range(config.microbatches):
        x, y = batches.train(b)
        y = low.targets(y)
        then = max(0, b - lag) // m  # steps that the lower one had taken at its forward
        used = ahead(lows, then, b // m - then) if forward else lows[then]
        sent = functional_call(low.body, used, (x,)).detach()
        leaf = sent.clone().requires_grad_()
        (target_loss(high.head(high.body(leaf)), y) / m).backward()
        gradient = config.feedback * leaf.grad
        if backward:
            steps = config.delay / m
            body, head = (ahead([v[part] for v in highs], b // m, steps) for part in (0, 1))
            leaf = sent.clone().requires_grad_()
            logits = functional_call(high.head, head, (functional_call(high.body, body, (leaf,)),))
            (gradient,) = torch.autograd.grad(target_loss(logits, y) / m, leaf)
        if config.replay == "stash":
            old = {n: p.clone().requires_grad_() for n, p in lows[then].items()}
            functional_call(low.body, old, (x,)).backward(gradient)
            for n, p in low.body.named_parameters():
                late = old[n].grad * m  # of the loss that is not divided by m
                if then < b // m:
                    late = late + optim.compensation * late**2 * (p.detach() - old[n].detach())
                p.grad = late / m if p.grad is None else p.grad + late / m
        else:
            h = low.body(x)
            if optim.correction == "compensation" and then < b // m:
                own = gradient * m * len(y)  # of each target's own loss
                own = own + optim.compensation * own**2 * (h.detach() - sent)
                gradient = own / (m * len(y))
            if optim.correction == "surrogate" and then < b // m:
                change = slope(low.head, h, y) / m - slope(low.head, sent, y) / m
                gradient = gradient + config.feedback * optim.surrogate * change
            h.backward(gradient)
            (target_loss(low.head(h.detach()), y) / m).backward()
        if (b + 1) % m == 0:
            for update in (low._update, low._head_update, high._update):
                update.step(b // m)
            lows.append(copy_of(low.body))
            highs.append((copy_of(high.body), copy_of(high.head)))
    return weights(oracle)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("predict", ["forward", "backward"])
def test_prediction_uses_the_weights_that_steps_like_the_last_one_lead_to(
    dataset, predict, optimizer
):
    config = corrected("prediction", optimizer, optim={"predict": predict})
    found, plain = trained(config, dataset), trained(corrected("none", optimizer), dataset)
    for name, value in by_hand(config, dataset).items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_compensation_moves_a_gradient_along_by_its_own_square(dataset, replay):
    config = corrected("compensation", replay=replay, optim={"compensation": 2.0})
    found, plain = trained(config, dataset), trained(corrected("none", replay=replay), dataset)
    for name, value in by_hand(config, dataset).items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_of_a_text_compensation_takes_the_loss_of_each_position_by_itself(tmp_path):
    optim = {"name": "sgd", "lr": 0.05, "correction": "compensation", "compensation": 2.0}
    config = texts.make(texts.write_text(tmp_path), delay=2, optim=optim)
    text = open_dataset(config.data)
    found = trained(config, text)
    for name, value in by_hand(config, text).items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("feedback", [1.0, 0.5])
def test_surrogate_lets_the_head_say_how_a_gradient_has_changed_by_as_much_as_it_counts(
    dataset, feedback
):
    config = corrected("surrogate", feedback=feedback, optim={"surrogate": 2.0})
    found, plain = trained(config, dataset), trained(corrected("none", feedback=feedback), dataset)
    for name, value in by_hand(config, dataset).items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.allclose(found[name], plain[name], rtol=1e-3) for name in plain)


def test_compensation_is_its_formula():
    gradient, moved = torch.randn(3, 4), torch.randn(3, 4)
    expected = gradient + 0.3 * gradient**2 * moved
    torch.testing.assert_close(compensated(gradient, moved, 0.3, 1.0), expected)
    # Dividing the loss by 5 divides what comes out by 5.
    torch.testing.assert_close(compensated(gradient / 5, moved, 0.3, 5.0), expected / 5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_under_momentum_a_prediction_is_that_of_spectrain(nesterov):
    """W - s lr v, v being the momentum of the optimizer; under Nesterov's, which mach's sgd has,
    with g + 0.9 v in its place."""
    linear = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    prediction = WeightPrediction(linear)
    for _ in range(3):
        optimizer.zero_grad()
        linear(torch.randn(4, 3)).square().sum().backward()
        prediction.remember()
        optimizer.step()
    step = optimizer.state[linear.weight]["momentum_buffer"]
    if nesterov:
        step = linear.weight.grad + 0.9 * step
    expected = linear.weight.detach() - 2.5 * 0.1 * step
    torch.testing.assert_close(prediction.weights(2.5)["weight"], expected)


def test_the_top_looks_ahead_to_the_mean_time_of_its_gradients_use():
    config = make(4, delay=4, accumulate=4, optim={"correction": "prediction"})
    assert [config.ahead(k) for k in range(4)] == [0, 1, 1.5, 2]


def steps_of(optimizer: str, gradients: list[float]) -> list[float]:
    """What `nesterov` makes of gradients of one number, one step after another."""
    config = make(
        optim={
            "name": optimizer,
            "correction": "nesterov",
            "look_ahead": 0.9,
            "lr": 0.1,
            "warmup": 0.0,
            "cosine": False,
        }
    )
    weight = nn.Parameter(torch.zeros(1))
    stepper = Optimizer([("w", weight)], config.optim, steps=len(gradients))
    found = [0.0]
    for index, gradient in enumerate(gradients):
        weight.grad = torch.tensor([gradient])
        stepper.step(index)
        found.append(weight.item())
    return [after - before for before, after in pairwise(found)]


def test_nesterov_under_sgd_discounts_gradients_by_1_minus_gamma():
    gamma, lr, momentum, expected = 0.9, 0.1, 0.0, []
    for g in (1.0, -2.0, 0.5):
        momentum = gamma * momentum + g
        expected.append(-lr * (1 - gamma) * (g + gamma * momentum))
    assert steps_of("sgd", [1.0, -2.0, 0.5]) == pytest.approx(expected)


def test_nesterov_under_adamw_is_nadam():
    """Dozat, 2016, with the momentum's schedule of torch."""
    gamma, lr, m, v, product, expected = 0.9, 0.1, 0.0, 0.0, 1.0, []
    for t, g in enumerate((1.0, -2.0, 0.5), start=1):
        now, later = (gamma * (1 - 0.5 * 0.96 ** (n * 0.004)) for n in (t, t + 1))
        product *= now
        m, v = gamma * m + (1 - gamma) * g, 0.999 * v + 0.001 * g * g
        ahead = (1 - now) * g / (1 - product) + later * m / (1 - product * later)
        expected.append(-lr * ahead / (math.sqrt(v / (1 - 0.999**t)) + 1e-8))
    assert steps_of("adamw", [1.0, -2.0, 0.5]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("correction", "momentum"), [("none", 0.7), ("nesterov", 0.8)])
def test_muons_momentum_is_its_own_or_under_nesterov_that_of_the_look_ahead(
    dataset, correction, momentum
):
    optim = {"correction": correction, "name": "muon", "muon_momentum": 0.7, "look_ahead": 0.8}
    for trainer in Oracle(make(3, delay=1, optim=optim), dataset).trainers:
        muon, _ = trainer._optimizer._optimizers[0]
        assert isinstance(muon, torch.optim.Muon)
        assert [(g["momentum"], g["nesterov"]) for g in muon.param_groups] == [(momentum, True)]


def test_nesterov_is_the_chains_and_its_heads_alone(dataset):
    """Nothing that a student or a predictor learns from is late."""
    optim = {"correction": "nesterov", "name": "muon"}
    config = make(3, delay=1, optim=optim, student={"enabled": True}, predictor={"enabled": True})
    kinds = {
        part: [type(o).__name__ for o, _ in optimizer._optimizers]
        for part, optimizer in Oracle(config, dataset).optimizers[1].items()
    }
    assert kinds == {
        "chain": ["Muon", "NAdam"],
        "head": ["NAdam"],
        "student": ["Muon", "AdamW"],
        "predictor": ["AdamW"],
    }


@pytest.mark.parametrize(
    ("correction", "slowed", "stand_in"),
    [
        ("none", 1.0, 0.0),
        ("rate", 0.25, 0.0),
        ("surrogate", 1.0, 0.7),
        ("rate+surrogate", 0.25, 0.7),
    ],
)
def test_rate_and_surrogate_are_told_apart_and_add_up(correction, slowed, stand_in):
    optim = {"correction": correction, "surrogate": 0.7, "lr": 1.0, "warmup": 0.0, "cosine": False}
    config = make(4, delay=2, accumulate=4, optim={**optim, "name": "adamw"})
    tau = config.staleness(0)
    assert tau == 3
    stepper = Optimizer([("w", nn.Parameter(torch.zeros(1)))], config.optim, steps=10, tau=tau)
    assert (stepper.rate(0), config.surrogate) == (slowed, stand_in)
    assert stepper.rate(9) == 1.0  # annealed away


def rates(config: Config, dataset: Dataset) -> list[float]:
    """Of every component's first step."""
    return [trainer._optimizer.rate(0) for trainer in Oracle(config, dataset).trainers]


@pytest.mark.parametrize("correction", ["auto", "rate"])
def test_every_component_of_a_run_is_slowed_by_its_own_staleness(dataset, correction):
    optim = {"correction": correction, "lr": 1.0, "warmup": 0.0, "name": "sgd"}
    config = make(4, delay=2, accumulate=4, optim=optim)
    assert rates(config, dataset) == pytest.approx([1 / (1 + tau) for tau in (3, 2, 1, 0)])


def test_what_comes_down_one_hop_shrinks_by_one(dataset):
    """Under muon the rate, under sgd the gradient itself."""

    def of(optimizer: str, shrink: float) -> Config:
        optim = {"name": optimizer, "correction": "shrink", "shrink": shrink}
        return make(4, delay=1, one_hop=True, head={"weight": 1.0}, optim=optim)

    slowed, full = (rates(of("muon", shrink), dataset) for shrink in (0.3, 1.0))
    assert [a / b for a, b in zip(slowed, full, strict=True)] == pytest.approx([0.3, 0.3, 0.3, 1])
    assert rates(of("sgd", 0.3), dataset) == rates(of("sgd", 1.0), dataset)
    h, y = torch.randn(8, 12), torch.zeros(8, dtype=torch.long)
    shrunk, whole = (Oracle(of("sgd", shrink), dataset).trainers[1:] for shrink in (0.3, 1.0))
    for pair in zip(shrunk, whole, strict=True):
        answers = []
        for component in (trainer.worker.component for trainer in pair):
            component.forward(0, h, None, y, staleness=1)
            answers.append(component.answer(0))
        torch.testing.assert_close(answers[0], 0.3 * answers[1])


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
@pytest.mark.parametrize("correction", [c for c in CORRECTIONS if c != "nesterov"])
def test_without_delay_a_correction_changes_nothing(dataset, correction, optimizer):
    """Nesterov is another optimizer, whatever the delay."""
    config = make(2, optim={"name": optimizer, "correction": correction})
    plain = trained(make(2, optim={"name": optimizer, "correction": "none"}), dataset)
    found = trained(config, dataset)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("optimizer", "correction"),
    [("sgd", "compensation"), ("sgd", "shrink"), ("muon", "shrink"), ("sgd", "surrogate")],
)
def test_under_free_what_is_late_without_a_delay_is_corrected_too(dataset, optimizer, correction):
    """Nobody waits there, so gradients are late at a delay of 0. They were taken for fresh ones."""

    def chain(correction: str) -> list[dict]:
        optim = {"name": optimizer, "correction": correction, "compensation": 2.0, "shrink": 0.1}
        simulation = Simulation(make(3, schedule="free", accumulate=1, optim=optim), dataset)
        simulation.run()
        assert simulation.lives[0].component.ages.oldest > 0
        return simulation.result()["chain"]

    assert chain(correction) != chain("none")


@pytest.mark.parametrize(
    ("words", "correction"),
    [
        ([], "rate"),
        (["model=resnet"], "rate"),
        (["model=gpt"], "surrogate"),
        (["model=gpt", "replay=stash"], "rate"),
        (["model=gpt", "optim.correction=none"], "none"),
        (["model=gpt", "method=ddg"], "none"),
    ],
)
def test_where_nothing_is_said_it_is_what_has_won_for_the_family(words, correction):
    config = compose([*words, "data=text", "data.path=any"] if words else [])
    assert config.optim.correction == correction


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"correction": "rate+nesterov"}, "Corrections do not add up"),
        ({"correction": "magic"}, "optim.correction: expected one of auto, none, rate, surrogate"),
        ({"predict": "both"}, "optim.predict: expected one of backward, forward"),
        ({"look_ahead": 1.0}, "optim.look_ahead: expected 0 to below 1; got 1.0"),
        ({"compensation": -1}, "optim.compensation: expected 0 or more"),
    ],
)
def test_nonsense_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        make(2, optim=values)


@pytest.mark.parametrize(
    ("correction", "more", "says"),
    [
        ("prediction", {"replay": "stash"}, "expected replay=recompute; got stash, which has kept"),
        ("prediction", {"schedule": "free"}, "expected schedule=delayed"),
        ("prediction", {"predictor": {"enabled": True}}, "nothing that a body learns from is late"),
        ("shrink", {"predictor": {"enabled": True}}, "nothing that a body learns from is late"),
        ("compensation", {"replay": "stash"}, "expected optim=sgd with replay=stash; got adamw"),
        ("surrogate", {"replay": "stash"}, "belong to the activations that they meet"),
        ("surrogate", {"predictor": {"enabled": True}}, "parents answer at once"),
    ],
)
def test_a_correction_that_does_not_fit_is_refused(correction, more, says):
    with pytest.raises(ConfigError, match=f"optim.correction={correction}: .*{says}"):
        corrected(correction, "adamw", **more)
