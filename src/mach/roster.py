"""Who takes part in a run, in which life, how far is it, and who will not come back?

A few keys of the run's store. A component writes its own; its neighbours, and the supervisor that
started it, read them.

    charter        what a newcomer must match: run id and config hash
    lives/<k>      how many lives component k has begun, those before a resume included
    starts/<k>     how many since this launch
    beat/<k>       what it last said of itself
    count/<k>/<n>  what it counted in the n-th life of this launch
    barren/<k>     its lives in a row that ended before an optimizer step
    done/<k>       it has taken all its steps and saved them
    outcome/<k>    what it reports at the end
    gone/<k>       it died and has no restart left
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from threading import Event, Thread
from typing import Any, cast

import torch.distributed as dist

from mach.errors import ConfigError

BEAT_S = 0.2
"""Time between two beats."""
_LISTEN_EVERY = 5
"""Beats of one's own for one look at those of the others."""
ABSENT_S = 2.0
"""Longer than this between two looks, and it was the one who looks that stood still."""


@dataclass(frozen=True)
class Beat:
    """What a component says of itself."""

    life: int
    pid: int
    progress: int = 0
    """Grows with everything it does; a number that stands still is a component that hangs."""
    step: int = 0
    state: str = "starting"
    """starting, training, saving (it waits for the disk), done (it goes on serving its neighbours),
    publishing (it writes the run's result) or reporting (it waits for wandb to take the rest)."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """What it dropped, imagined and so on, in this life."""
    number: int = 0
    """Of this beat in this life: two are never the same."""

    @property
    def sign(self) -> tuple[int, str, int]:
        """What changes where the component does something: it beats while its training hangs."""
        return self.life, self.state, self.progress

    @property
    def busy(self) -> bool:
        """Whether it should show progress all the time. In the other states it waits for
        neighbours, disks and wandb, which takes as long as it takes."""
        return self.state in ("training", "done")


class Roster:
    """The run's store, as those who take part in the run use it.

    Not to be shared between threads: one that waits in the store's socket blocks the others. Each
    takes its own `clone`.
    """

    def __init__(self, store: dist.Store, components: int) -> None:
        self._store = store
        self.components = components

    def clone(self) -> Roster:
        """The same roster on a connection of its own."""
        return Roster(cast(Any, self._store).clone(), self.components)  # not in torch's stubs

    # --- for the component ---------------------------------------------------------------------

    def found(self, charter: Mapping[str, str]) -> None:
        """Say what every newcomer must match."""
        self._store.set("charter", json.dumps(dict(charter)))

    def check_charter(self, charter: Mapping[str, str]) -> None:
        """Refuse to take part in another run.

        Raises:
            ConfigError: the run in this store is another one.
        """
        theirs = json.loads(self._store.get("charter"))
        for key, mine in charter.items():
            if theirs.get(key) != mine:
                raise ConfigError(
                    f"this component has {key} {mine}, the run in the store it was sent to has "
                    f"{theirs.get(key)}. Start it with the config of that run."
                )

    def enter(self, component: int, at_least: int = 0, restarts: int = 0) -> int:
        """Begin a life. Returns its number: 0, then one more each time, never below `at_least`.

        Args:
            restarts: how often the component was started before, as its supervisor counts; some of
                these may have died before they got here.
        """
        starts = self._store.add(f"starts/{component}", 1)
        if starts <= restarts:
            self._store.add(f"starts/{component}", restarts + 1 - starts)
        life = self._store.add(f"lives/{component}", 1) - 1
        if life < at_least:  # the run goes on from a checkpoint of an earlier launch
            life = self._store.add(f"lives/{component}", at_least - life) - 1
        return life

    def beat(self, component: int, beat: Beat) -> None:
        """Publish a beat."""
        text = json.dumps(asdict(beat))
        self._store.set(f"beat/{component}", text)
        self._store.set(f"count/{component}/{self.starts(component)}", text)

    def count_barren(self, component: int) -> int:
        """Count this life as one without a step. Returns how many came in a row before it."""
        return self._store.add(f"barren/{component}", 1) - 1

    def bore_fruit(self, component: int) -> None:
        """This life has taken a step."""
        self._store.set(f"barren/{component}", "0")

    def finish(self, component: int, outcome: str) -> None:
        """This component has taken all its steps and saved them."""
        self._store.set(f"outcome/{component}", outcome)
        self._store.set(f"done/{component}", "1")

    # --- for everybody -------------------------------------------------------------------------

    def last_beat(self, component: int) -> Beat | None:
        """What a component last said; None before it said anything."""
        text = self._read(f"beat/{component}")
        return None if text is None else Beat(**json.loads(text))

    def outcome(self, component: int) -> str | None:
        """What a component reported when it was done."""
        return self._read(f"outcome/{component}")

    def starts(self, component: int) -> int:
        """How many lives a component has begun since this launch."""
        return int(self._store.add(f"starts/{component}", 0))

    def counters(self, component: int) -> dict[str, int]:
        """What a component counted, over all its lives since this launch."""
        total: Counter[str] = Counter()
        for life in range(1, self.starts(component) + 1):
            text = self._read(f"count/{component}/{life}")
            total.update(Beat(**json.loads(text)).counters if text is not None else {})
        return dict(total)

    def is_done(self, component: int) -> bool:
        return self._store.check([f"done/{component}"])

    def is_gone(self, component: int) -> bool:
        return self._store.check([f"gone/{component}"])

    def is_over(self) -> bool:
        """Whether every component is done or gone."""
        return all(self.is_done(k) or self.is_gone(k) for k in range(self.components))

    # --- for the supervisor --------------------------------------------------------------------

    def give_up(self, component: int) -> None:
        """This component will not come back."""
        self._store.set(f"gone/{component}", "1")

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


@dataclass
class _Heard:
    """What is known of another component."""

    beat: Beat | None
    """Its last; what is found at first may be left of a life before."""
    beat_s: float
    """When that was new."""
    speaks: bool = False
    """Whether it was heard since."""
    still_s: float = 0.0
    """How long it has been seen without progress."""

    def hear(self, beat: Beat | None, now_s: float, looked_s: float) -> None:
        """Take in its last beat, `looked_s` after the one before."""
        still = beat is not None and self.beat is not None and beat.sign == self.beat.sign
        self.still_s = self.still_s + min(looked_s, ABSENT_S) if still else 0.0
        if beat != self.beat:
            self.beat, self.beat_s, self.speaks = beat, now_s, True

    def hangs(self, longest_s: float) -> bool:
        """Whether it should do something, and has not for too long."""
        busy = self.speaks and self.beat is not None and self.beat.busy
        return busy and self.still_s > longest_s


class Silence:
    """Which of the others has said nothing new, or done nothing, for too long?"""

    def __init__(
        self,
        roster: Roster,
        others: Iterable[int],
        start_s: float,
        longest_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            start_s: until a component is heard.
            longest_s: from then on, between two beats, and without progress while it is busy.
        """
        self._roster, self._start_s, self._longest_s, self._now = roster, start_s, longest_s, now
        self._looked_s = now()
        self._heard = {k: _Heard(roster.last_beat(k), self._looked_s) for k in others}

    def broken_by(self) -> int | None:
        """The first that is missed. Ask now and then; who is done goes on beating."""
        now_s = self._now()
        looked_s, self._looked_s = now_s - self._looked_s, now_s
        for k, other in self._heard.items():
            other.hear(self._roster.last_beat(k), now_s, looked_s)
            if now_s - other.beat_s > (self._longest_s if other.speaks else self._start_s):
                return k
            if other.hangs(self._longest_s):
                return k
        return None


class Pulse:
    """A thread that publishes a component's beat and watches for the end of the run."""

    def __init__(
        self,
        roster: Roster,
        component: int,
        describe: Callable[[], Beat],
        *,
        on_over: Callable[[], None],
        on_lost: Callable[[], None],
        on_silent: Callable[[int], None] = lambda component: None,
        silence: Silence | None = None,
    ) -> None:
        """
        Args:
            roster: on a connection of its own.
            describe: the beat to publish; must not wait for anything.
            on_over: called once, when every component is done or gone.
            on_lost: called once, when the store is gone and with it whoever started the run.
            on_silent: called once, with a component that breaks the silence before the run is over.
            silence: on the same connection; None where a supervisor listens.
        """
        self._roster, self._component, self._describe = roster, component, describe
        self._on_over, self._on_lost, self._on_silent = on_over, on_lost, on_silent
        self._silence = silence
        self._stop = Event()
        self._thread = Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish once more and end."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        over = last = False
        number = 0
        try:
            while not last:
                last = self._stop.wait(BEAT_S)
                number += 1
                self._roster.beat(self._component, replace(self._describe(), number=number))
                # A read: unlike a write it fails at once where the store is gone.
                if self._roster.is_over() and not over:
                    over = True
                    self._on_over()
                if self._silence is not None and not over and number % _LISTEN_EVERY == 0:
                    missed = self._silence.broken_by()
                    if missed is not None:
                        self._silence = None
                        self._on_silent(missed)
        except RuntimeError:  # DistNetworkError and its like
            self._on_lost()
