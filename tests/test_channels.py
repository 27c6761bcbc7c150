"""One conformance suite over every transport this machine can run."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from mach.channels import Edge, Header, Kind
from mach.channels.base import frame_bytes
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.handshake import exchange_hello
from mach.channels.memory import memory_channel
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError
from mach.shapes import TensorSpec

CPU = torch.device("cpu")
SHAPE = (4, 5)
GPUS = torch.cuda.device_count()
TRANSPORTS = ["memory", "gloo"]
TRANSPORTS += ["gloo-cuda"] if GPUS > 0 else []
TRANSPORTS += ["nccl"] if GPUS > 1 else []


def train(microbatch, version=0):
    return Header(Kind.TRAIN, microbatch, version)


def a_store():
    return dist.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )


def both_ends(transport, edge, timeout_s):
    """Sender and receiver of a new edge, and the devices they are on."""
    if transport == "memory":
        return *memory_channel(edge, timeout_s), CPU, CPU
    store = a_store()
    source = torch.device("cuda", 0) if transport != "gloo" else CPU
    target = torch.device("cuda", GPUS - 1) if transport != "gloo" else CPU
    with ThreadPoolExecutor() as pool:  # building an end waits for the other one
        if transport == "nccl":
            from mach.channels.nccl import NcclQueue, NcclReceiver, NcclSender

            sending = pool.submit(NcclSender, edge, store, NcclQueue(source), timeout_s, 20)
            receiving = pool.submit(
                NcclReceiver, edge, store.clone(), NcclQueue(target), timeout_s, 20
            )
        else:
            sending = pool.submit(GlooSender, edge, store, source, timeout_s, 20)
            receiving = pool.submit(GlooReceiver, edge, store.clone(), target, timeout_s, 20)
        return sending.result(30), receiving.result(30), source, target


@pytest.fixture(params=TRANSPORTS)
def channel(request):
    """Makes edges of one transport."""

    def build(shape=SHAPE, dtype=torch.float32, credits=2, timeout_s=20.0):
        edge = Edge(1, 2, TensorSpec(shape, dtype), credits)
        return both_ends(request.param, edge, timeout_s)

    return build


def payload(number, device=CPU, shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_payloads_arrive_in_order_bit_by_bit(channel, dtype):
    sender, receiver, source, _ = channel(dtype=dtype)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(
            lambda: [sender.send(train(b), payload(b, source, dtype=dtype)) for b in range(50)]
        )
        for b in range(50):
            got = receiver.receive(train(b))
            assert torch.equal(got.cpu(), payload(b, dtype=dtype))
        sending.result(20)
    close(sender, receiver)


def close(sender, receiver):
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(sender.close), pool.submit(receiver.close)]
        for end in ends:
            end.result(20)


def test_a_payload_may_be_overwritten_as_soon_as_send_returns(channel):
    sender, receiver, source, _ = channel()
    tensor = payload(0, source)
    sender.send(train(0), tensor)
    tensor.zero_()
    assert torch.equal(receiver.receive(train(0)).cpu(), payload(0))
    close(sender, receiver)


def test_what_was_received_stays_when_more_arrives(channel):
    sender, receiver, source, _ = channel(credits=2)
    kept = []
    for b in range(8):
        sender.send(train(b), payload(b, source))
        kept.append(receiver.receive(train(b)))
    assert all(torch.equal(kept[b].cpu(), payload(b)) for b in range(8))
    close(sender, receiver)


def test_a_tensor_that_needs_a_gradient_or_is_not_contiguous_can_be_sent(channel):
    sender, receiver, source, _ = channel()
    sender.send(train(0), payload(0, source, (5, 4)).t().requires_grad_())
    got = receiver.receive(train(0)).cpu()
    assert torch.equal(got, payload(0, CPU, (5, 4)).t())
    assert not got.requires_grad
    close(sender, receiver)


def test_a_slow_receiver_stops_the_sender_by_credits(channel):
    """However many slots a transport has at either end, their number is bounded."""
    sender, receiver, source, _ = channel(credits=2, timeout_s=0.3)
    sent, error = 0, None
    while error is None and sent < 20:
        try:
            sender.send(train(sent), payload(sent, source))
            sent += 1
        except ChannelTimeoutError as raised:
            error = raised
    assert 2 <= sent <= 4
    for part in ("activations 1->2", f"microbatch {sent}", "component 2", "0.3 s"):
        assert part in str(error)
    for b in range(sent):  # nothing was lost, and the sender can go on
        assert torch.equal(receiver.receive(train(b)).cpu(), payload(b))
    sender.send(train(sent), payload(sent, source))
    assert torch.equal(receiver.receive(train(sent)).cpu(), payload(sent))
    close(sender, receiver)


def test_an_end_knows_whether_it_would_have_to_wait(channel):
    sender, receiver, source, _ = channel(credits=1)
    assert sender.ready()
    assert not receiver.ready()
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    close(sender, receiver)


def test_a_silent_sender_is_reported_with_edge_microbatch_component_and_seconds(channel):
    sender, receiver, source, _ = channel(timeout_s=0.2)
    with pytest.raises(ChannelTimeoutError) as error:
        receiver.receive(train(40))
    for part in ("activations 1->2", "microbatch 40", "component 1", "0.2 s"):
        assert part in str(error.value)
    sender.send(train(40), payload(1, source))  # a deadline that passed breaks nothing
    assert torch.equal(receiver.receive(train(40)).cpu(), payload(1))
    close(sender, receiver)


def test_a_payload_of_another_shape_is_refused_before_it_is_sent(channel):
    sender, receiver, source, _ = channel()
    with pytest.raises(ChannelError, match=r"expected float32\[4, 5\], got float32\[4, 6\]"):
        sender.send(train(3), payload(0, source, (4, 6)))
    sender.send(train(3), payload(0, source))
    receiver.receive(train(3))
    close(sender, receiver)


@pytest.mark.parametrize(
    ("sent", "expected", "message"),
    [
        (train(1), train(2), "expected microbatch 2, got microbatch 1"),
        (train(1), Header(Kind.EVALUATE, 1), "expected test batch 1, got microbatch 1"),
        (Header(Kind.EVALUATE, 1, origin=0), Header(Kind.EVALUATE, 1, origin=1), "test batch 1"),
    ],
)
def test_a_frame_out_of_turn_is_refused(channel, sent, expected, message):
    sender, receiver, source, _ = channel()
    sender.send(sent, payload(0, source))
    with pytest.raises(ChannelError, match=message):
        receiver.receive(expected)


def test_an_early_end_is_an_error_that_says_who_ran_fewer_steps(channel):
    sender, receiver, source, _ = channel()
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(sender.close)
        with pytest.raises(ChannelError, match="Component 1 ran fewer steps than component 2"):
            receiver.receive(train(1))
        closing.result(20)


def test_bytes_are_counted_at_both_ends(channel):
    sender, receiver, source, _ = channel()
    for b in range(3):
        sender.send(train(b), payload(b, source))
        receiver.receive(train(b))
    assert sender.bytes_sent == receiver.bytes_received == 3 * frame_bytes(TensorSpec(SHAPE))
    close(sender, receiver)


def test_large_and_tiny_frames_pass(channel):
    for shape in [(1,), (256, 1024)]:
        sender, receiver, source, _ = channel(shape=shape, credits=3)
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(
                lambda s, shape, source: [
                    s.send(train(b), payload(b, source, shape)) for b in range(10)
                ],
                sender,
                shape,
                source,
            )
            for b in range(10):
                got = receiver.receive(train(b))
                assert torch.equal(got.cpu(), payload(b, CPU, shape))
            sending.result(20)
        close(sender, receiver)


def test_a_receiver_of_a_broken_memory_channel_tells_its_sender():
    sender, receiver = memory_channel(Edge(1, 2, TensorSpec(SHAPE), 1), 5)
    receiver.abort()
    with pytest.raises(PeerLostError, match="component 2 is gone"):
        sender.send(train(0), payload(0))


# --- the handshake ----------------------------------------------------------------------------


def hellos(source, target, identities=({"run": "a"}, {"run": "a"}), timeout_s=10):
    """Both ends say hello on one store; returns what each of them raised."""
    store = a_store()
    with ThreadPoolExecutor() as pool:
        ends = [
            pool.submit(
                exchange_hello,
                client,
                edge,
                sending=sending,
                identity=identity,
                timeout_s=timeout_s,
            )
            for client, edge, sending, identity in (
                (store, source, True, identities[0]),
                (store.clone(), target, False, identities[1]),
            )
        ]
        return [end.exception(20) for end in ends]


def an_edge(shape=SHAPE, dtype=torch.float32, credits=2):
    return Edge(1, 2, TensorSpec(shape, dtype), credits)


def test_ends_that_agree_shake_hands():
    assert hellos(an_edge(), an_edge()) == [None, None]


@pytest.mark.parametrize(
    ("other", "mine", "theirs"),
    [
        (an_edge(shape=(4, 6)), r"float32\[4, 5\]", r"float32\[4, 6\]"),
        (an_edge(dtype=torch.float16), r"float32\[4, 5\]", r"float16\[4, 5\]"),
        (an_edge(credits=3), "credits 2", "3"),
    ],
)
def test_ends_that_differ_are_refused_on_both_sides_by_an_error_that_names_both(
    other, mine, theirs
):
    for error in hellos(an_edge(), other):
        assert isinstance(error, ChannelError)
        for part in ("component 1", "component 2"):
            assert part in str(error)
        assert error.args[0].count("float") in (0, 2)


def test_a_stranger_of_another_run_or_config_is_refused():
    for error in hellos(an_edge(), an_edge(), ({"config": "aa"}, {"config": "bb"})):
        assert isinstance(error, ChannelError)
        assert "aa" in str(error)
        assert "bb" in str(error)


def test_a_neighbour_that_never_comes_is_reported_in_time():
    with pytest.raises(ChannelTimeoutError, match=r"component 2 did not come up; waited 0\.2 s"):
        exchange_hello(a_store(), an_edge(), sending=True, identity={}, timeout_s=0.2)


# --- a neighbour that dies ----------------------------------------------------------------------


def send_many(sender, number):
    for b in range(number):
        sender.send(train(b), payload(b))


NEIGHBOUR = """
import sys, torch, torch.distributed as dist
from mach.channels import Edge, Header, Kind
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.shapes import TensorSpec
port, sending = int(sys.argv[1]), sys.argv[2] == "sends"
store = dist.TCPStore("localhost", port)
edge, cpu = Edge(1, 2, TensorSpec((4, 5)), 2), torch.device("cpu")
if sending:
    end = GlooSender(edge, store, cpu, 20, 20)
    end.send(Header(Kind.TRAIN, 0), torch.ones(4, 5))
else:
    end = GlooReceiver(edge, store, cpu, 20, 20)
store.set("up", "")
sys.stdin.read()
"""


@pytest.mark.parametrize("neighbour", ["sends", "receives"])
def test_a_neighbour_killed_by_kill_9_is_noticed_at_once_and_named(neighbour):
    store = a_store()
    process = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR, str(store.port), neighbour], stdin=subprocess.PIPE
    )
    try:
        kind = GlooReceiver if neighbour == "sends" else GlooSender
        end = kind(an_edge(), store, CPU, 20, 20)
        store.wait(["up"], timedelta(seconds=20))
        if neighbour == "sends":
            assert torch.equal(end.receive(train(0)), torch.ones(SHAPE))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        if neighbour == "sends":
            with pytest.raises(PeerLostError, match="microbatch 1: component 1 is gone"):
                end.receive(train(1))
        else:
            with pytest.raises(PeerLostError, match="component 2 is gone"):
                send_many(end, 10)
    finally:
        process.kill()
        process.wait(20)
        process.stdin.close()
