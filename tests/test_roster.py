"""Who is in the run, in which life: the keys that components and their supervisor share."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from threading import Event
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from mach.config import Config, LaunchConfig, MlpConfig
from mach.errors import ConfigError
from mach.rank import Rank
from mach.roster import Beat, Pulse, Roster, Silence
from mach.session import free


def a_store() -> dist.TCPStore:
    return dist.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10)
    )


@pytest.fixture
def roster() -> Roster:
    return Roster(dist.PrefixStore("run", a_store()), components=3)


def test_lives_are_counted_from_zero_for_each_component(roster):
    assert [roster.enter(1), roster.enter(1), roster.enter(0), roster.enter(1)] == [0, 1, 0, 2]
    assert [roster.starts(k) for k in range(3)] == [1, 3, 0]


def test_starts_of_which_nobody_heard_count(roster):
    """A component that is killed while it loads its data has not entered yet."""
    assert roster.enter(1, restarts=2) == 0
    assert roster.starts(1) == 3
    assert roster.enter(1, restarts=3) == 1
    assert roster.starts(1) == 4


def test_a_resumed_run_goes_on_counting_lives(roster):
    assert roster.enter(0, at_least=5) == 5
    assert roster.enter(0, at_least=5) == 6  # it died before it saved
    assert roster.enter(0, at_least=6) == 7
    assert roster.enter(0, at_least=20) == 20
    assert roster.starts(0) == 4


def test_a_beat_is_read_as_it_was_said(roster):
    assert roster.last_beat(2) is None
    roster.enter(2)
    beat = Beat(life=0, pid=17, progress=3, step=2, state="training", counters={"alone": 4})
    roster.beat(2, beat)
    assert roster.clone().last_beat(2) == beat


def test_counters_are_added_up_over_all_lives(roster):
    for alone, imagined in ((1, 2), (3, 4)):
        life = roster.enter(1)
        roster.beat(1, Beat(life, 17, counters={"alone": 0, "imagined": 0}))
        roster.beat(1, Beat(life, 17, counters={"alone": alone, "imagined": imagined}))
    assert roster.counters(1) == {"alone": 4, "imagined": 6}
    assert roster.counters(0) == {}


def test_barren_lives_are_counted_until_one_takes_a_step(roster):
    assert [roster.count_barren(0) for _ in range(3)] == [0, 1, 2]
    roster.bore_fruit(0)
    assert roster.count_barren(0) == 0
    assert roster.count_barren(1) == 0


def test_each_life_waits_twice_as_long_as_the_one_before_until_one_takes_a_step(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(free.time, "sleep", waited.append)
    rank = Rank(0, 1, 0, 1, 0, "a run", a_store(), "localhost")
    config = Config(components=1, schedule="free", launch=LaunchConfig(backoff_s=0.5))

    def waits(lives: int) -> list[float]:
        waited.clear()
        for _ in range(lives):
            free.enlist(rank, config)
        return waited

    assert waits(6) == [0.5, 1.0, 2.0, 4.0]  # not the first life, and not the first that follows
    Roster(rank.store, components=1).bore_fruit(0)
    assert waits(3) == [0.5]
    assert max(waits(20)) == free._LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("supervised", "lives_before", "starts", "waits"),
    [
        (True, 0, 1, True),
        (True, 3, 1, True),  # of a run that was stopped: all of them begin again
        (False, 3, 1, True),
        (False, 0, 2, True),  # of a group: all of them were started again
        (True, 0, 2, False),  # it died, and the others train
        (True, 3, 2, False),
    ],
)
def test_who_begins_with_all_the_others_waits_for_them(
    roster, supervised, lives_before, starts, waits
):
    """After a resume or a restart of the group whoever was up first trained alone: in its life
    before the chain had been up."""
    for _ in range(starts):
        number = roster.enter(1, at_least=lives_before)
    link = SimpleNamespace(neighbour=0, up=False)
    rank = Rank(1, 3, 1, 3, 0, "a run", roster._store, "localhost", supervised)
    bell = SimpleNamespace(wait=lambda timeout_s: setattr(link, "up", True))
    seat = SimpleNamespace(rank=rank, config=Config(components=3, schedule="free"))
    life = object.__new__(free._Life)
    life._seat, life._roster, life._life = seat, roster, number
    life._bell, life._over = bell, False
    life._await_neighbours(SimpleNamespace(links=[link]))
    assert link.up == waits


def test_a_run_is_over_when_each_component_is_done_or_gone(roster):
    roster.finish(0, "zero")
    roster.finish(2, "two")
    assert not roster.is_over()
    roster.give_up(1)
    assert roster.is_over()
    assert [roster.is_done(k) for k in range(3)] == [True, False, True]
    assert [roster.is_gone(k) for k in range(3)] == [False, True, False]
    assert [roster.outcome(k) for k in range(3)] == ["zero", None, "two"]


def test_a_stranger_is_refused_with_what_differs(roster):
    roster.found({"run": "a", "config": "1"})
    roster.check_charter({"run": "a", "config": "1"})
    with pytest.raises(ConfigError, match=r"has config 2, the run in the store .* has 1"):
        roster.check_charter({"run": "a", "config": "2"})
    with pytest.raises(ConfigError, match=r"has run b, .* has a"):
        roster.check_charter({"run": "b", "config": "1"})


def test_the_pulse_tells_once_that_the_run_is_over(roster):
    over, lost = [], []
    seen = Event()
    roster.enter(0)

    def is_over() -> None:
        over.append(1)
        seen.set()

    pulse = Pulse(
        roster.clone(), 0, lambda: Beat(0, 1), on_over=is_over, on_lost=lambda: lost.append(1)
    )
    for k in range(3):
        assert not over
        roster.finish(k, "")
    assert seen.wait(10)
    pulse.stop()
    assert (over, lost) == ([1], [])
    last = roster.last_beat(0)
    assert last == Beat(0, 1, number=last.number)


def test_who_is_not_heard_for_too_long_is_missed(roster):
    now_s = 0.0
    silence = Silence(roster, {1, 2}, start_s=100, longest_s=10, now=lambda: now_s)
    for number in range(4):  # 2 beats on, 1 is still starting
        now_s += 10
        roster.enter(2)
        roster.beat(2, Beat(0, 1, number=number))
        assert silence.broken_by() is None
    roster.enter(1)
    roster.beat(1, Beat(0, 1))
    now_s = 49.0
    assert silence.broken_by() is None
    now_s = 51.0
    assert silence.broken_by() == 2


def looks_until_missed(roster: Roster, beats: list[Beat], every_s: float = 1.0) -> int | None:
    """Which look at component 1, that goes on saying this, finds it missing after 10 seconds."""
    now_s = 0.0
    silence = Silence(roster, {1}, start_s=100, longest_s=10, now=lambda: now_s)
    for look, beat in enumerate(beats, start=1):
        now_s += every_s
        roster.beat(1, replace(beat, number=look))
        if silence.broken_by() is not None:
            return look
    return None


@pytest.mark.parametrize("state", ["training", "done"])
def test_who_is_heard_and_does_nothing_is_missed(roster, state):
    """The thread that beats is not the one that hangs: it was never found."""
    roster.enter(1)
    assert looks_until_missed(roster, [Beat(0, 1, progress=7, state=state)] * 40) == 12


@pytest.mark.parametrize("state", ["starting", "saving", "publishing", "reporting"])
def test_who_waits_for_a_disk_or_for_others_is_not_missed_while_it_is_heard(roster, state):
    roster.enter(1)
    assert looks_until_missed(roster, [Beat(0, 1, progress=7, state=state)] * 40) is None


def test_who_does_something_now_and_then_is_not_missed(roster):
    roster.enter(1)
    slow = [Beat(0, 1, progress=look // 9, state="training") for look in range(60)]
    assert looks_until_missed(roster, slow) is None


def test_who_stood_still_itself_misses_nobody(roster):
    """A machine that was frozen with all that is on it: one look in a minute is not a minute."""
    roster.enter(1)
    busy = [Beat(0, 1, progress=7, state="training")] * 5
    assert looks_until_missed(roster, busy, every_s=60.0) is None


def test_one_that_compiles_is_not_missed_before_it_can_be_heard(roster):
    """Without a supervisor the others gave it two minutes, and it may take ten more."""
    model = MlpConfig(compile=True)
    config = Config(components=3, schedule="free", model=model)
    rank = Rank(0, 3, 0, 3, 0, "a run", roster._store, "localhost")
    life = SimpleNamespace(_seat=SimpleNamespace(config=config, rank=rank))
    assert free._Life._silence(life, roster)._start_s == config.start_timeout_s > 600


def test_a_beat_of_an_earlier_start_is_no_sign_of_life_and_none_of_death(roster):
    now_s = 0.0
    roster.enter(1)
    roster.beat(1, Beat(0, 1, number=700))
    silence = Silence(roster, {1}, start_s=100, longest_s=10, now=lambda: now_s)
    now_s = 99.0
    assert silence.broken_by() is None
    now_s = 101.0
    assert silence.broken_by() == 1


def test_the_pulse_tells_once_who_is_missed(roster):
    missed = []
    seen = Event()

    def on_silent(component: int) -> None:
        missed.append(component)
        seen.set()

    own = roster.clone()
    pulse = Pulse(
        own,
        0,
        lambda: Beat(0, 1),
        on_over=lambda: None,
        on_lost=lambda: None,
        on_silent=on_silent,
        silence=Silence(own, {1}, start_s=0.1, longest_s=0.1),
    )
    assert seen.wait(10)
    pulse.stop()
    assert missed == [1]


def test_the_pulse_tells_that_the_store_is_gone():
    server = a_store()
    client = dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=10))
    lost = Event()
    pulse = Pulse(Roster(client, 1), 0, lambda: Beat(0, 1), on_over=lambda: None, on_lost=lost.set)
    del server
    assert lost.wait(10)
    pulse.stop()
