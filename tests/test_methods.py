"""Every named method, compared with its equations written out in a few lines of plain torch."""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.func import functional_call

import texts
from clouds import clouds, weights
from mach.component.losses import target_loss
from mach.component.soft import SoftTargets, pack, unpack
from mach.config import Config, PredictorConfig
from mach.configfile import from_mapping
from mach.data import Batches, Dataset, open_dataset
from mach.errors import ConfigError
from mach.launcher.compose import compose, conf_dir
from mach.models.predictor import PredictGradient
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
    """DNI: below the top a component learns at once from a guess p(h, y) / s, or p(h) / s, and
    returns the gradient that comes of it; what comes 2 d microbatches late teaches p. With students
    that make every input, from those."""
    oracle = Oracle(config, dataset)
    components = [t.worker.component for t in oracle.trainers]
    last, m = len(components) - 1, config.accumulate
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    arriving: list[list[tuple]] = [[] for _ in range(last)]
    taught = [0] * last

    def guess(k: int, h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        given = (h, y) if config.predictor.labels else (h,)
        return components[k].predictor.network(*given)

    def teach(k: int) -> None:
        h, y, gradient = arriving[k].pop(0)
        target = gradient * len(y) * m
        error = nn.functional.mse_loss(guess(k, h, y), target)
        (error / target.var(correction=0).clamp_min(1e-8) / m).backward()
        taught[k] += 1
        if taught[k] % m == 0:
            components[k].predictor._update.step(taught[k] // m - 1)

    for b in range(config.microbatches):
        x, y = batches.train(b)
        child, y = x, components[0].targets(y)
        for k, c in enumerate(components):
            leaf = c.student.network(x) if k > 0 and config.student.mix else child
            leaf = leaf.detach()
            h = c.body(leaf.requires_grad_(leaf.is_floating_point()))
            if k < last:
                h.backward(guess(k, h.detach(), y).detach() / (len(y) * m))
            else:
                (target_loss(c.head(h), y) / m).backward()
            if k > 0:
                arriving[k - 1].append((child, y, leaf.grad))
            if k > 0 and config.student.mix:
                c.distil(x, child, y)
            child = h.detach()
        for k in range(last):
            if len(arriving[k]) > 2 * config.delay:
                teach(k)
        if (b + 1) % m == 0:
            for c in components:
                c._update.step(b // m)
    for k in range(last):
        while arriving[k]:
            teach(k)
    return weights(oracle) | predictors(oracle)


def predictors(oracle: Oracle) -> dict:
    """Weights of every predictor."""
    return {
        f"{t.worker.index}.predictor.{name}": value
        for t in oracle.trainers[:-1]
        for name, value in t.worker.component.predictor.network.state_dict().items()
    }


@pytest.mark.parametrize("method", ["dni", "synthetic_inputs"])
@pytest.mark.parametrize("labels", ["true", "false"])
@pytest.mark.parametrize("delay", [0, 2])
def test_dni_learns_at_once_and_teaches_its_predictor_late(dataset, method, labels, delay):
    config = config_of(method, f"delay={delay}", f"predictor.labels={labels}")
    oracle = train(config, dataset)
    trained = predictors(oracle)
    assert_same(weights(oracle) | trained, predicted_gradients(config, dataset))
    assert any(value.abs().sum() > 0 for value in trained.values() if value.ndim == 2)


def test_dni_on_a_text_predicts_the_gradient_of_each_positions_own_loss(tmp_path):
    """In the scale of a sample's, thousands of times smaller, the first guesses were noise."""
    optim = {"correction": "none"}
    values = asdict(texts.make(texts.write_text(tmp_path), steps=20, optim=optim))
    values["predictor"] = {"enabled": True, "width": 16, "lr": 1e-3}
    config = from_mapping(values)
    text = open_dataset(config.data)
    oracle = train(config, text)
    assert_same(weights(oracle) | predictors(oracle), predicted_gradients(config, text))


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("depth", [0, 1])
def test_the_first_guess_is_no_gradient(labels, depth):
    predictor = PredictGradient((6,), 4, PredictorConfig(True, depth=depth, labels=labels))
    guess = predictor(torch.randn(5, 6), torch.randint(4, (5,)) if labels else None)
    assert torch.equal(guess, torch.zeros(5, 6))


# --- soft targets ----------------------------------------------------------------------------


def soft_loss(logits, y, larger, alpha, t):
    """Of TAKD, in plain torch."""
    log = torch.log_softmax
    teacher, student = log(larger / t, 1), log(logits / t, 1)
    apart = (teacher.exp() * (teacher - student)).sum(1).mean()
    return (1 - alpha) * nn.functional.cross_entropy(logits, y) + alpha * t * t * apart


def taught_exits(config: Config, dataset: Dataset) -> Oracle:
    """The logits of exit k + 1 teach exit k, with the gradient; those of exit k window k..k, at its
    forward."""
    oracle = Oracle(config, dataset)
    components = [t.worker.component for t in oracle.trainers]
    last, m = len(components) - 1, config.accumulate
    alpha, t = config.head.soft, config.head.temperature
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    history: list[list[tuple[dict, dict]]] = [[] for _ in components]
    for b in range(config.microbatches):
        if b % m == 0:
            for versions, c in zip(history, components, strict=True):
                versions.append((copy_of(c.body), copy_of(c.head)))
        x, y = batches.train(b)
        inputs = [x]
        for k, c in enumerate(components):  # up
            body, head = history[k][max(0, b - lag(last + 1, k, config.delay)) // m]
            h = functional_call(c.body, body, (inputs[k],))
            if k > 0:
                guess, larger = c.student.network(x), functional_call(c.head, head, (h,))
                says = functional_call(c.head, head, (functional_call(c.body, body, (guess,)),))
                error = nn.functional.mse_loss(guess, inputs[k]) / inputs[k].var(correction=0)
                loss = error + soft_loss(says, y, larger, config.student.soft, t)
                torch.autograd.backward(loss / m, inputs=list(c.student.network.parameters()))
            inputs.append(h.detach())
        gradient, larger = None, None
        for k in range(last, -1, -1):  # down
            c, leaf = components[k], inputs[k].clone().requires_grad_()
            h = c.body(leaf)
            logits = c.head(h)
            if k == last:
                (target_loss(logits, y) / m).backward()
            else:
                in_full = soft_loss(c.head(h.detach()), y, larger, alpha, t) / m
                torch.autograd.backward(in_full, inputs=list(c.head.parameters()))
                felt = config.head.weight * soft_loss(logits, y, larger, alpha, t) / m
                learning = [leaf, *c.body.parameters()]
                torch.autograd.backward(felt + (h * gradient).sum(), inputs=learning)
            gradient, larger = leaf.grad, logits.detach()
            if (b + 1) % m == 0:
                students = [c.student.update] if c.student is not None else []
                heads = [c._head_update] if c._head_update is not None else []
                for update in (c._update, *heads, *students):
                    update.step(b // m)
    return oracle


def test_takd_teaches_every_exit_by_the_next_larger_one_and_windows_by_their_exit(dataset):
    small = ("takd", "optim=sgd", "head.soft=0.7", "student.soft=0.3")
    config = config_of(*small)
    found, by_hand = train(config, dataset), taught_exits(config, dataset)
    for trainer, other in zip(found.trainers, by_hand.trainers, strict=True):
        modules = other.worker.component.modules()
        for part, module in trainer.worker.component.modules().items():
            for name, value in module.state_dict().items():
                expected = modules[part].state_dict()[name]
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    plain = train(config_of(*small, "head.soft=1"), dataset)
    assert any(
        not torch.allclose(value, weights(plain, "head")[name], rtol=1e-3)
        for name, value in weights(found, "head").items()
    )


def test_gradient_and_logits_travel_as_one_row_for_each_sample():
    gradient, logits = torch.randn(4, 3, 5), torch.randn(4 * 3, 7)
    message = pack(gradient, logits)
    assert message.shape == (4, 3 * 5 + 3 * 7)
    back, larger = unpack(message, gradient.shape)
    assert torch.equal(back, gradient)
    assert torch.equal(larger.reshape(-1, 7), logits)
    soft, says, y = SoftTargets(0.5, 2.0), torch.randn(4 * 3, 7), torch.zeros(4 * 3).long()
    assert torch.equal(soft.loss(says, y, larger), soft.loss(says, y, logits))


# --- the 2019 algorithm ----------------------------------------------------------------------


def copy_of(module: nn.Module) -> dict:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def gradients_of_one_hop(config: Config, dataset: Dataset) -> dict:
    """Every body sees [h; x], half of h its student's; L = lambda CE + <h, G>, where G is the
    gradient of the parent's own lambda CE at the weights of its forward."""
    oracle = Oracle(config, dataset)
    components = [t.worker.component for t in oracle.trainers]
    last, m = len(components) - 1, config.accumulate
    history: list[list[tuple[dict, dict]]] = [[] for _ in components]
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    half = config.microbatch_size // 2
    for b in range(config.microbatches):
        if b % m == 0:
            for versions, c in zip(history, components, strict=True):
                versions.append((copy_of(c.body), copy_of(c.head)))
        x, y = batches.train(b)
        felt = [config.head.weight] * last + [1.0]
        given, child, answers = [], x, []
        for k, c in enumerate(components):  # up, and at once the gradient for the child
            body, head = history[k][max(0, b - (2 * config.delay if k < last else 0)) // m]
            leaf, entering = child.clone(), None
            if k > 0:
                leaf[:half] = c.student.network(x[:half]).detach()
                leaf.requires_grad_()
            given.append(leaf)
            entering = (leaf, x) if k > 0 else x
            h = functional_call(c.body, body, (entering,))
            if k > 0:
                loss = target_loss(functional_call(c.head, head, (h,)), y) / m
                (answer,) = torch.autograd.grad(felt[k] * loss, leaf)
                answer[:half] = 0
                answers.append(answer)
                c.distil(x, child, y)
            child = h.detach()
        for k, c in enumerate(components):
            h = c.body((given[k].detach(), x) if k > 0 else x)
            entering = h.detach() + felt[k] * (h - h.detach())  # its head learns in full
            loss = target_loss(c.head(entering), y) / m
            if k < last:
                torch.autograd.backward([h, loss], [answers[k], None])
            else:
                loss.backward()
            if (b + 1) % m == 0:
                c._update.step(b // m)
                if c._head_update is not None:
                    c._head_update.step(b // m)
    return weights(oracle)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("delay", [0, 1])
def test_mach2019_sees_the_input_mixes_in_its_student_and_sends_gradients_one_hop(
    dataset, delay, weight
):
    overrides = (f"delay={delay}", f"head.weight={weight}", "student.task_weight=0")
    config = config_of("mach2019", *overrides)
    assert_same(weights(train(config, dataset)), gradients_of_one_hop(config, dataset))


def test_raw_input_is_part_of_what_is_counted_and_of_every_window(dataset):
    plain, joined = (
        Oracle(config_of("mach2019", *more), dataset).assembly.costs().bodies
        for more in (["method=mach"], [])
    )
    width, features = 12, 10
    assert joined[0] == plain[0]
    assert joined[1].params - plain[1].params == (width + features + 1) * width


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(dataset, method):
    result = Oracle(config_of(method, "steps=80"), dataset).run()
    rows = [*result["chain"], *result["windows"]]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert result["chain"][-1]["accuracy"] > 0.5  # 0.25 is guessing


@pytest.mark.parametrize(
    ("method", "overrides", "says"),
    [
        ("backprop", "schedule=delayed delay=1", "delay=0, or schedule=sync; got 1. .*exact"),
        ("backprop", "feedback=0.5", "feedback=1; got 0.5. Its gradients are exact"),
        ("backprop", "schedule=free delay=0", "schedule=sync, or delayed with delay=0; got free"),
        ("dgl", "feedback=0.5", "feedback=0; got 0.5. It learns from local losses"),
        ("dgl", "student.mix=0.5", "student.mix=0; got 0.5. Its bodies learn on what comes from"),
        ("ddg", "replay=recompute", "replay=stash; got recompute. .*weights of then"),
        ("features_replay", "replay=stash", "replay=recompute; got stash. .*present weights"),
        ("ddg", "feedback=0 head.weight=1", "feedback=1; got 0"),
        ("dni", "head.weight=0.1", "head.weight=0; got 0.1. It has one loss"),
        ("dni", "student=distil student.mix=0.5", "student.mix=0; got 0.5"),
        ("synthetic_inputs", "head.weight=0.1", "head.weight=0; got 0.1. It has one loss"),
        ("fdg", "replay=recompute", "replay=stash; got recompute"),
        ("fdg", "optim.correction=rate", "optim.correction=shrink; got rate. Shrinking is what"),
        ("ampnet", "replay=stash", "replay=recompute; got stash"),
        ("takd", "head.soft=0", "head.soft=more than 0; got 0"),
        ("takd", "student=none", "student.enabled=true; got False. Windows are"),
        ("takd", "student.task_weight=0", "student.task_weight=more than 0; got 0.0. Every window"),
        ("mach2019", "model.raw_input=false", "model.raw_input=true; got False"),
        ("mach2019", "one_hop=false", "one_hop=true; got False. Its gradients stop"),
        ("mach2019", "student=none", "student.enabled=true; got False. Half of"),
        ("mach2019", "student.mix=0", "student.mix=more than 0; got 0"),
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


@pytest.mark.parametrize("method", ["ddg", "features_replay", "ampnet"])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("feedback=0.5", "feedback=1; got 0.5. It learns from the loss at the top, in full"),
        ("optim.correction=shrink", "optim.correction=anything but shrink; got shrink"),
    ],
)
def test_a_method_that_passes_whole_gradients_is_refused_less(method, overrides, says):
    with pytest.raises(ConfigError, match=f"method={method}: expected {says}"):
        config_of(method, *overrides.split())


@pytest.mark.parametrize("method", ["backprop", "ddg", "features_replay", "fdg", "ampnet"])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("predictor.enabled=true", "predictor.enabled=false"),
        ("one_hop=true head.weight=1", "one_hop=false"),
        ("head.weight=0.5", "head.weight=0"),
        ("student=distil student.mix=0.5", "student.mix=0"),
    ],
)
def test_a_method_with_one_loss_at_the_top_is_refused_what_makes_another_of_it(
    method, overrides, says
):
    expected = f"method={method}: expected {says}"
    if (method, says) == ("fdg", "predictor.enabled=false"):
        expected = f"optim.correction=shrink: expected {says}"  # whatever the method
    with pytest.raises(ConfigError, match=f"{expected}; got"):
        config_of(method, *overrides.split())


@pytest.mark.parametrize("method", ["features_replay", "ampnet"])
@pytest.mark.parametrize("correction", ["surrogate", "rate+surrogate"])
def test_heads_that_nobody_feels_cannot_stand_in_for_parents(method, correction):
    """They could: bodies then knew of heads that conf/ calls probes."""
    with pytest.raises(ConfigError, match=rf"one that asks no head; got {re.escape(correction)}"):
        config_of(method, f"optim.correction={correction}")
    exact = config_of("backprop", f"optim.correction={correction}")  # where nothing is late
    assert exact.surrogate == 0


@pytest.mark.parametrize("method", ["backprop", "ddg", "features_replay", "fdg", "ampnet"])
def test_a_method_with_one_loss_at_the_top_may_have_students_that_nobody_notices(method):
    assert config_of(method, "student=distil").student.enabled
    assert config_of(method, "student.mix=0.5").student.mix == 0.5  # of none


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("predictor.enabled=true feedback=0 head.weight=1", "predictor.*expected feedback above 0"),
        ("predictor.enabled=true schedule=free", "predictor.* schedule=delayed or sync; got free"),
        ("one_hop=true schedule=free", "one_hop=true: expected schedule=delayed or sync; got free"),
        ("one_hop=true predictor.enabled=true", "one_hop=true: expected predictor.enabled=false"),
        ("one_hop=true head.weight=0", "one_hop=true: expected head.weight above 0"),
        ("head.soft=0.5 schedule=free", "head.soft=0.5: expected schedule=delayed or sync"),
        ("head.soft=0.5 transport.wire_dtype=int8", "head.soft=0.5: expected transport.wire_dtype"),
        ("head.soft=2", "head.soft: expected 0 to 1; got 2"),
        ("student.mix=0.5 microbatch_size=1", "student.mix=0.5: .*; got none of microbatch_size=1"),
        ("student.mix=0.8 microbatch_size=2", "student.mix=0.8: .*; got all of microbatch_size=2"),
        ("method=mach2019 microbatch_size=1", "student.mix=0.5: expected a part of a microbatch"),
        ("model=gpt model.raw_input=true", "model.raw_input=true: expected model=mlp.* got gpt"),
        ("optim.correction=rate+nesterov", "Corrections do not add up: .* Choose one"),
        ("optim.shrink=0", "optim.shrink: expected more than 0 and at most 1; got 0"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says) as refused:
        compose([*overrides.split()])
    assert refused.value.exit_code == 2
