"""A transformer, cut: the same numbers as in one piece, and no look at what comes later."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clouds import clouds, weights
from mach import checkpoint
from mach.component.losses import target_loss
from mach.config import GptConfig, StudentConfig
from mach.configfile import load
from mach.data import Batches, open_dataset
from mach.errors import ConfigError, DataError
from mach.metrics import Task
from mach.models.gpt import Attention, Gpt
from mach.optim import matrices_of
from mach.shapes import TensorSpec
from mach.trainer import Assembly, Oracle
from runs import stored_tensors
from texts import make, train, write_text

# B batch, T tokens, D width, H heads, E width of a head, V vocabulary

CPU = torch.device("cpu")
B, T, D, H, V = 3, 10, 16, 2, 50
E = D // H


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


def family(**fields) -> Gpt:
    config = GptConfig(width=D, heads=H, **fields)
    return Gpt(config, Task(TensorSpec((T,), torch.int64), V, "bits_per_byte"), depth=2)


# --- the arithmetic ------------------------------------------------------------------------


def turned(x_BHTE):
    """Rotary positions once more: each pair is a complex number, turned by its position."""
    pairs = torch.complex(x_BHTE[..., : E // 2], x_BHTE[..., E // 2 :])
    speeds = torch.tensor([10_000 ** (-2 * i / E) for i in range(E // 2)])
    angles = torch.arange(T)[:, None] * speeds
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


@pytest.mark.parametrize("rotary", [True, False])
def test_attention_is_a_masked_softmax_written_out(rotary):
    torch.manual_seed(0)
    attention, x_BTD = Attention(D, H, T, rotary), torch.randn(B, T, D)

    def heads(linear):
        return torch.stack((x_BTD @ linear.weight.T).split(E, dim=-1), dim=1)

    q_BHTE, k_BHTE = heads(attention.query), heads(attention.key)
    if rotary:
        q_BHTE, k_BHTE = turned(q_BHTE), turned(k_BHTE)
    scores_BHTT = torch.einsum("bhte,bhse->bhts", q_BHTE, k_BHTE) / math.sqrt(E)
    later_TT = torch.arange(T)[None] > torch.arange(T)[:, None]
    weights_BHTT = scores_BHTT.masked_fill(later_TT, float("-inf")).softmax(-1)
    mixed_BHTE = torch.einsum("bhts,bhse->bhte", weights_BHTT, heads(attention.value))
    expected_BTD = torch.cat(mixed_BHTE.unbind(1), dim=-1) @ attention.project.weight.T
    torch.testing.assert_close(attention(x_BTD), expected_BTD)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("width", [D, 12])
def test_no_later_token_changes_what_body_head_or_student_say_earlier(positions, width):
    torch.manual_seed(0)
    gpt = family(positions=positions)
    body = nn.Sequential(gpt.stem(), gpt.block(0), gpt.block(1))
    spec = TensorSpec((T, D))
    head = gpt.head(spec)
    student = gpt.student(spec, StudentConfig(width=width, depth=2))
    x_BT = torch.randint(V, (B, T))
    assert student(x_BT).shape == (B, *spec.shape)
    assert head(body(x_BT)).shape == (B * T, V)
    for place in range(1, T):
        changed_BT = x_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % V
        for model in (body, student, nn.Sequential(body, head), nn.Sequential(student, head)):
            before = model(x_BT).reshape(B, T, -1)
            after = model(changed_BT).reshape(B, T, -1)
            assert torch.equal(before[:, :place], after[:, :place])
            assert not torch.equal(before[:, place], after[:, place])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_shorter_text_is_read_as_the_beginning_of_a_longer_one(positions):
    """Up to how the sums are blocked: float32's rounding."""
    torch.manual_seed(0)
    gpt = family(positions=positions)
    model = nn.Sequential(gpt.stem(), gpt.block(0), gpt.block(1), gpt.head(TensorSpec((T, D))))
    x_BT = torch.randint(V, (B, T))
    whole = model(x_BT).reshape(B, T, V)
    for tokens in range(1, T):
        part = model(x_BT[:, :tokens]).reshape(B, tokens, V)
        torch.testing.assert_close(part, whole[:, :tokens])


def test_what_writes_to_the_stream_begins_the_smaller_the_deeper_the_network():
    torch.manual_seed(0)
    task = Task(TensorSpec((T,), torch.int64), V, "bits_per_byte")
    block = Gpt(GptConfig(width=128), task, depth=8).block(0)
    ratio = block.contract.weight.std() / block.expand.weight.std()
    torch.testing.assert_close(ratio, torch.tensor(1 / math.sqrt(16)), rtol=0.02, atol=0)


# --- the chain -----------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("components", [1, 2, 4])
def test_without_delay_it_is_back_propagation_bit_by_bit(path, components, positions):
    """Weights after five steps, tolerance 0."""
    config = make(path, components, model={"depth": 4, "positions": positions})
    oracle = Oracle(config, open_dataset(config.data))  # for its first weights and its optimizers
    parts = [trainer.worker.component for trainer in oracle.trainers]
    network = nn.Sequential(*(part.body for part in parts), parts[-1].head)
    batches = Batches(open_dataset(config.data), config.seed, config.microbatch_size, CPU)
    for step in range(config.steps):
        for b in range(2 * step, 2 * step + 2):
            x, y = batches.train(b)
            (F.cross_entropy(network(x), y.flatten()) / 2).backward()
        for part in parts:
            part._update.step(step)
    trained, _ = train(config)
    assert_same(weights(trained), weights(oracle))
    top = trained.trainers[-1].worker.component
    assert_same(top.head.state_dict(), parts[-1].head.state_dict())


def test_the_cut_does_not_change_the_network(path):
    def by_block(components):
        trained, _ = train(make(path, components, model={"depth": 4}))
        return {name.partition(".")[2]: value for name, value in weights(trained).items()}

    assert_same(by_block(1), by_block(4))


@pytest.mark.parametrize("replay", ["recompute", "stash"])
def test_bf16_trains_to_nearly_the_same_loss(path, replay):
    """Three digits of precision, five steps, one microbatch late."""
    how = {"delay": 1, "replay": replay, "head": {"weight": 0.1}, "student": {"enabled": True}}
    (_, exact), (_, rounded) = (
        train(make(path, 2, **how, optim={"precision": precision}))
        for precision in ("fp32", "bf16")
    )
    for part in ("chain", "windows"):
        for a, b in zip(exact[part], rounded[part], strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=5e-3)


def test_processes_give_the_weights_of_the_oracle_bit_by_bit(language_run):
    """Two components, each in a process of its own, with delay, heads and a student."""
    run_dir, _ = language_run
    config = load(run_dir / "config.yaml")
    assert config.effective_delay == 1
    oracle, _ = train(config)
    stored = stored_tensors(run_dir / "checkpoints" / f"step-{config.steps}")
    for k, trainer in enumerate(oracle.trainers):
        for part, module in trainer.worker.component.modules().items():
            for name, value in module.state_dict().items():
                assert torch.equal(stored[f"component-{k}/{part}.{name}"], value), (k, part, name)


def test_muon_takes_the_matrices_of_the_blocks_and_no_table(path):
    config = make(path, 1, model={"positions": "learned"})
    assembly = Assembly(config, open_dataset(config.data).task)
    _, optimizers = assembly.component(0, CPU)
    optimizer = optimizers["chain"]
    (muon, _), (rest, _) = optimizer._optimizers
    names = {id(p): name for name, p in optimizer._named.items()}
    attention = [f"attention.{name}" for name in ("query", "key", "value", "project")]
    assert {names[id(p)] for p in muon.param_groups[0]["params"]} == {
        f"body.block0.{name}.weight" for name in (*attention, "expand", "contract")
    }
    assert {names[id(p)] for p in rest.param_groups[0]["params"]} >= {
        "body.stem.tokens.weight",
        "body.stem.positions.weight",
        "head.linear.weight",
    }


def test_muon_takes_no_scales_of_a_norm_over_positions():
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm([3, 4]), nn.RMSNorm([3, 4]))
    assert matrices_of("body", module) == {"body.0.weight"}


@pytest.mark.parametrize("samples", [6, 7])
def test_bits_per_byte_is_the_mean_over_all_places_of_all_test_windows(path, samples):
    """Three windows a batch: the last one is full, or has a single window."""
    config = make(
        path, 2, head={"weight": 0.1}, student={"enabled": True}, data={"test_samples": samples}
    )
    oracle, result = train(config)
    low, high = (trainer.worker.component for trainer in oracle.trainers)
    windows = {
        "chain 0": nn.Sequential(low.body, low.head),
        "chain 1": nn.Sequential(low.body, high.body, high.head),
        "window 1..1": nn.Sequential(high.student.network, high.body, high.head),
    }
    held_out = path.read_bytes()[-(path.stat().st_size // 10) :]
    context = config.data.context
    bits = dict.fromkeys(windows, 0.0)
    for number in range(samples):
        start = number * (len(held_out) - context - 1) // (samples - 1)
        text = torch.tensor(list(held_out[start : start + context + 1]))
        for name, model in windows.items():
            with torch.no_grad():
                log_probabilities = model(text[None, :-1]).log_softmax(-1)
            for place in range(context):
                bits[name] -= log_probabilities[place, text[place + 1]].item() / math.log(2)
    rows = [*result["chain"], *result["windows"]]
    for row, total in zip(rows, bits.values(), strict=True):
        # Sums of float32 in another order.
        assert row["bits_per_byte"] == pytest.approx(total / (samples * context), rel=1e-5)


def embedding_of(**options):
    task = Task(TensorSpec((T,), torch.int64), V, "bits_per_byte")
    return Gpt(GptConfig(width=256, heads=H, **options), task, depth=2).stem()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_scaled_embedding_begins_with_variance_1(positions):
    x = torch.randint(V, (B, T))
    vectors = embedding_of(positions=positions)(x).detach()
    assert vectors.var() == pytest.approx(2 if positions == "learned" else 1, rel=0.2)
    assert embedding_of(scaled=False)(x).detach().std() == pytest.approx(0.02, rel=0.2)


def test_a_scaled_embedding_is_the_table_times_the_root_of_its_width():
    embed, x = embedding_of(), torch.randint(V, (B, T))
    assert torch.equal(embed(x), embed.tokens.weight[x] * 16)


# --- a tied embedding ----------------------------------------------------------------------


def test_a_tied_embedding_is_one_parameter_that_takes_one_step(path):
    """Against a plain loop in which the table embeds and unembeds."""
    config = make(
        path, 1, schedule="sync", model={"tied": True}, optim={"name": "adamw", "warmup": 0.0}
    )
    oracle = Oracle(config, open_dataset(config.data))
    component = oracle.trainers[0].worker.component
    body, head = component.body, component.head
    assert head.linear.weight is body.stem.tokens.weight
    parameters = list({id(p): p for m in (body, head) for p in m.parameters()}.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, weight_decay=0.0)
    batches = Batches(open_dataset(config.data), config.seed, config.microbatch_size, CPU)
    for step in range(config.steps):
        for b in range(2 * step, 2 * step + 2):
            x, y = batches.train(b)
            h = head.norm(body(x))
            logits = h @ body.stem.tokens.weight.T
            (target_loss(logits.flatten(0, 1), y.flatten()) / 2).backward()
        optimizer.param_groups[0]["lr"] = (
            config.optim.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        )
        optimizer.step()
        optimizer.zero_grad()
    trained, _ = train(config)
    other = trained.trainers[0].worker.component
    assert other.head.linear.weight is other.body.stem.tokens.weight
    for name, value in body.state_dict().items():
        torch.testing.assert_close(other.body.state_dict()[name], value)


def test_a_tied_embedding_is_counted_and_saved_once(path, tmp_path):
    config = make(path, 1, model={"tied": True})
    oracle, result = train(config)
    _, untied = train(make(path, 1))
    assert untied["chain"][0]["params"] - result["chain"][0]["params"] == 256 * 16
    assert untied["chain"][0]["flops"] == result["chain"][0]["flops"]

    trainer = oracle.trainers[0]
    component, optimizers = trainer.worker.component, {"chain": trainer._optimizer}
    files = checkpoint.save(tmp_path, 5, 0, checkpoint.tensors_of(component, optimizers))
    checkpoint.write_manifest(tmp_path, 5, files, config)
    saved = checkpoint.find(tmp_path)
    stored = stored_tensors(saved.path)
    assert "component-0/body.stem.tokens.weight" in stored
    assert "component-0/head.linear.weight" not in stored
    fresh, fresh_optimizers = oracle.assembly.component(0, CPU)
    checkpoint.load(saved, 0, fresh, fresh_optimizers)
    for part, module in component.modules().items():
        assert_same(module.state_dict(), fresh.modules()[part].state_dict())
    assert_same(trainer._optimizer.state(), fresh_optimizers["chain"].state())


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"model": {"tied": True}}, "model.tied=true: expected components=1; got 2. .*tied=false"),
        ({"model": {"width": 18, "heads": 4}}, "model.width: .*multiple of 8, .*; got 18"),
        ({"model": {"width": 6}}, "model.width: .*multiple of 4, .*turn pairs; got 6"),
        ({"model": {"width": 7, "positions": "learned"}}, "model.width: .*multiple of 2, .*got 7"),
        ({"student": {"enabled": True, "width": 6}}, "student.width: .*multiple of 4, .*; got 6"),
        ({"model": {"heads": 0}}, "model.heads: expected 1 or more"),
        ({"model": {"positions": "none"}}, "model.positions: expected one of rotary, learned"),
        ({"model": {"expansion": 0}}, "model.expansion .*: expected 1 or more"),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(path, overrides, says):
    with pytest.raises(ConfigError, match=says):
        make(path, **overrides)


def test_data_that_is_no_text_is_refused(path):
    config = make(path)
    with pytest.raises(ConfigError, match=r"model=gpt: .*tokens.*; got float32\[10\].*data=text"):
        Assembly(config, clouds().task)


def test_a_context_longer_than_the_text_is_refused(path):
    with pytest.raises(DataError, match=r"expected at least data\.context"):
        open_dataset(make(path, data={"context": 5000}).data)
