"""How does a component stay linked to a neighbour that may die, hang and come back?

A `LiveLink` keeps the link up on a thread of its own: when an edge breaks it lets go of the other
edge, too, meets the neighbour again and builds new edges behind the ends that the training thread
holds. A link is up or down as a whole, and no third component takes part.

    # meet the neighbour -> connect the edges -> hold the link until it breaks -> meet ..
    #        ^                     | failed: wait a little
    #        +---------------------+
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread, current_thread
from typing import cast

import torch.distributed as dist

from mach.channels.base import Link
from mach.channels.bell import Bell
from mach.channels.ends import Ends, Maker
from mach.channels.liveends import LiveReceiver, LiveSender
from mach.channels.meeting import Meeting, Session
from mach.channels.sessionstore import SessionStore
from mach.errors import ChannelError

_LOOK_S = 0.02
"""How often a link that is down looks for its neighbour."""
_GLANCE_S = 1.0
"""How often a link that is up does: a break that nobody reported shows as a new ticket."""
_LONGEST_PAUSE_S = 1.0
"""The pause after a failure doubles from one to the next, up to this."""
_CLOSE_S = 10.0
"""Longest that closing waits for the link's thread."""
_GIVEN_UP_S = 1.0
"""The same for a thread that is connecting to a neighbour that died after it had told its address:
gloo waits 5 connect_s for its call."""


class LiveLink:
    """The link of one component to one neighbour, made again whenever it breaks."""

    def __init__(
        self,
        link: Link,
        component: int,
        store: dist.Store,
        maker: Maker,
        *,
        identity: dict[str, str],
        life: int,
        bell: Bell,
        on_refused: Callable[[str], None] = lambda text: None,
        on_store_lost: Callable[[], None] = lambda: None,
        connect_s: float = 3.0,
    ) -> None:
        """
        Args:
            component: this side, the child or the parent of the link.
            store: the run's store; the link works on clones of it.
            identity: what both sides must agree on beyond the edges (run id, config hash).
            life: how often this component has been started before.
            bell: rung when a frame arrives, a credit comes back, the link comes up or breaks.
            on_refused: hears, on the link's thread, that the neighbour means another link.
            on_store_lost: hears there, once, that the store is gone: what breaks stays broken.
            connect_s: longest that connecting to a neighbour who has agreed may take.
        """
        edges = [edge for edge in (link.up, link.down) if edge is not None]
        self.sender = next((LiveSender(e) for e in edges if e.source == component), None)
        self.receiver = next((LiveReceiver(e) for e in edges if e.target == component), None)
        self.neighbour = link.parent if component == link.child else link.child
        self.connects = 0
        """How often the link came up."""
        self.last_error = ""
        """Why the latest attempt failed or was refused."""
        self._link, self._component, self._maker = link, component, maker
        self._on_refused, self._on_store_lost = on_refused, on_store_lost
        self._bell, self._wake, self._connect_s = bell, Bell(), connect_s
        self._store = _client(store)
        self._meeting = Meeting(self._store, link, component, life, identity)
        self._lock = Lock()
        """Held to change what follows."""
        self._ends: Ends | None = None
        self._away_until = 0.0
        self._closing = self._store_lost = False
        self._is_up = Event()
        self._pause_s = _LOOK_S
        self._given_up: list[_Builder] = []
        self._thread = Thread(target=self._run, name=f"link to {self.neighbour}", daemon=True)
        self._thread.start()
        # A daemon thread that is inside torch when the interpreter ends takes the process with it.
        atexit.register(self.close)

    @property
    def up(self) -> bool:
        """Whether both edges are there, as far as this side knows."""
        ends = self._ends
        return ends is not None and ends.alive

    def wait_up(self, timeout_s: float) -> bool:
        """Wait for the link to come up. Whether it did."""
        return self._is_up.wait(timeout_s)

    def drop(self, for_s: float) -> None:
        """Inject a fault: break the link and stay away for so long. Returns at once."""
        with self._lock:
            self._away_until = time.monotonic() + for_s
            self._detach()
        self._wake.ring()

    def close(self) -> None:
        """End the link for good; the neighbour sees it break."""
        atexit.unregister(self.close)
        with self._lock:
            self._closing = True
            self._detach()
        self._wake.ring()
        if self._thread is not current_thread():
            self._thread.join(_CLOSE_S)
        for builder in self._given_up:
            builder.join(_GIVEN_UP_S)

    # --- on the link's own thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                session = self._meet()
                ends = self._connect(session) if session is not None else None
                if session is not None and ends is not None:
                    self._hold(ends, session)
        except dist.DistError:
            self._lose_store()
        self._meeting.leave()

    def _meet(self) -> Session | None:
        """Find the neighbour. None where this side is closed or sent away meanwhile."""
        while self._interrupted():
            self._meeting.leave()
            if self._closing:
                return None
            self._wake.wait(max(0.0, self._away_until - time.monotonic()))
        self._meeting.begin()
        while not self._interrupted():
            try:
                session = self._meeting.agreed()
            except ChannelError as error:
                self._refuse(str(error))
            else:
                if session is not None:
                    return session
            self._wake.wait(_LOOK_S)
        return None

    def _connect(self, session: Session) -> Ends | None:
        """Build the ends of a session. None where that failed; then a moment has passed."""
        self._meeting.sweep(session)
        builder = _Builder(partial(self._make, session), self._wake)
        try:
            while not builder.done.is_set():
                if self._interrupted() or self._meeting.look() != session.theirs:
                    return None
                self._wake.wait(_LOOK_S)
            if builder.error:
                self._fail(builder.error, session)
            return builder.take()
        finally:
            builder.give_up()
            self._given_up = [b for b in (*self._given_up, builder) if b.is_alive()]

    def _make(self, session: Session, over: Event) -> Ends:
        store = dist.PrefixStore(session.path, self._store)
        return self._maker.ends(
            self._link,
            self._component,
            SessionStore(store, over, self._connect_s),
            self._connect_s,
            self._on_change,
        )

    def _hold(self, ends: Ends, session: Session) -> None:
        """Use these ends until they break, the neighbour starts over, or this side leaves."""
        with self._lock:
            if not self._interrupted():
                self._attach(ends)
        self._bell.ring()
        while self._ends is ends and ends.alive and not self._overtaken(session):
            self._wake.wait(_GLANCE_S)
        with self._lock:
            self._detach()
        self._bell.ring()
        ends.abort()

    def _overtaken(self, session: Session) -> bool:
        """Whether the neighbour has given this session up without our seeing the edges break."""
        if self._store_lost:
            return False
        try:
            return self._meeting.look() != session.theirs
        except dist.DistError:
            self._lose_store()
            return False

    def _interrupted(self) -> bool:
        return self._closing or time.monotonic() < self._away_until

    def _on_change(self) -> None:
        """On a thread of an edge: something has changed there."""
        self._bell.ring()
        if not self.up:
            self._wake.ring()

    def _refuse(self, text: str) -> None:
        if text != self.last_error:
            self.last_error = text
            self._on_refused(text)

    def _fail(self, text: str, session: Session) -> None:
        """Wait before the next attempt, unless the neighbour has begun another one."""
        self.last_error = text
        self._meeting.leave()  # the neighbour need not sit out its deadline
        ends = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        while time.monotonic() < ends and not self._interrupted():
            if self._meeting.look() not in (session.theirs, ""):
                return
            self._wake.wait(_LOOK_S)

    def _lose_store(self) -> None:
        if not self._store_lost:
            self._store_lost = True
            self._on_store_lost()

    def _attach(self, ends: Ends) -> None:
        if self.sender is not None and ends.sender is not None:
            self.sender.attach(ends.sender)
        if self.receiver is not None and ends.receiver is not None:
            self.receiver.attach(ends.receiver)
        self._ends = ends
        self.connects += 1
        self.last_error, self._pause_s = "", _LOOK_S
        self._is_up.set()

    def _detach(self) -> None:
        """The receiver keeps its end: what arrived before the break is still good."""
        if self.sender is not None:
            self.sender.attach(None)
        self._ends = None
        self._is_up.clear()


class _Builder(Thread):
    """Builds the ends of one session on a thread of its own, as connecting takes its time."""

    def __init__(self, make: Callable[[Event], Ends], bell: Bell) -> None:
        super().__init__(name="connect", daemon=True)
        self.done = Event()
        self.error = ""
        self._make, self._bell = make, bell
        self._lock = Lock()
        self._given_up = Event()
        self._ends: Ends | None = None
        self.start()

    def run(self) -> None:
        try:
            ends = self._make(self._given_up)
        except Exception as error:  # whatever it is, the next attempt may do better
            self.error = f"{type(error).__name__}: {error}"
        else:
            with self._lock:
                self._ends = ends
            if self._given_up.is_set():
                self.give_up()
        self.done.set()
        self._bell.ring()

    def take(self) -> Ends | None:
        """The ends, to be let go of by the caller; None where building them failed."""
        with self._lock:
            ends, self._ends = self._ends, None
            return ends

    def give_up(self) -> None:
        """Let go of the ends that nobody took, and of those that are not there yet."""
        self._given_up.set()
        ends = self.take()
        if ends is not None:
            ends.abort()


def _client(store: dist.Store) -> dist.Store:
    """A client of a store of its own: whatever others wait for on theirs does not stall it."""
    return cast(dist.Store, store.clone())  # type: ignore[attr-defined]
