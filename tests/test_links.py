"""A link is made again whenever it breaks, and nobody ever waits for it.

Run as a program this file is a nursery: it forks neighbours that have torch loaded already, so that
one can be killed and born again within a moment.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from edges import listening, strange
from mach.channels import Bell, Edge, Header, Kind, Link, connect_live
from mach.channels import live as live_module
from mach.channels import pair as pair_module
from mach.channels.meeting import Meeting
from mach.channels.sessionstore import SessionStore
from mach.config import TransportConfig
from mach.shapes import TensorSpec
from spawn import until

CPU = torch.device("cpu")
SPEC = TensorSpec((4, 5))
CREDITS = 2
UP, DOWN = Edge(0, 1, SPEC, CREDITS), Edge(1, 0, SPEC, CREDITS)
CHAIN = [Link(UP, DOWN)]
IDENTITY = {"run": "a", "config": "b"}
DEADLINE_S = 60.0
"""Longest that anything here may take, on a machine with too much to do. Where the store's machine
has no name server that answers, each new client can stall the store for 5 s."""
RECONNECT_S = 0.5
"""What it takes to be connected once the neighbour is there."""

OPEN = []
"""Links to close after each test."""


def join(component, store, life=0, chain=CHAIN, identity=IDENTITY, **more):
    """The channels of one component, the link to its neighbour, and its bell."""
    bell = Bell()
    channels = connect_live(
        chain,
        component,
        store,
        CPU,
        "gloo",
        TransportConfig(),
        identity=identity,
        life=life,
        bell=bell,
        **more,
    )
    OPEN.extend(channels.links)
    return channels, channels.links[0], bell


def train(microbatch, **more):
    return Header(Kind.TRAIN, microbatch, **more)


def payload(number):
    return torch.full(SPEC.shape, float(number))


def poll(receiver, bell):
    """The next frame, waiting for it by the bell."""
    ends = time.monotonic() + DEADLINE_S
    while (frame := receiver.poll()) is None:
        assert bell.wait(ends - time.monotonic()), "nothing came"
    return frame


def offer(sender, bell, header, content):
    """Offer until it is sent."""
    until(lambda: sender.offer(header, content), DEADLINE_S)


# --- the nursery ----------------------------------------------------------------------------------


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner, name, condition=lambda result: True):
    """Die when a call of `owner.name` has been made and its result meets the condition."""
    call = getattr(owner, name)

    def dying(*args, **kwargs):
        result = call(*args, **kwargs)
        if condition(result):
            die()
        return result

    setattr(owner, name, dying)


def die_between_the_edges() -> None:
    connect_pair = pair_module.connect_pair
    calls = []

    def dying(*args, **kwargs):
        if calls:
            die()
        calls.append(1)
        return connect_pair(*args, **kwargs)

    from mach.channels import gloo

    gloo.connect_pair = dying


MOMENTS = {
    "its ticket is posted": lambda: after(Meeting, "begin"),
    "both have agreed": lambda: after(Meeting, "agreed", lambda session: session is not None),
    "its address is posted": lambda: after(SessionStore, "set"),
    "one edge is there": die_between_the_edges,
    "both edges are there": lambda: after(live_module.LiveLink, "_make"),
}


def neighbour(nursery: int, port: int, component: int, life: int, dies: str) -> None:
    """A component that sends back what comes (the parent) or counts what comes back (the child)."""
    store = dist.PrefixStore(
        "run", dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=DEADLINE_S))
    )
    if dies:
        MOMENTS[dies]()
    channels, _, bell = join(component, store, life)
    store.set(f"there/{component}.{life}", str(time.monotonic()))
    microbatch = 0
    while os.getppid() == nursery:
        if component == 1:
            while (frame := channels.from_child.poll()) is not None:
                header, content = frame
                channels.to_child.offer(replace(header, origin=1, life=life), content)
        else:
            microbatch += channels.to_parent.offer(train(microbatch, life=life), payload(0))
            while (frame := channels.from_parent.poll()) is not None:
                store.set(f"echo/{life}", str(frame[0].life))
        bell.wait(0.1)


def nursery() -> None:
    """Fork a neighbour for each line of orders and answer with its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no wait
    torch.set_num_threads(1)
    print("open", flush=True)
    me = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                if "store" in order:
                    store = a_store()
                    print(store.port, flush=True)
                    while os.getppid() == me:
                        time.sleep(0.1)
                else:
                    neighbour(me, **order)
            finally:
                os._exit(1)
        print(pid, flush=True)


class Nursery:
    """The test's side of it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._born: list[int] = []
        assert self._process.stdout.readline() == "open\n"

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._born:
            kill(pid)
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()

    def bear(self, store, life, component=1, dies="") -> int:
        """Start a neighbour; its process id."""
        port = store._underlying_non_prefix_store.port
        return self._order(port=port, component=component, life=life, dies=dies)

    def bear_store(self) -> tuple[int, int]:
        """Start a process that hosts a store; its process id and the store's port."""
        numbers = [self._order(store=True), int(self._process.stdout.readline())]
        # Both write to one pipe, and either may be the first.
        pid, port = numbers if psutil.pid_exists(numbers[0]) else reversed(numbers)
        self._born.append(pid)
        return pid, port

    def _order(self, **order: object) -> int:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._born.append(pid)
        return pid


def kill(pid: int) -> None:
    """kill -9, and wait until it has gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), DEADLINE_S, lambda: f"{pid} is still there")


def a_store():
    return dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )


@pytest.fixture(scope="module")
def nursery_of_neighbours():
    with Nursery() as open_nursery:
        yield open_nursery


@pytest.fixture
def bear(nursery_of_neighbours):
    return nursery_of_neighbours.bear


@pytest.fixture
def store():
    return dist.PrefixStore("run", a_store())


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())

    def left() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    yield
    while OPEN:
        OPEN.pop().close()
    until(lambda: not left(), DEADLINE_S, lambda: f"still there: {left()}")


@pytest.fixture
def both(store):
    """Both sides of a link, in this process."""
    sides = [join(component, store) for component in (0, 1)]
    for _, link, _ in sides:
        assert link.wait_up(DEADLINE_S)
    return sides


def echoes(channels, bell, life, number=3):
    """Frames go up and come back, from that life of the parent.

    The parent drops an echo that its own end has no room for yet: after a second of silence another
    frame goes up.
    """
    ends = time.monotonic() + DEADLINE_S
    channels.to_parent.offer(train(0), payload(0))
    got = 0
    while got < number:
        assert time.monotonic() < ends, "nothing came"
        frame = channels.from_parent.poll()
        if frame is not None:
            got += frame[0].life == life
            offer(channels.to_parent, bell, train(frame[0].microbatch + 1), payload(0))
        elif not bell.wait(1.0):
            channels.to_parent.offer(train(0), payload(0))


# --- a link that is up ----------------------------------------------------------------------------


def test_both_edges_come_up_and_carry_frames(both):
    (child, link, child_bell), (parent, _, parent_bell) = both
    for b in range(20):
        offer(child.to_parent, child_bell, train(b, life=1, clock=b + 1), payload(b))
        header, got = poll(parent.from_child, parent_bell)
        assert header == train(b, life=1, clock=b + 1) == parent.from_child.newest
        assert torch.equal(got, payload(b))
        offer(parent.to_child, parent_bell, header, payload(-b))
        header, got = poll(child.from_parent, child_bell)
        assert header.microbatch == b
        assert torch.equal(got, payload(-b))
    assert link.up
    assert link.connects == 1
    assert child.to_parent.bytes_sent == parent.from_child.bytes_received > 0
    assert child.to_child is child.from_child is parent.to_parent is parent.from_parent is None


def test_where_no_gradient_travels_the_child_still_hears_that_its_parent_went(store):
    chain = [Link(UP, None)]
    (child, link, bell), (parent, parents, _) = (join(k, store, chain=chain) for k in (0, 1))
    assert child.from_parent is parent.to_child is None
    assert link.wait_up(DEADLINE_S)
    parents.close()
    while link.up:
        assert bell.wait(DEADLINE_S)
    assert not child.to_parent.alive


def test_a_link_without_a_neighbour_is_down_and_takes_nothing(store):
    channels, link, _ = join(0, store)
    assert not link.wait_up(0.1)
    assert not link.up
    assert not channels.to_parent.alive
    assert not channels.to_parent.ready()
    assert not channels.to_parent.offer(train(0), payload(0))
    assert channels.from_parent.poll() is None
    assert channels.from_parent.newest is None


def test_a_closed_link_stays_closed_and_its_neighbour_sees_it_break(both):
    (child, link, _), (_, parents, bell) = both
    link.close()
    while parents.up:
        assert bell.wait(DEADLINE_S)
    assert not parents.wait_up(0.2)
    assert not child.to_parent.offer(train(0), payload(0))
    assert link.connects == parents.connects == 1


def test_a_link_dropped_for_a_while_comes_back_by_itself(both):
    (child, link, bell), (parent, parents, parent_bell) = both
    offer(child.to_parent, bell, train(7), payload(7))
    until(lambda: parent.from_child.newest == train(7), DEADLINE_S)
    started = time.monotonic()
    link.drop(0.3)
    assert not link.up
    assert not child.to_parent.offer(train(8), payload(8))
    while parents.up:
        assert parent_bell.wait(DEADLINE_S)
    header, _ = parent.from_child.poll()  # what came before the break is still good
    assert header == train(7)
    until(lambda: link.up and parents.up, DEADLINE_S)
    assert time.monotonic() - started >= 0.3
    assert link.connects == parents.connects == 2
    assert parent.from_child.newest == train(7)
    offer(child.to_parent, bell, train(9), payload(9))
    assert poll(parent.from_child, parent_bell)[0] == train(9)
    assert child.to_parent.bytes_sent == parent.from_child.bytes_received


def test_a_link_dropped_for_ever_stays_away_until_it_is_closed(both):
    """As under faults=drop-link faults.duration_s=inf. Its thread fell, as no lock can be waited
    for that long."""
    (_, link, _), (_, parents, bell) = both
    link.drop(math.inf)
    while parents.up:
        assert bell.wait(DEADLINE_S)
    assert not link.wait_up(0.2)
    assert link._thread.is_alive()
    link.close()
    assert not link._thread.is_alive()
    assert link.connects == parents.connects == 1


def test_an_end_that_is_aborted_takes_the_link_with_it_and_both_come_back(both):
    (child, link, _), (parent, parents, _) = both
    for number, end in enumerate((child.to_parent, child.from_parent, parent.to_child), start=2):
        end.abort()
        until(lambda n=number: link.connects == parents.connects == n, DEADLINE_S)
        until(lambda: link.up and parents.up, DEADLINE_S)


# --- a neighbour that dies ------------------------------------------------------------------------


def seconds_to_connect(store, link, life, connects):
    """Wait until the link is up to that life of the parent; how long after its birth that was."""
    until(lambda: link.connects > connects and link.up, DEADLINE_S, every_s=0.002)
    up = time.monotonic()
    return up - float(store.get(f"there/1.{life}"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_neighbour_that_dies_while_it_connects_is_awaited_again(store, bear, moment):
    """Dies when .. is the name of the case."""
    channels, link, bell = join(0, store)
    took = []
    for life in range(0, 6, 2):
        dying = bear(store, life, dies=moment)
        until(lambda pid=dying: not psutil.pid_exists(pid), DEADLINE_S)
        connects = link.connects
        living = bear(store, life + 1)
        took.append(seconds_to_connect(store, link, life + 1, connects))
        echoes(channels, bell, life + 1)
        kill(living)
        until(lambda: not link.up, DEADLINE_S)
    assert min(took) < RECONNECT_S  # the best: the others are this machine's load


def test_a_neighbour_killed_at_any_moment_comes_back_with_its_next_life(store, bear):
    random.seed(0)
    channels, link, bell = join(0, store)
    took, noticed = [], []
    for life in range(10):
        connects = link.connects
        pid = bear(store, life)
        if life % 2:
            threading.Event().wait(random.uniform(0.0, 0.15))  # anywhere in its first moments
        else:
            took.append(seconds_to_connect(store, link, life, connects))
            echoes(channels, bell, life)
        killed = time.monotonic()
        kill(pid)
        until(lambda: not link.up, DEADLINE_S, every_s=0.002)
        if not life % 2:
            noticed.append(time.monotonic() - killed)
        until(lambda: not channels.to_parent.offer(train(0), payload(0)), DEADLINE_S)
    print(f"seconds to connect {took}, to notice {noticed}")
    assert min(took) < RECONNECT_S
    assert min(noticed) < RECONNECT_S


def test_both_neighbours_start_again_at_the_same_time(store, bear):
    for life in range(4):
        pids = [bear(store, life, component) for component in (0, 1)]
        store.wait([f"echo/{life}"], timedelta(seconds=DEADLINE_S))
        assert int(store.get(f"echo/{life}")) == life
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            kill(pid)


def test_a_neighbour_that_hangs_stalls_nobody_and_is_replaced(store, bear):
    channels, link, bell = join(0, store)
    pid = bear(store, 0)
    assert link.wait_up(DEADLINE_S)
    echoes(channels, bell, 0)
    os.kill(pid, signal.SIGSTOP)
    sent, longest = 0, 0.0
    for _ in range(1000):
        started = time.perf_counter()
        sent += channels.to_parent.offer(train(0), payload(0))
        while channels.from_parent.poll() is not None:
            pass
        longest = max(longest, time.perf_counter() - started)
    assert sent <= CREDITS
    assert not channels.to_parent.offer(train(0), payload(0))
    assert longest < 1.0
    assert link.up
    kill(pid)
    until(lambda: not link.up, DEADLINE_S)
    bear(store, 1)
    until(lambda: link.up, DEADLINE_S)
    echoes(channels, bell, 1)
    assert link.connects == 2


# --- a neighbour that means another link ----------------------------------------------------------


OTHERS = {
    "payload": ([Link(Edge(0, 1, TensorSpec((4, 6)), CREDITS), DOWN)], IDENTITY, r"float32[4, 6]"),
    "credits": ([Link(replace(UP, credits=3), DOWN)], IDENTITY, "credits 3"),
    "feedback": ([Link(UP, None)], IDENTITY, "gradients 1->0"),
    "config": (CHAIN, {**IDENTITY, "config": "c"}, "config c"),
    "run": (CHAIN, {**IDENTITY, "run": "other"}, "run other"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_neighbour_that_differs_is_refused_by_both_once_and_the_right_one_let_in(store, what):
    chain, identity, told = OTHERS[what]
    refused, refused_there = [], []
    channels, link, bell = join(0, store, on_refused=refused.append)
    _, wrong, _ = join(1, store, chain=chain, identity=identity, on_refused=refused_there.append)
    until(lambda: refused and refused_there, DEADLINE_S)
    assert not link.wait_up(0.2)
    assert len(refused) == len(refused_there) == 1
    for text in (refused[0], refused_there[0]):
        for part in ("component 0", "component 1", "Start both from the same config"):
            assert part in text
    assert told.split()[-1] in refused[0]
    assert link.last_error == refused[0]
    wrong.close()
    (parent, right, parent_bell) = join(1, store, life=1)
    assert link.wait_up(DEADLINE_S)
    assert right.wait_up(DEADLINE_S)
    offer(channels.to_parent, bell, train(0), payload(0))
    assert poll(parent.from_child, parent_bell)[0] == train(0)
    assert len(refused) == 1
    assert link.last_error == ""


# --- the store, resources, strangers --------------------------------------------------------------


def test_when_the_store_is_gone_a_link_goes_on_and_says_so_once(nursery_of_neighbours):
    pid, port = nursery_of_neighbours.bear_store()
    store = dist.PrefixStore("run", dist.TCPStore("127.0.0.1", port))
    lost = []
    sides = [join(k, store, on_store_lost=lambda k=k: lost.append(k)) for k in (0, 1)]
    (child, link, bell), (parent, parents, parent_bell) = sides
    assert link.wait_up(DEADLINE_S)
    assert parents.wait_up(DEADLINE_S)
    kill(pid)
    until(lambda: sorted(lost) == [0, 1], DEADLINE_S)
    for b in range(20):
        offer(child.to_parent, bell, train(b), payload(b))
        assert poll(parent.from_child, parent_bell)[0] == train(b)
    assert link.connects == parents.connects == 1
    link.drop(0.0)  # this cannot be mended, and must not be tried for ever
    until(lambda: not link.up and not parents.up, DEADLINE_S)
    for _, side, _ in sides:
        until(lambda side=side: not side._thread.is_alive(), DEADLINE_S)
        assert not side.wait_up(0.05)
        side.close()
    assert sorted(lost) == [0, 1]


def test_a_link_made_two_hundred_times_keeps_nothing(both, store):
    """Tolerance: 2 threads or files (the last connection's may be about to go), no key more in the
    store, and 8 MB, which is 40 kB a connection, of both sides together."""
    process = psutil.Process()
    (_, link, _), (_, parents, _) = both

    def again(number):
        for side in (link, parents):
            until(lambda s=side: s.connects >= number and s.up, DEADLINE_S, every_s=0.002)

    def have():
        return process.num_threads(), process.num_fds(), len(store.list_keys())

    for number in range(1, 220):
        again(number)
        if number == 20:
            before, memory = have(), process.memory_info().rss
        (link, parents)[number % 2].drop(0.0)
    again(220)
    for had, has, tolerance in zip(before, have(), (2, 2, 0), strict=True):
        assert has <= had + tolerance
    assert process.memory_info().rss <= memory + 8 * 2**20


def test_neighbours_that_are_killed_leave_nothing_behind(store, bear):
    """Tolerance: one thread and one file."""
    process = psutil.Process()
    _, link, _ = join(0, store)
    threads, files = process.num_threads(), process.num_fds()
    for life in range(6):
        pid = bear(store, life)
        until(lambda: link.up, DEADLINE_S)
        kill(pid)
        until(lambda: not link.up, DEADLINE_S)
        until(lambda: process.num_threads() <= threads + 1, DEADLINE_S)
        until(lambda: process.num_fds() <= files + 1, DEADLINE_S)


def test_a_link_listens_on_loopback_and_bears_strangers(both):
    (child, link, bell), (parent, parents, parent_bell) = both
    ports = listening()
    edges = [port for ip, port in ports if ip != "::"]  # there is the store
    assert {ip for ip, _ in ports} <= {"127.0.0.1", "::"}
    assert len(edges) >= 4  # two edges, either end; those of earlier tests may still be closing
    for stranger in strange(edges):
        stranger.close()
    for b in range(10):
        offer(child.to_parent, bell, train(b), payload(b))
        assert poll(parent.from_child, parent_bell)[0] == train(b)
    assert link.up
    assert link.connects == parents.connects == 1


def test_a_program_that_forgets_to_close_its_links_still_ends_well(store):
    program = (
        "import sys, torch, torch.distributed as dist, test_links as t\n"
        "store = dist.PrefixStore('run', dist.TCPStore('127.0.0.1', int(sys.argv[1])))\n"
        "t.join(0, store)\n"
    )
    port = str(store._underlying_non_prefix_store.port)
    done = subprocess.run(
        [sys.executable, "-c", program, port],
        cwd=Path(__file__).parent,
        timeout=DEADLINE_S,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    nursery()
