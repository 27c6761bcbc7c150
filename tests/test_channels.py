"""One conformance suite over every transport this machine can run."""

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from gpus import GPU_TRANSPORTS, GPUS
from mach.channels import Bell, Edge, Header, Kind
from mach.channels.base import frame_bytes
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.handshake import exchange_hello
from mach.channels.listen import listen_on
from mach.channels.memory import memory_channel
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError
from mach.shapes import TensorSpec
from spawn import until

CPU = torch.device("cpu")
SHAPE = (4, 5)
ON_GPUS = {"gloo": "gloo-cuda", "nccl": "nccl"}
TRANSPORTS = ["memory", "gloo", *(ON_GPUS[transport] for transport in GPU_TRANSPORTS)]


def train(microbatch, version=0):
    return Header(Kind.TRAIN, microbatch, version)


def a_store():
    return dist.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )


def both_ends(transport, edge, timeout_s, bells=(None, None), clients=None, **more):
    """Sender and receiver of a new edge, and the devices they are on.

    Args:
        bells: rung by the sender and by the receiver.
        clients: two of one store; by default of a new one.
    """
    hears = [{} if bell is None else {"on_change": bell.ring} for bell in bells]
    if transport == "memory":
        names = ("sender_hears", "receiver_hears")
        rings = {name: bell.ring for name, bell in zip(names, bells, strict=True) if bell}
        return *memory_channel(edge, timeout_s, **rings), CPU, CPU
    if clients is None:
        store = a_store()
        clients = (store, store.clone())
    source = torch.device("cuda", 0) if transport != "gloo" else CPU
    target = torch.device("cuda", GPUS - 1) if transport != "gloo" else CPU
    kinds, places = (GlooSender, GlooReceiver), (source, target)
    if transport == "nccl":
        from mach.channels.nccl import NcclReceiver, NcclSender
        from mach.channels.ncclpair import NcclQueue

        kinds, places = (NcclSender, NcclReceiver), (NcclQueue(source), NcclQueue(target))
    with ThreadPoolExecutor() as pool:  # building an end waits for the other one
        ends = [
            pool.submit(kind, edge, client, place, timeout_s, 20, **hear, **more)
            for kind, client, place, hear in zip(kinds, clients, places, hears, strict=True)
        ]
        return *(end.result(30) for end in ends), source, target


@pytest.fixture(params=TRANSPORTS)
def channel(request):
    """Makes edges of one transport."""

    def build(shape=SHAPE, dtype=torch.float32, credits=2, timeout_s=20.0, bells=(None, None)):
        edge = Edge(1, 2, TensorSpec(shape, dtype), credits)
        return both_ends(request.param, edge, timeout_s, bells)

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


def test_an_end_of_stream_that_nobody_takes_in_is_reported_in_time():
    edge = Edge(1, 2, TensorSpec(SHAPE), 2)
    sender, receiver, *_ = both_ends("gloo", edge, timeout_s=0.5)
    for microbatch in range(2):  # the target has taken nothing, so the end waits behind them
        sender.send(train(microbatch), payload(microbatch))
    with pytest.raises(ChannelTimeoutError, match=r"component 2 .* waited 0.5 s"):
        sender.close()
    sender.abort()
    receiver.abort()


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


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.TRAIN, 5),
        Header(Kind.TRAIN, 2**40, version=7, origin=2, life=3, clock=2**41),
        Header(Kind.EVALUATE, 1, origin=1),
    ],
)
def test_a_header_arrives_whole(channel, header):
    sender, receiver, source, _ = channel()
    sender.send(header, payload(0, source))
    receiver.receive(header)
    assert receiver.newest == header
    close(sender, receiver)


def test_a_microbatch_of_another_life_is_other_work():
    assert Header(Kind.TRAIN, 1, version=3, clock=9).same_work(train(1))
    assert not Header(Kind.TRAIN, 1, life=1).same_work(train(1))


# --- ends that never wait -----------------------------------------------------------------------

DEADLINE_S = 20.0
"""Longest that anything here may take to be noticed: a hundred times what it takes."""


def a_live_channel(channel, **more):
    """Both ends of an edge and the bell that either rings."""
    bells = (Bell(), Bell())
    sender, receiver, source, _ = channel(bells=bells, **more)
    return sender, receiver, source, *bells


def poll(receiver, bell):
    """The next frame, waiting for it by the bell."""
    while (frame := receiver.poll()) is None:
        assert bell.wait(DEADLINE_S)
    return frame


def abort(*ends):
    for end in ends:
        end.abort()
        assert not end.alive


def test_an_offer_is_taken_while_there_is_a_credit_and_refused_at_once_after(channel):
    """However many slots a transport has at either end, their number is bounded."""
    sender, receiver, source, sender_bell, bell = a_live_channel(channel, credits=2)
    sent = 0
    while sender.offer(train(sent), payload(sent, source)) or sender_bell.wait(0.2):
        sent = sender.bytes_sent // frame_bytes(TensorSpec(SHAPE))
        assert sent < 20
    assert 2 <= sent <= 4
    assert sender.alive
    assert sender.wait_s == 0
    for b in range(sent):  # nothing was lost, and the sender can go on
        header, got = poll(receiver, bell)
        assert header == train(b)
        assert torch.equal(got.cpu(), payload(b))
    until(lambda: sender.offer(train(sent), payload(sent, source)), DEADLINE_S)
    assert poll(receiver, bell)[0] == train(sent)
    abort(sender, receiver)


def test_a_poll_of_nothing_is_nothing(channel):
    sender, receiver, source, _, bell = a_live_channel(channel)
    assert receiver.poll() is None
    sender.offer(train(0), payload(0, source))
    poll(receiver, bell)
    assert receiver.poll() is None
    assert receiver.bytes_received == sender.bytes_sent == frame_bytes(TensorSpec(SHAPE))
    abort(sender, receiver)


def test_an_offer_of_another_shape_is_refused_also_where_it_would_not_be_sent(channel):
    sender, receiver, source, _, _ = a_live_channel(channel)
    for _ in range(2):
        with pytest.raises(ChannelError, match=r"expected float32\[4, 5\], got float32\[4, 6\]"):
            sender.offer(train(3), payload(0, source, (4, 6)))
        abort(receiver)
    abort(sender)


def test_the_newest_header_is_known_before_its_frame_is_taken(channel):
    sender, receiver, source, _, bell = a_live_channel(channel, credits=3)
    assert receiver.newest is None
    for b in range(3):
        sender.send(train(b, version=b), payload(b, source))
    until(lambda: receiver.newest == train(2, version=2), DEADLINE_S)
    assert poll(receiver, bell)[0] == train(0)
    assert receiver.newest == train(2, version=2)
    abort(sender, receiver)


def test_the_end_of_the_stream_is_no_frame(channel):
    sender, receiver, source, _, _ = a_live_channel(channel)
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(sender.close)
        until(lambda: not receiver.alive, DEADLINE_S)
        assert receiver.poll() is None
        receiver.close()
        closing.result(DEADLINE_S)
    assert not sender.offer(train(1), payload(1, source))
    abort(sender, receiver)


@pytest.mark.parametrize("aborted", ["sender", "receiver"])
def test_an_idle_end_hears_at_once_that_the_other_one_has_let_go(channel, aborted):
    sender, receiver, source, *bells = a_live_channel(channel)
    ends = {"sender": sender, "receiver": receiver}
    bell = dict(zip(ends, reversed(bells), strict=True))[aborted]
    ends.pop(aborted).abort()
    (other,) = ends.values()
    while other.alive:
        assert bell.wait(DEADLINE_S)
    assert not sender.offer(train(0), payload(0, source))
    assert receiver.poll() is None
    with pytest.raises(PeerLostError, match="component 2 is gone"):
        sender.send(train(0), payload(0, source))
    with pytest.raises(PeerLostError, match="component 1 is gone"):
        receiver.receive(train(0))
    abort(other)


@pytest.mark.parametrize("aborted", ["sender", "receiver"])
def test_what_arrived_before_the_edge_broke_can_still_be_taken(channel, aborted):
    sender, receiver, source, _, _ = a_live_channel(channel, credits=2)
    for b in range(2):
        sender.send(train(b), payload(b, source))
    until(lambda: receiver.newest == train(1), DEADLINE_S)
    (sender if aborted == "sender" else receiver).abort()
    until(lambda: not receiver.alive, DEADLINE_S)
    assert torch.equal(receiver.receive(train(0)).cpu(), payload(0))
    header, got = receiver.poll()
    assert header == train(1)
    assert torch.equal(got.cpu(), payload(1))
    assert receiver.poll() is None
    abort(sender, receiver)


def test_an_abort_ends_a_wait_on_either_side(channel):
    sender, receiver, _, _, _ = a_live_channel(channel)
    with ThreadPoolExecutor() as pool:
        receiving = pool.submit(receiver.receive, train(0))
        sender.abort()
        assert isinstance(receiving.exception(DEADLINE_S), PeerLostError)
    abort(sender, receiver)


def test_an_abort_may_come_twice_and_after_the_other_end_s(channel):
    sender, receiver, _, _, _ = a_live_channel(channel)
    abort(sender, sender, receiver, receiver)


def resources():
    """Threads, open files and memory of this process."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_edges_give_back_their_threads_sockets_and_memory():
    """In a process of its own: what other tests leave to be cleared away is none of its growth."""
    done = subprocess.run(
        [sys.executable, "-c", "import test_channels; test_channels.come_and_go()"],
        cwd=Path(__file__).parent,
        timeout=100,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # else the C library keeps some
    )
    assert done.returncode == 0, done.stderr


def come_and_go():
    """Tolerance: one thread or file (a pool's, the interpreter's), and 8 MB, which is 40 kB an
    edge: one that kept its slots would cost 4 MB.

    A frame is on its way at the end of each edge, sometimes too long for the socket's buffer.
    """
    torch.set_num_threads(1)
    store = a_store()
    second = store.clone()

    def one(number):
        bells = (Bell(), Bell())
        shape = (256, 1024) if number % 10 else (4096, 1024)
        edge = Edge(1, 2, TensorSpec(shape), 2)
        sender, receiver, _, _ = both_ends(
            "gloo", edge, 20.0, bells, [dist.PrefixStore(str(number), s) for s in (store, second)]
        )
        sender.send(train(0), torch.zeros(shape))
        for end in (sender, receiver) if number % 2 else (receiver, sender):
            end.abort()

    for number in range(20):  # until what torch keeps for ever is there
        one(number)
    threads, files, memory = resources()
    for number in range(20, 220):
        one(number)

    def has_given_back() -> bool:  # threads end a moment after the edge does
        now = resources()
        return now[0] <= threads + 1 and now[1] <= files + 1 and now[2] <= memory + 8 * 2**20

    until(has_given_back, 20, lambda: f"had {(threads, files, memory)}, has {resources()}")


# --- where edges listen ---------------------------------------------------------------------------


def listening(process=None):
    """Addresses and ports at which a process can be reached."""
    connections = (process or psutil.Process()).net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def test_edges_listen_on_loopback_unless_told_otherwise():
    before = listening()
    sender, receiver, _, _ = both_ends("gloo", an_edge(), 20.0)
    edges = {ip for ip, _ in listening() - before if ip != "::"}  # there is the store
    assert edges == {"127.0.0.1"}
    abort(sender, receiver)


def test_edges_listen_where_they_are_told_to():
    assert listen_on(None, None) == "127.0.0.1"
    assert listen_on("auto", "127.0.0.1") == "127.0.0.1"
    assert listen_on("auto", "localhost") in ("127.0.0.1", "::1")
    for there in ("127.0.0.1", "127.0.0.2", "lo"):
        sender, receiver, _, _ = both_ends("gloo", an_edge(), 20.0, listen=listen_on(there, None))
        sender.send(train(0), payload(0))
        assert torch.equal(receiver.receive(train(0)), payload(0))
        abort(sender, receiver)


@pytest.mark.parametrize(
    ("bind", "store_host", "message"),
    [
        ("192.0.2.1", None, r"got '192\.0\.2\.1'.*launch\.bind to null .*lo"),
        ("eth99", None, r"expected an address or interface of this machine.*got 'eth99'"),
        ("auto", None, "expected the host of the run's store, got none"),
        ("auto", "no-such-host.invalid", r"a way to the store's host 'no-such-host\.invalid'"),
    ],
)
def test_an_address_of_another_machine_is_refused_with_what_to_do(bind, store_host, message):
    with pytest.raises(ChannelError, match=message):
        listen_on(bind, store_host)


GARBAGE = [
    b"",
    b"\0" * 8,
    b"\0" * 4096,
    b"\xff" * 64,
    os.urandom(1 << 16),
    b"GET / HTTP/1.1\r\n\r\n",
]


def strange(ports):
    """Connect to every port, send garbage to each; the sockets, left open."""
    strangers = []
    for port in ports:
        for garbage in GARBAGE:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=5)
            strangers.append(stranger)
            stranger.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                stranger.send(garbage)
    return strangers


def test_a_stranger_with_garbage_does_not_disturb_an_edge():
    before = listening()
    sender, receiver, *_ = both_ends("gloo", an_edge(), 20.0, (Bell(), Bell()))
    ports = [port for ip, port in listening() - before if ip == "127.0.0.1"]
    assert len(ports) == 2
    strangers = strange(ports)
    for b in range(10):
        sender.send(train(b), payload(b))
        assert torch.equal(receiver.receive(train(b)), payload(b))
    for stranger in strangers:
        stranger.close()
    for b in range(10, 20):
        sender.send(train(b), payload(b))
        assert torch.equal(receiver.receive(train(b)), payload(b))
    assert sender.alive
    assert receiver.alive
    abort(sender, receiver)


# --- the bell -------------------------------------------------------------------------------------


def test_a_ring_before_the_wait_is_heard_once():
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.wait(DEADLINE_S)
    assert not bell.wait(0.01)


def test_a_ring_wakes_a_thread_that_waits():
    bell = Bell()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(bell.wait, DEADLINE_S)
        bell.ring()
        assert waiting.result(DEADLINE_S)


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
on_change = (lambda: None) if sys.argv[3] == "live" else None
store = dist.TCPStore("localhost", port)
edge, cpu = Edge(1, 2, TensorSpec((4, 5)), 2), torch.device("cpu")
if sending:
    end = GlooSender(edge, store, cpu, 20, 20, on_change=on_change)
    end.send(Header(Kind.TRAIN, 0), torch.ones(4, 5))
else:
    end = GlooReceiver(edge, store, cpu, 20, 20, on_change=on_change)
store.set("up", "")
sys.stdin.read()
"""


def a_neighbour(store, does, edge):
    command = [sys.executable, "-c", NEIGHBOUR, str(store.port), does, edge]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


@pytest.mark.parametrize("neighbour", ["sends", "receives"])
def test_an_idle_end_hears_of_a_kill_9_and_gives_back_what_it_had(neighbour):
    store = a_store()
    threads = set(threading.enumerate())
    process = a_neighbour(store, neighbour, "live")
    bell = Bell()
    try:
        kind = GlooReceiver if neighbour == "sends" else GlooSender
        end = kind(an_edge(), store, CPU, 20, 20, on_change=bell.ring)
        store.wait(["up"], timedelta(seconds=20))
        os.kill(process.pid, signal.SIGKILL)
        while end.alive:
            assert bell.wait(DEADLINE_S)
        end.abort()
        assert set(threading.enumerate()) == threads
    finally:
        process.kill()
        process.wait(20)
        process.stdin.close()


@pytest.mark.parametrize("neighbour", ["sends", "receives"])
def test_a_neighbour_killed_by_kill_9_is_noticed_at_once_and_named(neighbour):
    store = a_store()
    process = a_neighbour(store, neighbour, "ordered")
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
