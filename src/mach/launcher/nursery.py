"""From where are agents forked?

From one process of each run, which imports torch and all that a component needs while the launcher
checks the run: so neither waits for the other, and no component imports anything. It computes
nothing and has one thread, so that its memory can be shared. The launcher says when to begin, and
through it sends signals: only a parent can be sure to hit no other process.

    launcher                        nursery (mach.launcher.rearing)
      Nursery(..)    starts ->                   imports
      begin(lock)    control ->                  forks the agents
      signal(i, n)   control ->                  sends agent i a signal
                     <- control                  agent i has ended so
      leaves         end of control ->           stops the agents that are left, and ends
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path

from mach.introduce import RUN_DIR
from mach.launcher.signals import END_S, HANDLED, SAVE_S
from mach.storeaddress import StoreAddress
from mach.topology import VISIBLE_GPUS

PROGRAM = ("-m", "mach.train")
"""What Python runs as a nursery."""


class Nursery:
    """The launcher's side. Leaving the `with` ends it and all that came from it."""

    def __init__(
        self, run_dir: Path, store: StoreAddress, groups: Sequence[Sequence[int]], device: str
    ) -> None:
        """Start it.

        Args:
            run_dir: where the run's config will be when it is told to begin.
            store: where the run's store will be.
            groups: components of each agent.
            device: `launch.device`. A run on CPU sees no GPU: where there is one, torch asks CUDA
                for this and that all the same, and CUDA does not outlive a fork.
        """
        self.groups = groups
        self._begun = False
        self._control, control = Pipe()
        pipes = [Pipe(duplex=False) for _ in groups]
        self.reports = [ours for ours, _ in pipes]
        """What each agent reports; the end of an agent is the end of its pipe."""
        theirs = [control, *(their for _, their in pipes)]
        command = [sys.executable, *PROGRAM, f"--run={run_dir}", f"--store={store}"]
        command += [f"--control={control.fileno()}"]
        command += [f"--reports={','.join(str(their.fileno()) for _, their in pipes)}"]
        command += [f"--groups={';'.join(','.join(map(str, group)) for group in groups)}"]
        # Components set their own numbers; a pool of threads would not outlive a fork.
        forked = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        forked["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # nor would CUDA, which a look for it begins
        if device == "cpu":
            forked[VISIBLE_GPUS] = ""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # in all that comes from it
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **forked, RUN_DIR: str(run_dir)},
                pass_fds=[end.fileno() for end in theirs],
                start_new_session=True,  # Ctrl-C at the terminal is the launcher's business
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for end in theirs:
                end.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        if not self._begun:  # it only imports
            self._process.kill()
        if not self.ended(SAVE_S + 2 * END_S):
            self._process.kill()  # the agents hear of it from the kernel
            self._process.wait(END_S)
        for pipe in self.reports:
            pipe.close()

    def begin(self, lock: int) -> None:
        """Have the agents forked.

        Args:
            lock: of the run folder, an open file: theirs and their components' until they end.
        """
        self._begun = True
        with suppress(OSError):  # it has ended; so have the agents' pipes
            send_handle(self._control, lock, self._process.pid)

    def signal(self, agent: int, number: int) -> None:
        """Send a signal to an agent, if it lives."""
        with suppress(OSError):
            self._control.send((agent, number))

    def exit_code(self, agent: int) -> int | None:
        """Of an agent that is about to end; None where that is not heard of."""
        with suppress(OSError, EOFError):
            while self._control.poll(END_S):
                other, code = self._control.recv()
                if other == agent:
                    return int(code)
        return None

    def ended(self, within_s: float) -> bool:
        """Whether it has, and all that came from it, or will have in a moment."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True
