"""Carries out a component's schedule, in a process of its own or in the oracle."""

from mach.trainer.assemble import Assembly
from mach.trainer.evaluate import evaluate
from mach.trainer.faults import Faults
from mach.trainer.free import FreeWorker, moves
from mach.trainer.loop import Hooks, Trainer, program
from mach.trainer.oracle import Oracle
from mach.trainer.settle import settle
from mach.trainer.simulation import Simulation
from mach.trainer.step import Worker

__all__ = [
    "Assembly",
    "Faults",
    "FreeWorker",
    "Hooks",
    "Oracle",
    "Simulation",
    "Trainer",
    "Worker",
    "evaluate",
    "moves",
    "program",
    "settle",
]
