"""Carries out a component's schedule, in a process of its own or in the oracle."""

from mach.trainer.assemble import Assembly
from mach.trainer.loop import Hooks, Trainer, program
from mach.trainer.oracle import Oracle
from mach.trainer.step import Worker

__all__ = ["Assembly", "Hooks", "Oracle", "Trainer", "Worker", "program"]
