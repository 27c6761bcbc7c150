"""What does the nursery do?

See mach.launcher.nursery. It computes nothing and starts no thread: what it has imported is to
outlive a fork.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle

from mach.launcher.agent import Job, Work, keep_alive
from mach.launcher.signals import STOP
from mach.rank import keep_heap
from mach.storeaddress import StoreAddress


def rear(options: argparse.Namespace, work: Work) -> None:
    """Be the nursery: wait to be told to begin, fork the agents, see to them until they end.

    The signals in HANDLED are blocked, here for good.

    Args:
        options: this process's own (mach.introduce).
        work: what a component does; whoever imports it has imported all that is slow.
    """
    control = Connection(options.control)
    reports = [Connection(int(fd), readable=False) for fd in options.reports.split(",")]
    groups = [tuple(map(int, group.split(","))) for group in options.groups.split(";")]
    keep_heap()
    try:
        recv_handle(control)  # stays open here, and in all that is forked
    except (EOFError, OSError, RuntimeError):  # the run was refused, or the launcher is gone
        return
    store = StoreAddress.parse(options.store)
    fork = get_context("fork")
    agents: list[BaseProcess] = []
    for index, group in enumerate(groups):
        job = Job(group, options.run, store, work)
        agent = fork.Process(target=_agent, args=(job, os.getpid(), control, reports, index))
        agent.start()
        agents.append(agent)
    for pipe in reports:
        pipe.close()
    _see_to(agents, control)


def _agent(
    job: Job,
    nursery: int,
    control: Connection,
    reports: list[Connection],
    index: int,
) -> None:
    control.close()
    for other, pipe in enumerate(reports):
        if other != index:
            pipe.close()
    keep_alive(job, nursery, reports[index])


def _see_to(agents: Sequence[BaseProcess], control: Connection) -> None:
    left = dict(enumerate(agents))
    heard: list[Connection] = [control]
    while left:
        ready = connection.wait([*heard, *(agent.sentinel for agent in left.values())])
        for index, agent in list(left.items()):
            if agent.sentinel in ready:
                agent.join()
                del left[index]
                with suppress(OSError):
                    control.send((index, agent.exitcode))
        if control in ready:
            try:
                orders = [control.recv()]
            except (EOFError, OSError):
                heard.clear()
                orders = [(index, STOP) for index in left]
            for index, number in orders:
                pid = left[index].pid if index in left else None
                if pid is not None:  # not yet joined: the id is still its own
                    os.kill(pid, number)
