"""What is a channel, whatever carries it?

A channel is one directed edge between neighbours: frames go in at the sender's end and come out at
the receiver's end, in order, each exactly once. A frame is a header and a payload in one buffer,
and its kind fixes its size: training payloads travel as `wire_dtype` says, those of an evaluation
as they are, because they tell how good the network is, which need not meet a wire again. W frames
(the credits) may be on their way; then the sender waits, so a slow consumer stops its producer and
memory stays bounded.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from threading import Condition

import torch
from torch import Tensor

from mach.channels.encoding import Encoding
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError
from mach.shapes import TensorSpec, spec_of


class Kind(IntEnum):
    """What a frame carries."""

    TRAIN = 0
    """An activation or a gradient of a training microbatch."""
    EVALUATE = 1
    """An activation of a test batch."""
    END = 2
    """Nothing more will come: the sender has finished."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says of its payload."""

    kind: Kind
    microbatch: int
    """Number of the microbatch, or of the test batch."""
    version: int = 0
    """Optimizer steps the sender had taken when it made the payload."""
    origin: int = 0
    """The component that made the microbatch; of a test batch, where it entered the chain."""
    life: int = 0
    """How often `origin` had been started before it made the microbatch."""
    clock: int = 0
    """Microbatches the sender had taken up when it made the payload."""

    def same_work(self, other: Header) -> bool:
        """Whether both speak of the same microbatch, whatever the version and the clock."""
        mine = (self.kind, self.microbatch, self.origin, self.life)
        return mine == (other.kind, other.microbatch, other.origin, other.life)

    def __str__(self) -> str:
        if self.kind is Kind.END:
            return "the end of the stream"
        noun = "microbatch" if self.kind is Kind.TRAIN else "test batch"
        return f"{noun} {self.microbatch}"


@dataclass(frozen=True)
class Edge:
    """A directed edge between components `source` and `target`, and what it carries."""

    source: int
    target: int
    payload: TensorSpec
    """Whole payload, batch dimension included."""
    credits: int
    """W: frames that may be under way."""
    wire_dtype: str = "float32"
    """What a training payload is rounded to on its way (see mach.channels.encoding)."""

    @property
    def name(self) -> str:
        """`activations 1->2` or `gradients 2->1`, as errors and store keys have it."""
        what = "activations" if self.source < self.target else "gradients"
        return f"{what} {self.source}->{self.target}"

    def encoding(self, kind: Kind) -> Encoding:
        """What the payload of such a frame looks like on the wire."""
        return self._exact if kind is Kind.EVALUATE else self._rounded

    def frame_bytes(self, kind: Kind) -> int:
        """Bytes of such a frame on the wire."""
        return HEADER_BYTES + self.encoding(kind).nbytes

    @cached_property
    def _rounded(self) -> Encoding:
        return Encoding(self.payload, self.wire_dtype)

    @cached_property
    def _exact(self) -> Encoding:
        return Encoding(self.payload)


@dataclass(frozen=True)
class Link:
    """The two edges between component k (the child) and component k + 1 (the parent)."""

    up: Edge
    down: Edge | None
    """None where feedback is 0: no gradient travels."""

    @property
    def child(self) -> int:
        return self.up.source

    @property
    def parent(self) -> int:
        return self.up.target


class Sender(ABC):
    """The end of an edge where frames go in.

    An end made with `on_change` calls it, on a thread of the edge, when a credit comes back and
    when the edge breaks.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.bytes_sent = 0
        self.wait_s = 0.0
        """Time `send` spent without a credit."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a frame can still reach the receiver, as far as this end knows.

        Without `on_change` an idle end learns of its neighbour's death by its next frame.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Whether `send` would return without waiting."""

    @abstractmethod
    def send(self, header: Header, payload: Tensor) -> None:
        """Copy a payload in and return; the payload may be overwritten at once.

        Raises:
            ChannelTimeoutError: no credit came back before the deadline.
            PeerLostError: the neighbour is gone.
        """

    def offer(self, header: Header, payload: Tensor) -> bool:
        """Send if that takes no waiting. False: no credit is free, or the neighbour is gone."""
        self.check(header, payload)
        if not (self.alive and self.ready()):
            return False
        try:
            self.send(header, payload)
        except PeerLostError:  # in this very moment
            return False
        return True

    @abstractmethod
    def close(self) -> None:
        """Tell the receiver that nothing more will come and wait until it has everything."""

    @abstractmethod
    def abort(self) -> None:
        """Let go of this end at once, without a farewell; the other end sees the edge break."""

    def check(self, header: Header, payload: Tensor) -> None:
        """Refuse a payload of another shape: a longer frame would end the peer's process."""
        expected = self.edge.payload
        if tuple(payload.shape) != expected.shape:
            raise ChannelError(
                f"{self.edge.name} at {header}: expected {expected}, got {spec_of(payload)}. "
                "Both ends must be built from the same config."
            )


class Receiver(ABC):
    """The end of an edge where frames come out.

    An end made with `on_change` calls it, on a thread of the edge, when a frame arrives and when
    the edge breaks.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.bytes_received = 0
        self.wait_s = 0.0
        """Time `receive` spent before its frame was there."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether more frames may arrive; those that have can be taken either way."""

    @property
    @abstractmethod
    def newest(self) -> Header | None:
        """Header of the frame that arrived last, taken or not: how old is the one I take?"""

    @abstractmethod
    def ready(self) -> bool:
        """Whether `receive` would return without waiting."""

    def receive(self, expected: Header) -> Tensor:
        """The next payload, a tensor of the caller's own on the component's device.

        Args:
            expected: what the schedule says must come next; its version is not compared.

        Raises:
            ChannelError: another microbatch came.
            ChannelTimeoutError: nothing came before the deadline.
            PeerLostError: the neighbour is gone.
        """
        self._await(expected)
        frame = self.poll()
        if frame is None:
            raise ChannelError(
                f"{self.edge.name}: expected {expected}, got the end of the stream. "
                f"Component {self.edge.source} ran fewer steps than component {self.edge.target}."
            )
        header, payload = frame
        if not header.same_work(expected):
            raise ChannelError(f"{self.edge.name}: expected {expected}, got {header}")
        return payload

    @abstractmethod
    def poll(self) -> tuple[Header, Tensor] | None:
        """The next frame if one is there; what came before the neighbour went is still good."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the sender's end of stream and let go of the edge."""

    @abstractmethod
    def abort(self) -> None:
        """Let go of this end at once, without a farewell; the other end sees the edge break."""

    @abstractmethod
    def _await(self, expected: Header) -> None:
        """Wait until a frame or the end of the stream is there."""


def wait_until(
    condition: Condition,
    predicate: Callable[[], bool],
    timeout_s: float,
    describe: Callable[[], str],
) -> float:
    """Wait on a held condition with a deadline. Returns the seconds waited.

    Raises:
        ChannelTimeoutError: with `describe()` and the seconds, when the deadline passes.
    """
    if predicate():
        return 0.0
    started = time.perf_counter()
    if not condition.wait_for(predicate, timeout_s):
        raise ChannelTimeoutError(f"{describe()}; waited {timeout_s:g} s")
    return time.perf_counter() - started


# --- frames ------------------------------------------------------------------------------------

HEADER_BYTES = 64
_MAGIC = 0x6D616368  # "mach"


class Slot:
    """Room for any frame of an edge, in host memory: 64 bytes of header, then the payload."""

    def __init__(self, edge: Edge, pinned: bool = False) -> None:
        size = max(edge.frame_bytes(kind) for kind in Kind)
        self.buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        self.parts = (self.buffer[HEADER_BYTES:], self.buffer[:HEADER_BYTES])
        """The same bytes in two messages, of which the short one goes last."""
        self.payload = self.parts[0]
        self._edge = edge
        self._fields = self.parts[1].view(torch.int64).numpy()

    def used(self, kind: Kind, in_parts: bool) -> tuple[Tensor, ...]:
        """What a frame of this kind fills: in one message, or as `parts` has it."""
        size = self._edge.frame_bytes(kind)
        if in_parts:
            return (self.buffer[HEADER_BYTES:size], self.parts[1])
        return (self.buffer[:size],)

    @property
    def header(self) -> Header:
        magic, kind, *numbers = self._fields[:7].tolist()
        if magic != _MAGIC:
            raise ChannelError(f"a frame began with {magic:#x} instead of {_MAGIC:#x}")
        return Header(Kind(kind), *numbers)

    @header.setter
    def header(self, h: Header) -> None:
        numbers = (h.microbatch, h.version, h.origin, h.life, h.clock)
        self._fields[:7] = (_MAGIC, h.kind, *numbers)


def frame_bytes(payload: TensorSpec) -> int:
    """Bytes of one frame on a wire that rounds nothing."""
    return HEADER_BYTES + payload.nbytes
