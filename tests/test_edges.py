"""Who may reach an edge, what is told when its ends differ or one of them dies, what is left."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from edges import (
    CPU,
    DEADLINE_S,
    SHAPE,
    a_store,
    abort,
    an_edge,
    both_ends,
    listening,
    payload,
    strange,
    train,
)
from mach.channels import Bell, Edge
from mach.channels.gloo import GlooReceiver, GlooSender
from mach.channels.handshake import exchange_hello
from mach.channels.listen import listen_on
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError
from mach.shapes import TensorSpec
from spawn import until


def resources():
    """Threads, open files and memory of this process."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_edges_give_back_their_threads_sockets_and_memory():
    """In a process of its own: what other tests leave to be cleared away is none of its growth."""
    done = subprocess.run(
        [sys.executable, "-c", "import test_edges; test_edges.come_and_go()"],
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
for number, _ in enumerate(sys.stdin, 1):
    end.send(Header(Kind.TRAIN, number), torch.ones(4, 5))
"""
"""Sends a frame, and one more for each line; or receives."""


@contextmanager
def a_neighbour(store, does, edge):
    command = [sys.executable, "-c", NEIGHBOUR, str(store.port), does, edge]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
        process.stdin.close()


@pytest.mark.parametrize("neighbour", ["sends", "receives"])
def test_an_idle_end_hears_of_a_kill_9_and_gives_back_what_it_had(neighbour):
    store = a_store()
    threads = set(threading.enumerate())
    bell = Bell()
    with a_neighbour(store, neighbour, "live") as process:
        kind = GlooReceiver if neighbour == "sends" else GlooSender
        end = kind(an_edge(), store, CPU, 20, 20, on_change=bell.ring)
        store.wait(["up"], timedelta(seconds=20))
        os.kill(process.pid, signal.SIGKILL)
        while end.alive:
            assert bell.wait(DEADLINE_S)
        end.abort()
        assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("neighbour", ["sends", "receives"])
def test_a_neighbour_killed_by_kill_9_is_noticed_at_once_and_named(neighbour):
    store = a_store()
    with a_neighbour(store, neighbour, "ordered") as process:
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


BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    pass
"""


def native_threads():
    """Threads of this process that Python has not started."""
    of_python = {thread.native_id for thread in threading.enumerate()}
    return {int(task.name) for task in Path("/proc/self/task").iterdir()} - of_python


@contextmanager
def late(threads):
    """They run when nobody else wants their processor, which somebody does all the time."""
    core = max(os.sched_getaffinity(0))
    for thread in threads:
        os.sched_setaffinity(thread, {core})
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    with ExitStack() as stack:
        for _ in range(3):  # of one alone the scheduler would let go every few milliseconds
            command = [sys.executable, "-c", BUSY, str(core)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout.readline() == b"busy\n"
        yield


@pytest.mark.parametrize("attempt", range(2))
def test_a_receipt_for_a_neighbour_that_has_just_died_leaves_no_thread_waiting(attempt):
    """In most attempts it is sent before gloo's own thread, which is late, has heard of the
    death."""
    store = a_store()
    threads, native = set(threading.enumerate()), native_threads()
    with a_neighbour(store, "sends", "live") as process:

        def kill(header):
            if header.microbatch == 1:
                process.kill()
                process.wait()  # with a deadline it would look now and then, which is too late

        end = GlooReceiver(an_edge(), store, CPU, 20, 20, on_arrival=kill, on_change=lambda: None)
        with late(native_threads() - native):
            process.stdin.write(b"\n")
            process.stdin.flush()
            until(lambda: end.poll() is None and not end.alive, DEADLINE_S)
            end.abort()
            assert set(threading.enumerate()) == threads
