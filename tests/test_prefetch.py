"""Are microbatches that were made ahead the same ones, and is nothing left of who made them?"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from random import Random
from time import monotonic

import numpy as np
import pytest
import torch

from clouds import clouds, make, weights
from images import images
from mach.config import NpzConfig, TextConfig
from mach.data import Batches, Dataset, open_dataset
from mach.data.prefetch import Microbatch, Name, Prefetch
from mach.launcher.compose import compose
from mach.trainer import Oracle
from runs import SMALL, lines, result
from spawn import TRAIN, run

CPU = torch.device("cpu")
DEADLINE_S = 60.0


def augmented(tmp_path: Path) -> Dataset:
    raw = images(3, 8, 8)
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "images.npz", **{name: getattr(raw, name) for name in names})
    return open_dataset(NpzConfig(path=str(tmp_path / "images.npz"), augment="crop_flip"))


def text(tmp_path: Path) -> Dataset:
    (tmp_path / "text.txt").write_bytes(bytes(i % 251 for i in range(3000)))
    return open_dataset(TextConfig(path=str(tmp_path / "text.txt"), context=16))


def vectors(tmp_path: Path) -> Dataset:
    return clouds()


def back_and_forth() -> list[Name]:
    """As under `free`: two streams and an earlier life, with gaps, repeats and steps back."""
    random = Random(0)
    at = {(0, 0): 0, (2, 1): 0, (2, 0): 40}
    names = []
    for _ in range(120):
        origin, life = random.choice(list(at))
        at[origin, life] += random.choice([1, 1, 1, 1, 2, 0, -1, 5])
        names.append(Name(max(0, at[origin, life]), origin, life))
    return names


ORDERS = {
    "from the first": [Name(b, 0, 0) for b in range(60)],
    "resumed": [Name(b, 0, 0) for b in range(777, 800)],
    "free": back_and_forth(),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [vectors, augmented, text])
@pytest.mark.parametrize("ahead", [1, 3])
def test_microbatches_made_ahead_are_the_same_bit_by_bit(tmp_path, kind, order, ahead):
    dataset = kind(tmp_path)
    plain, prefetching = Batches(dataset, 3, 16, CPU), Batches(dataset, 3, 16, CPU, ahead)
    for name in ORDERS[order]:
        expected = plain.train(name.number, name.origin, name.life)
        got = prefetching.train(name.number, name.origin, name.life)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name
            a.zero_()  # what is handed out is the caller's own
    for batch in range(plain.evaluation_batches()):
        assert torch.equal(plain.evaluation(batch)[0], prefetching.evaluation(batch)[0])


class Maker:
    """Makes microbatches that name themselves, and remembers in which thread."""

    def __init__(self) -> None:
        self.made: dict[Name, threading.Thread] = {}
        self.turn = threading.Condition()
        self.held = False
        self.fails: set[int] = set()

    def __call__(self, name: Name) -> Microbatch:
        with self.turn:
            ours = threading.current_thread() is threading.main_thread()
            assert ours or self.turn.wait_for(lambda: not self.held, DEADLINE_S)
            self.made[name] = threading.current_thread()
            self.turn.notify_all()
        if name.number in self.fails:
            raise OSError(f"microbatch {name.number} is lost")
        return torch.tensor(name.number), torch.tensor(name.origin)

    def hold(self, held: bool) -> None:
        """Let the other thread stand still, or go on."""
        with self.turn:
            self.held = held
            self.turn.notify_all()

    def wait_for(self, *names: Name) -> None:
        with self.turn:
            assert self.turn.wait_for(lambda: self.made.keys() >= set(names), DEADLINE_S)


def test_what_was_foreseen_is_made_elsewhere_and_ahead():
    maker = Maker()
    prefetch = Prefetch(maker, 3, CPU)
    assert prefetch.take(Name(7, 0, 0))[0] == 7
    maker.wait_for(*(Name(b, 0, 0) for b in (8, 9, 10)))
    assert prefetch.take(Name(8, 0, 0))[0] == 8
    maker.wait_for(Name(11, 0, 0))
    main = threading.main_thread()
    assert [b for b in range(7, 12) if maker.made[Name(b, 0, 0)] is main] == [7]
    assert len({*maker.made.values()} - {main}) == 1
    assert Name(12, 0, 0) not in maker.made


def test_nobody_waits_for_a_thread_that_has_not_begun():
    """A thread that gets no core: what it has not begun is made by who asks."""
    maker = Maker()
    prefetch = Prefetch(maker, 4, CPU)
    maker.hold(True)
    for b in (0, 5, 6, 7, 8):  # 1 to 4 are foreseen; 1 stands still, and is not asked for
        assert prefetch.take(Name(b, 0, 0))[0] == b
    assert all(thread is threading.main_thread() for thread in maker.made.values())
    maker.hold(False)


def test_two_streams_in_turn_are_both_foreseen():
    maker = Maker()
    prefetch = Prefetch(maker, 2, CPU)
    for b in range(20):
        for origin in (0, 3):
            prefetch.take(Name(b, origin, 0))
            maker.wait_for(Name(b + 1, origin, 0), Name(b + 2, origin, 0))
    main = threading.main_thread()
    assert {name for name, thread in maker.made.items() if thread is main} == {
        Name(0, 0, 0),
        Name(0, 3, 0),
    }


def test_streams_that_come_and_go_leave_a_bounded_number_behind():
    prefetch = Prefetch(Maker(), 2, CPU)
    for life in range(50):
        prefetch.take(Name(0, 1, life))
        assert len(prefetch._kept) <= 4


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for():
    maker = Maker()
    maker.fails = {1}
    prefetch = Prefetch(maker, 2, CPU)
    prefetch.take(Name(0, 0, 0))
    maker.wait_for(Name(1, 0, 0), Name(2, 0, 0))
    with pytest.raises(OSError, match="microbatch 1 is lost"):
        prefetch.take(Name(1, 0, 0))
    assert prefetch.take(Name(2, 0, 0))[0] == 2


def threads_that_prefetch() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("mach-prefetch")]


def test_the_thread_ends_with_who_asked():
    before = set(threads_that_prefetch())  # of tests before this one
    batches = Batches(clouds(), 0, 8, CPU, prefetch=3)
    assert not set(threads_that_prefetch()) - before  # it begins with the first microbatch
    batches.train(0)
    (thread,) = set(threads_that_prefetch()) - before
    del batches
    deadline = monotonic() + DEADLINE_S
    while thread.is_alive() and monotonic() < deadline:
        gc.collect()  # finds nothing while the thread is still making what was foreseen
        thread.join(0.05)
    assert not thread.is_alive()


def test_the_wait_for_data_is_counted():
    for ahead in (0, 2):
        batches = Batches(clouds(), 0, 8, CPU, ahead)
        assert batches.wait_s == 0
        batches.train(0)
        first = batches.wait_s
        assert first > 0
        batches.evaluation(0)
        assert batches.wait_s == first
        batches.train(1)
        assert batches.wait_s > first


@pytest.mark.parametrize(
    "overrides", [{"schedule": "delayed", "delay": 2}, {"schedule": "sync"}], ids=str
)
def test_a_chain_whose_data_comes_ahead_has_the_same_weights_bit_by_bit(overrides):
    config = make(3, student={"enabled": True}, **overrides)
    plain, ahead = Oracle(config, clouds()), Oracle(config, clouds())
    for trainer in ahead.trainers:
        trainer.worker._batches = Batches(clouds(), config.seed, 8, CPU, prefetch=2)
    assert plain.run()["chain"] == ahead.run()["chain"]
    for part in ("body", "head"):
        expected = weights(plain, part)
        assert all(torch.equal(w, expected[name]) for name, w in weights(ahead, part).items())


@pytest.mark.timeout(300)
def test_processes_that_prefetch_find_what_one_process_finds_and_log_their_wait(tmp_path):
    overrides = [*SMALL, "steps=6", "report.every=1"]
    done = run([*TRAIN, *overrides, "out=ahead", "data.prefetch=2"], tmp_path)
    assert done.code == 0, done
    config = compose(overrides)
    expected = Oracle(config, open_dataset(config.data)).run()
    found = result(tmp_path / "ahead")
    assert (found["chain"], found["windows"]) == (expected["chain"], expected["windows"])
    waits = [line["wait_data_ms"] for k in (0, 1) for line in lines(tmp_path / "ahead", k)[:-1]]
    assert len(waits) == 12
    assert all(wait > 0 for wait in waits)
