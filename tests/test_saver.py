"""Checkpoints that are written while training goes on."""

from __future__ import annotations

from threading import Event

import pytest
import torch

from mach.errors import SaveError
from mach.session.saver import Saver

DEADLINE_S = 10.0


class Disk:
    """Writes when it is let; keeps what it has written."""

    def __init__(self) -> None:
        self.let, self.began = Event(), Event()
        self.written: dict[int, torch.Tensor] = {}

    def write(self, step, tensors):
        self.began.set()
        assert self.let.wait(DEADLINE_S)
        self.written[step] = tensors["w"]


def unexpected(said: str) -> None:
    raise AssertionError(said)


def test_what_is_written_is_what_was_there_when_it_was_asked_for():
    disk, weights = Disk(), torch.zeros(3)
    saver = Saver(disk.write, 0, unexpected)
    saver.save(1, {"w": weights})
    assert disk.began.wait(DEADLINE_S)
    weights += 1  # training goes on: save() has returned while the disk is busy
    assert (saver.asked, saver.saved) == (1, 0)
    disk.let.set()
    saver.wait()
    assert torch.equal(disk.written[1], torch.zeros(3))
    assert saver.saved == 1


def test_checkpoints_are_written_one_after_the_other():
    disk = Disk()
    disk.let.set()
    saver = Saver(disk.write, 0, unexpected)
    for step in (1, 2, 3):
        saver.save(step, {"w": torch.full((2,), float(step))})
    saver.wait()
    assert list(disk.written) == [1, 2, 3]


@pytest.mark.parametrize("error", [SaveError("disk full"), OSError("no such device")])
def test_a_checkpoint_that_cannot_be_written_is_told_and_counted(error):
    said = []

    def write(step, tensors):
        if step == 2:
            raise error

    saver = Saver(write, 0, said.append)
    for step in (1, 2):
        saver.save(step, {"w": torch.zeros(1)})
    saver.wait()
    assert (said, saver.failed, saver.saved, saver.asked) == ([str(error)], 1, 1, 2)
