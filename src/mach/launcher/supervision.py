"""What follows from what is seen of the components: who is up, who hangs, when is it over?

No process, no clock and no store in here: `Supervision.look` is told what has been seen and when,
and returns what happened and what to do about it.

    starting --> up <--> slow --> done
                  |                 |
                  v                 v
                 down --> restarting, and up again
                  |
                  v
                 gone                (no restart left)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from mach.launcher.failure import REFUSED, Fall
from mach.launcher.reports import Answer, Died, Ended, Event, GiveUp, Kill, Report, Started, Stop
from mach.roster import ABSENT_S, Beat

RATE_S, RATE_LEAST_S = 10.0, 3.0
"""Steps per second are measured over so long; over less than the second, they are not known."""


@dataclass(frozen=True)
class Rules:
    """What the config has to say."""

    components: int
    max_restarts: int
    hang_s: float
    """Longest time without any progress."""
    start_s: float
    """The same for one that does not train: it has not begun, writes the result, or reports."""
    on_exhausted: str
    """stop or continue."""
    students: bool
    """Whether a component can do without its child."""


@dataclass
class Component:
    """What is known of one component."""

    state: str = "starting"
    step: int = 0
    pid: int | None = None
    """Of its process; None while it has none, or one that has been told to end."""
    beat: Beat | None = None
    """The last of its process."""
    sign_s: float = 0.0
    """Since when that tells of the same state and progress; without one, since it was started."""
    died_s: float | None = None
    """Since when it is away."""
    finished: bool = False
    """It has taken all its steps and saved them."""
    steps: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, step), as far back as the rate is measured."""

    def rate(self) -> float | None:
        """Steps per second."""
        if not self.steps or self.steps[-1][0] - self.steps[0][0] < RATE_LEAST_S:
            return None
        (began_s, first), (now_s, last) = self.steps[0], self.steps[-1]
        return (last - first) / (now_s - began_s)


class Supervision:
    """The state of all components."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._last_s: float | None = None
        self.components = tuple(Component() for _ in range(rules.components))

    def look(
        self, now_s: float, reports: Iterable[Report], beats: Sequence[Beat | None]
    ) -> list[Answer]:
        """What follows from what has been seen since the last look.

        Args:
            now_s: monotonic.
            reports: in the order in which they came.
            beats: the last of each component.
        """
        self._forgive(now_s)
        answers: list[Answer] = []
        for report in reports:
            match report:
                case Started():
                    self._started(now_s, report)
                case Died():
                    answers.append(self._died(now_s, report))
                case Ended():
                    answers += self._ended(report)
        for k, beat in enumerate(beats):
            if beat is not None and beat.pid == self.components[k].pid:
                answers += self._heard(now_s, k, beat)
        for k in range(self._rules.components):
            answers += self._check(now_s, k)
        self._compare()
        return answers

    def _forgive(self, now_s: float) -> None:
        """Ctrl-Z, a frozen machine: blame nobody for the time in which nobody looked."""
        if self._last_s is not None and now_s - self._last_s > ABSENT_S:
            for one in self.components:
                one.sign_s += now_s - self._last_s
        self._last_s = now_s

    def _started(self, now_s: float, report: Started) -> None:
        one = self.components[report.component]
        one.state = "restarting" if report.restart else "starting"
        one.pid, one.beat, one.sign_s = report.pid, None, now_s
        one.steps.clear()

    def _died(self, now_s: float, report: Died) -> Event:
        k = report.component
        self._lost(now_s, k)
        again = f"restart {report.restart} of {self._rules.max_restarts}"
        return Event(k, "died", f"component {k} died ({report.fall.short}); {again}")

    def _lost(self, now_s: float, k: int) -> None:
        one = self.components[k]
        one.state, one.pid = "down", None
        one.died_s = now_s if one.died_s is None else one.died_s

    def _ended(self, report: Ended) -> list[Answer]:
        k, fall = report.component, report.fall
        one = self.components[k]
        one.pid = None
        if fall is None:
            one.state = "done"
            return self._finish(k)
        one.state = "gone"
        if fall.code == REFUSED:
            return [Event(k, "refused", f"component {k} refused: {fall.short}"), Stop(k, fall)]
        if one.finished and not self._needed(k):  # nothing is lost: it has saved
            said = Event(k, "exhausted", f"component {k} ended after its last step ({fall.short})")
        elif self._rules.on_exhausted == "stop":
            return [self._exhausted(k, fall, "the run stops"), Stop(k, fall)]
        else:
            said = self._exhausted(k, fall, "the run goes on without it")
        answers: list[Answer] = [said, GiveUp(k)]
        if all(other.state == "gone" for other in self.components):
            answers.append(Stop(k, fall))
        return answers

    def _needed(self, k: int) -> bool:
        """Whether somebody would wait for component k for ever: all its inputs come from below."""
        above = self.components[k + 1 :]
        waits = any(not one.finished and one.state != "gone" for one in above)
        return waits and not self._rules.students

    @staticmethod
    def _exhausted(k: int, fall: Fall, then: str) -> Event:
        text = f"component {k} died ({fall.short}) and has no restart left; {then}"
        return Event(k, "exhausted", text)

    def _finish(self, k: int) -> list[Answer]:
        one = self.components[k]
        if one.finished:
            return []
        one.finished = True
        return [Event(k, "finished", f"component {k} has taken its last step")]

    def _heard(self, now_s: float, k: int, beat: Beat) -> list[Answer]:
        one = self.components[k]
        one.step = beat.step
        if one.beat is None or beat.sign != one.beat.sign:
            one.sign_s = now_s
        one.beat = beat
        if beat.state == "starting":
            return []
        answers: list[Answer] = []
        if one.state in ("starting", "restarting"):
            one.state = "up"
        if one.died_s is not None:
            away_s = now_s - one.died_s
            one.died_s = None
            text = f"is back in life {beat.life} after {away_s:.1f} s at step {beat.step}"
            answers.append(Event(k, "back", f"component {k} {text}"))
        if beat.state in ("done", "reporting"):
            one.state = "done"
            answers += self._finish(k)
        one.steps.append((now_s, beat.step))
        while now_s - one.steps[0][0] > RATE_S:
            one.steps.popleft()
        return answers

    def _check(self, now_s: float, k: int) -> list[Answer]:
        """Not dead, but hung: treated as dead."""
        one = self.components[k]
        busy = one.beat is not None and one.beat.busy
        limit_s = self._rules.hang_s if busy else self._rules.start_s
        if one.pid is None or now_s - one.sign_s <= limit_s:
            return []
        self._lost(now_s, k)
        where = "while it started" if one.beat is None else f"at step {one.step}"
        text = f"component {k} did nothing for {limit_s:g} s {where} and is ended"
        return [Event(k, "hung", text), Kill(k)]

    def _compare(self) -> None:
        """Slow: less than half as fast as the median of the living."""
        living = [one for one in self.components if one.state in ("up", "slow")]
        rates = [rate for one in living if (rate := one.rate()) is not None]
        for one in living:
            rate = one.rate()
            one.state = "slow" if rate is not None and rate < median(rates) / 2 else "up"
