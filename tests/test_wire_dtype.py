"""What activations and gradients are rounded to on their way, and what that changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clouds import clouds, make, weights
from mach.channels import Edge, Header, Kind, connect
from mach.channels.encoding import Encoding
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.handshake import exchange_hello
from mach.channels.memory import memory_channel
from mach.component import Component, Student
from mach.config import TransportConfig
from mach.configfile import fingerprint
from mach.data import Batches
from mach.errors import ChannelError, ConfigError, DivergedError
from mach.shapes import TensorSpec
from mach.trainer import Assembly, Oracle, Trainer, Worker, program
from mach.trainer.oracle import Quiet

CPU = torch.device("cpu")
WIRES = ["float32", "bfloat16", "int8"]
SHAPES = [(16, 128), (3, 70), (4, 5), (2, 3, 8, 8), (2, 5, 12, 96), (7,), (1, 1), (2, 3, 40)]


def random(shape, seed=0):
    """Rows of very different size."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** torch.empty(shape[:1]).uniform_(-6, 6, generator=generator)
    return torch.randn(shape, generator=generator) * spread.view(-1, *[1] * (len(shape) - 1))


def rows(encoding, tensor):
    return tensor.reshape(encoding._rows)


# --- encoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wire", WIRES)
def test_what_is_decoded_has_the_shape_and_dtype_of_the_payload(shape, wire):
    for dtype in (torch.float32, torch.bfloat16):
        encoding = Encoding(TensorSpec(shape, dtype), wire)
        sent = random(shape).to(dtype)
        buffer = torch.empty(encoding.nbytes + 3, dtype=torch.uint8)  # a slot may have more room
        encoding.encode(sent, buffer)
        got = encoding.decode(buffer)
        assert (got.shape, got.dtype) == (sent.shape, dtype)
        assert torch.equal(got, encoding.round_trip(sent))
        assert torch.equal(got, encoding.decode(encoding.to_wire(sent)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_int8_is_off_by_half_a_step_of_its_row_at_most(shape, seed):
    encoding = Encoding(TensorSpec(shape), "int8")
    sent = random(shape, seed)
    error = rows(encoding, (encoding.round_trip(sent) - sent).abs())
    step = rows(encoding, sent).abs().amax(1, keepdim=True) / 127
    assert (error <= step * (0.5 + 127 * torch.finfo(torch.float32).eps)).all()


def test_int8_is_symmetric_and_rounding_once_is_enough():
    encoding = Encoding(TensorSpec((16, 128)), "int8")
    once = encoding.round_trip(random((16, 128)))
    assert torch.equal(encoding.round_trip(-random((16, 128))), -once)
    torch.testing.assert_close(encoding.round_trip(once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_torch_s_own_rounding(shape):
    sent = random(shape)
    got = Encoding(TensorSpec(shape), "bfloat16").round_trip(sent)
    assert torch.equal(got, sent.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_float32_sends_the_payload_s_own_bytes_and_reads_them_in_place(dtype):
    sent = random((4, 6)).to(dtype)
    encoding = Encoding(TensorSpec((4, 6), dtype))
    assert encoding.plain
    wire = encoding.to_wire(sent)
    assert wire.data_ptr() != sent.data_ptr()
    assert encoding.decode(wire).data_ptr() == wire.data_ptr()
    assert torch.equal(encoding.decode(wire), sent)
    assert torch.equal(encoding.round_trip(sent), sent)
    assert encoding.round_trip(sent).data_ptr() != sent.data_ptr()


def test_nothing_is_made_wider_than_it_is():
    assert Encoding(TensorSpec((4, 6), torch.bfloat16), "bfloat16").plain
    assert Encoding(TensorSpec((4, 64), torch.bfloat16)).nbytes == 2 * 4 * 64


@pytest.mark.parametrize("wire", WIRES)
def test_zeros_stay_exactly_zero_and_tiny_rows_become_it(wire):
    sent = torch.zeros(3, 64)
    sent[1] = 1.0
    sent[2, 7] = 1e-40
    got = Encoding(TensorSpec((3, 64)), wire).round_trip(sent)
    assert torch.equal(got[0], sent[0])
    assert torch.equal(got[1], sent[1])
    assert (got[2] - sent[2]).abs().max() < 1e-38


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wire", WIRES)
def test_what_is_not_finite_is_not_hidden(wire, value):
    sent = random((4, 64))
    sent[2, 5] = value
    got = Encoding(TensorSpec((4, 64)), wire).round_trip(sent)
    assert not got[2, 5].isfinite()
    assert got[[0, 1, 3]].isfinite().all()
    if wire == "int8":
        assert got[2].isnan().all()


def test_the_largest_numbers_survive_int8():
    sent = torch.full((1, 64), 0.99 * torch.finfo(torch.float32).max)
    torch.testing.assert_close(Encoding(TensorSpec((1, 64)), "int8").round_trip(sent), sent)


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ((16, 128), 128),
        ((4, 5), 5),  # samples share no scale
        ((2, 16, 8, 8), 64),  # a channel of an image
        ((2, 16, 32, 32), 1024),
        ((2, 128, 96), 96),  # a token
        ((2, 3, 4, 5), 60),
    ],
)
def test_a_row_is_long_enough_to_pay_for_its_scale(shape, row):
    encoding = Encoding(TensorSpec(shape), "int8")
    assert encoding._rows[1] == row
    assert encoding.nbytes == TensorSpec(shape).nbytes // 4 * (1 + 4 / row)


# --- edges ----------------------------------------------------------------------------------------


def both_ends(transport, edge):
    if transport == "memory":
        return memory_channel(edge, 20.0)
    store = dist.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )
    live = {"on_change": lambda: None} if transport == "gloo-live" else {}
    with ThreadPoolExecutor() as pool:
        ends = [
            pool.submit(kind, edge, client, CPU, 20.0, 20.0, **live)
            for kind, client in ((GlooSender, store), (GlooReceiver, store.clone()))
        ]
        return tuple(end.result(30) for end in ends)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("transport", ["memory", "gloo", "gloo-live"])
def test_training_is_rounded_and_evaluation_is_not_on_every_transport(transport, wire):
    edge = Edge(1, 2, TensorSpec((4, 64)), 2, wire)
    sender, receiver = both_ends(transport, edge)
    rounded, counted = Encoding(edge.payload, wire), 0
    for number in range(6):
        kind = Kind.EVALUATE if number % 3 == 1 else Kind.TRAIN
        header, sent = Header(kind, number), random((4, 64), number)
        sender.send(header, sent)
        got = receiver.receive(header)
        assert torch.equal(got, sent if kind is Kind.EVALUATE else rounded.round_trip(sent))
        counted += edge.frame_bytes(kind)
        assert sender.bytes_sent == receiver.bytes_received == counted
    sender.abort()
    receiver.abort()


def test_bfloat16_halves_the_bytes_and_int8_quarters_them():
    sizes = []
    for wire in WIRES:
        edge = Edge(0, 1, TensorSpec((16, 128, 128)), 2, wire)
        sender, _ = memory_channel(edge, 20.0)
        sender.send(Header(Kind.TRAIN, 0), torch.ones(16, 128, 128))
        sizes.append(sender.bytes_sent)
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.001)
    assert sizes[2] / sizes[0] == pytest.approx(0.25 * (1 + 4 / 128), abs=0.001)


def test_two_ends_with_another_wire_refuse_each_other_naming_both():
    store = dist.HashStore()

    def meet(sending, wire):
        edge = Edge(1, 2, TensorSpec((4, 5)), 2, wire)
        exchange_hello(store, edge, sending=sending, identity={}, timeout_s=20)

    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(meet, True, "int8"), pool.submit(meet, False, "bfloat16")]
        errors = [str(end.exception(20)) for end in ends]
    assert isinstance(ends[0].exception(), ChannelError)
    assert "component 1 has transport.wire_dtype int8, component 2 has" in errors[0]
    assert "component 2 has transport.wire_dtype bfloat16, component 1 has" in errors[1]


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
    return clouds()


def trained(config, dataset):
    oracle = Oracle(config, dataset)
    return oracle, oracle.run()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


CASES = [
    make(
        3,
        delay=1,
        replay=replay,
        transport={"wire_dtype": wire},
        optim={"precision": precision},
        student={"enabled": True},
    )
    for wire, replay, precision in [
        ("bfloat16", "recompute", "fp32"),
        ("int8", "recompute", "fp32"),
        ("int8", "stash", "bf16"),
        ("float32", "recompute", "bf16"),
    ]
]


def rank(index: int, port: int, folder: Path) -> None:
    """Train component `index` of every case and save its weights and scores."""
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, timeout=timedelta(seconds=60))
    dataset = clouds()
    for number, config in enumerate(CASES):
        assembly = Assembly(config, dataset.task)
        component, optimizers = assembly.component(index, CPU)
        channels = connect(
            assembly.links(CPU),
            index,
            dist.PrefixStore(str(number), store),
            CPU,
            "gloo",
            TransportConfig(),
            identity={},
            incarnation=0,
        )
        batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
        worker = Worker(index, component, channels, batches, CPU)
        actions = program(config, index, batches, 0)
        outcome = Trainer(config, worker, optimizers, dataset.task, actions, Quiet()).run()
        channels.close_up()
        torch.save((component.body.state_dict(), outcome.scores), folder / f"{number}-{index}.pt")


def test_processes_give_the_oracle_s_weights_and_scores_bit_by_bit(dataset, tmp_path):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    mp.spawn(rank, (store.port, tmp_path), nprocs=3)
    for number, config in enumerate(CASES):
        oracle, result = trained(config, dataset)
        for k, trainer in enumerate(oracle.trainers):
            body, scores = torch.load(tmp_path / f"{number}-{k}.pt", weights_only=True)
            assert_same(body, trainer.worker.component.body.state_dict())
            assert scores[0]["loss"] == result["chain"][k]["loss"]


def test_float32_is_the_default_and_changes_nothing(dataset):
    plain, _ = trained(make(3, delay=1), dataset)
    named, _ = trained(make(3, delay=1, transport={"wire_dtype": "float32"}), dataset)
    assert_same(weights(plain), weights(named))


def test_exits_are_evaluated_without_a_wire(dataset):
    """The same numbers as one process that passes its activations on has."""
    oracle, result = trained(make(3, transport={"wire_dtype": "int8"}), dataset)
    components = [t.worker.component for t in oracle.trainers]
    batches = Batches(dataset, 0, 8, CPU)
    right = 0
    for number in range(batches.evaluation_batches()):
        h, y = batches.evaluation(number)
        for component in components:
            h = component.infer(h)
        right += (components[-1].predict(h).argmax(1) == y).sum().item()
    assert result["chain"][-1]["accuracy"] == right / dataset.test_samples


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("lost", ["activation", "gradient"])
def test_a_run_that_has_diverged_ends_whatever_the_wire(dataset, wire, lost):
    oracle = Oracle(make(2, transport={"wire_dtype": wire}), dataset)
    low, high = (t.worker.component for t in oracle.trainers)
    broken = low.body if lost == "activation" else high.body
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    with pytest.raises(DivergedError):
        oracle.run()


def test_another_wire_is_another_run_and_an_unknown_one_is_refused():
    prints = {fingerprint(make(2, transport={"wire_dtype": wire})) for wire in WIRES}
    assert len(prints) == 3
    with pytest.raises(ConfigError, match=r"transport.wire_dtype: expected one of .* got 'int4'"):
        make(2, transport={"wire_dtype": "int4"})


# --- bf16 autocast --------------------------------------------------------------------------------


def bf16(components, **more):
    return make(components, model={"depth": 4}, optim={"precision": "bf16", "name": "muon"}, **more)


def by_block(oracle):
    return {name.partition(".")[2]: value for name, value in weights(oracle).items()}


def test_under_bf16_the_cut_does_not_change_the_network_bit_by_bit(dataset):
    """A child's bf16 activation reaches its parent as bf16, and its gradient comes back so."""
    whole, _ = trained(bf16(1), dataset)
    parts, _ = trained(bf16(4), dataset)
    edge = parts.trainers[0].worker.channels.to_parent.edge
    assert edge.payload.dtype is torch.bfloat16
    assert_same(by_block(whole), by_block(parts))


def test_under_bf16_a_bfloat16_wire_loses_nothing(dataset):
    plain, _ = trained(bf16(3, delay=1), dataset)
    narrow, _ = trained(bf16(3, delay=1, transport={"wire_dtype": "bfloat16"}), dataset)
    assert_same(weights(plain), weights(narrow))


def test_under_bf16_weights_gradients_losses_and_optimizer_states_are_float32(dataset):
    config = bf16(3, delay=1, replay="stash", student={"enabled": True})
    oracle, result = trained(config, dataset)
    for trainer in oracle.trainers:
        component = trainer.worker.component
        for module in component.modules().values():
            assert all(p.dtype is torch.float32 for p in module.parameters())
        assert component.totals.loss.dtype is torch.float32
        assert component.totals.student_loss.dtype is torch.float32
        assert all(v.dtype is torch.float32 for v in trainer._optimizer.state().values())
    assert all(0 < exit["loss"] < 3 for exit in result["chain"] + result["windows"])


def test_a_student_imitates_in_the_dtype_of_the_activation():
    network = torch.nn.Linear(4, 4)
    student = Student(network, None, task_weight=1.0, accumulate=2, dtype=torch.float32)
    body, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
    component = Component(body, head, None, student=student, precision="bf16")
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    assert component.imitate_child(x).dtype is torch.float32
    component.distil(x, torch.randn(8, 4), y)
    assert network.weight.grad.dtype is torch.float32


def test_autocast_is_over_before_a_student_s_backward_and_step():
    seen = []

    class Watch:
        def step(self, index):
            seen.append(torch.is_autocast_enabled("cpu"))
            return torch.zeros(())

    network = torch.nn.Linear(4, 4)
    network.weight.register_hook(lambda g: seen.append(torch.is_autocast_enabled("cpu")))
    student = Student(network, Watch(), task_weight=1.0, accumulate=1)
    component = Component(
        torch.nn.Linear(4, 4), torch.nn.Linear(4, 3), None, student=student, precision="bf16"
    )
    component.distil(torch.randn(8, 4), torch.randn(8, 4), torch.randint(0, 3, (8,)))
    assert seen == [False, False]
