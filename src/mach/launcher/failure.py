"""What is said when a component has ended a run?

One message: which component, why in its own words, where the logs are, and how to go on.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from mach import runfolder
from mach.config import Config
from mach.errors import ConfigError, DivergedError, RankFailedError

REFUSED = ConfigError.exit_code
"""Exit code of a component that would refuse again: config, data, run folder or checkpoint."""


@dataclass(frozen=True)
class Fall:
    """How a component's process ended."""

    code: int
    """Exit code; below 0 minus the signal's number."""
    said: str = ""
    """What the component itself said."""
    diverged: bool = False
    """Its loss was no longer finite."""

    @property
    def short(self) -> str:
        """`SIGKILL`, or what it said."""
        if self.code < 0:
            number = -self.code
            known = number in {one.value for one in signal.Signals}
            return signal.Signals(number).name if known else f"signal {number}"
        return self.said or f"ended with exit code {self.code}"

    @property
    def reason(self) -> str:
        """The same as a part of a sentence that begins with the component."""
        return f"was ended by {self.short}" if self.code < 0 else self.short


def fall_of(component: int, failure: ProcessFailure) -> Fall:
    """What torch's agent knows of the end of a component."""
    told = failure.exitcode >= 0 and Path(failure.error_file).is_file()  # else torch's advice
    said = _message(failure).removeprefix(f"component {component}: ") if told else ""
    diverged = _stored(failure).startswith(DivergedError.__name__)
    return Fall(failure.exitcode, said, diverged)


def run_failed(component: int, fall: Fall, run_dir: Path, config: Config) -> RankFailedError:
    """The error that ends the run because this component fell."""
    done = f"Logs: {run_dir / runfolder.LOGS}."
    if runfolder.has_checkpoint(run_dir):
        how = f"the last checkpoint: out={run_dir} resume=auto"
        if fall.diverged:  # it would do so again, unless something is changed
            how = f"a checkpoint: resume={run_dir}/{runfolder.CHECKPOINTS}/step-.. out=.."
            if config.schedule == "free":  # where no step is a checkpoint of all
                how = f"the last checkpoint of each component: resume={run_dir} out=.."
        done += f" Go on from {how}"
    error = RankFailedError(f"component {component} of {config.components}: {fall.reason}. {done}")
    error.exit_code = REFUSED if fall.code == REFUSED else 1
    return error


def no_result(run_dir: Path) -> RankFailedError:
    """All steps are taken, and yet there is nothing to show: whoever was to write it fell."""
    return RankFailedError(
        f"all steps are taken and saved, but no component has written {run_dir / runfolder.RESULT}."
        f" Logs: {run_dir / runfolder.LOGS}. To have it written: out={run_dir} resume=auto"
    )


def first_cause(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that fell by itself, not one that fell because its neighbour had."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, int]:
        _, failure = item
        return "PeerLostError" in _stored(failure), failure.timestamp

    return min(failures.items(), key=order)


def _message(failure: ProcessFailure) -> str:
    """What the rank itself said, without class name or traceback."""
    text = _stored(failure).partition("\n")[0] or f"ended with exit code {failure.exitcode}"
    kind, _, said = text.partition(": ")
    return (said if kind.isidentifier() and said else text).rstrip(".")


def _stored(failure: ProcessFailure) -> str:
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", json.dumps(message))
    return str(message)
