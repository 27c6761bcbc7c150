"""How do two neighbours agree to connect, when either may die or start over at any moment?

Each side has one note in the store, which it writes anew: its ticket, the other's ticket that it
answers, and its hello. The ticket changes with every attempt, so a note that answers my ticket was
written by a neighbour that is alive, is down as I am, and was so after my attempt began. Two notes
that answer each other are a session; nobody else is asked, and whatever is left of older attempts
fits no ticket any more.

    # child                                   parent
    # ticket 0.2 answers -                    (dead; its note still says: 0.5 answers 0.1)
    # ticket 0.2 answers 0.5
    #                                         ticket 1.1 answers -       (its next life)
    # ticket 0.2 answers 1.1                  ticket 1.1 answers 0.2
    #              both build session 0.2-1.1
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from mach.channels.base import Link
from mach.channels.handshake import compare_hellos, hello_of

_NOTHING = "{}"


@dataclass(frozen=True)
class Session:
    """An attempt to connect that both sides agreed on."""

    name: str
    """Both tickets, the child's first."""
    path: str
    """Prefix of the store that this session alone uses."""
    theirs: str
    """The neighbour's ticket. While it stands, the neighbour is still at this attempt."""


class Meeting:
    """One side's view of the notes of a link."""

    def __init__(
        self, store: dist.Store, link: Link, component: int, life: int, identity: dict[str, str]
    ) -> None:
        """
        Args:
            store: a client of the run's store that no other thread uses.
            component: this side; the other end of the link is the neighbour.
            life: how often this component has been started before.
            identity: what both sides must agree on beyond the edges (run id, config hash).
        """
        self._folder = f"link/{link.child}-{link.parent}"
        self._store = dist.PrefixStore(self._folder, store)
        self._child, self._me = link.child == component, component
        self.neighbour = link.parent if self._child else link.child
        self._life, self._attempt, self._answers = life, 0, ""
        # Two that say they live the same life, by whoever's mistake, have different tickets.
        self._mark = secrets.token_hex(2)
        edges = [edge for edge in (link.up, link.down) if edge is not None]
        self._hello = {edge.name: hello_of(edge, identity) for edge in edges}

    @property
    def _ticket(self) -> str:
        return f"{self._life}.{self._attempt}.{self._mark}"

    def begin(self) -> None:
        """Begin a new attempt."""
        self._attempt += 1
        self._answer("")

    def look(self) -> str:
        """The neighbour's present ticket; empty if it never had one or has left."""
        return str(self._note().get("ticket", ""))

    def agreed(self) -> Session | None:
        """Answer the neighbour's ticket; the session, once it has answered mine. Never waits.

        Raises:
            ChannelError: the neighbour means another link than I do.
        """
        note = self._note()
        theirs = note.get("ticket", "")
        if not theirs:
            return None
        self._compare(note["hello"])
        if theirs != self._answers:
            self._answer(theirs)
        if note["answers"] != self._ticket:
            return None
        name = "-".join((self._ticket, theirs) if self._child else (theirs, self._ticket))
        return Session(name, f"{self._folder}/session/{name}", theirs)

    def sweep(self, session: Session) -> None:
        """Delete what older sessions have left in the store."""
        sessions = dist.PrefixStore("session", self._store)
        for key in sessions.list_keys():
            if not key.startswith(f"{session.name}/"):
                sessions.delete_key(key)

    def leave(self) -> None:
        """Take the note back: this side will not connect any more."""
        with suppress(RuntimeError):  # the store may be gone
            self._store.set(f"note/{self._me}", _NOTHING)

    def _answer(self, ticket: str) -> None:
        self._answers = ticket
        note = {"ticket": self._ticket, "answers": ticket, "hello": self._hello}
        self._store.set(f"note/{self._me}", json.dumps(note))

    def _note(self) -> dict[str, Any]:
        """The neighbour's note. A get would wait for the first one; this returns a default."""
        note = self._store.compare_set(f"note/{self.neighbour}", _NOTHING, _NOTHING)
        return dict(json.loads(note))

    def _compare(self, theirs: dict[str, dict[str, str]]) -> None:
        for name in {**self._hello, **theirs}:
            hellos = (self._hello.get(name, {}), theirs.get(name, {}))
            compare_hellos(name, self._me, self.neighbour, *hellos)
