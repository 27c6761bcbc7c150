"""Two machines on one: network namespaces joined by a link, which may have a latency.

    with two_machines(latency_ms=20) as (left, right):
        run([*left.inside, "ip", "address"], folder)

A namespace here has no name. A process holds it that ends when its input does, and so does the one
that carries the packets of a slow link: whatever becomes of the tests, even kill -9, nothing of
this outlives them. Needs Linux, root, iproute2 and util-linux; `why_not` tells what is missing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WIRE = "wire"
"""Name of the link's interface, on both machines."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_STEP_S = 10.0
"""Longest that any one command here may take."""


@dataclass(frozen=True)
class Machine:
    """One end of the link."""

    address: str
    holder: int
    """Process that holds the namespace."""

    @property
    def inside(self) -> list[str]:
        """Put before a command it runs it on this machine, as the same process."""
        return ["nsenter", f"--net={_namespace(self.holder)}"]


@contextmanager
def two_machines(latency_ms: float = 0.0) -> Iterator[tuple[Machine, Machine]]:
    """Two machines that see each other, and nothing else.

    Args:
        latency_ms: how long a packet takes, each way; 0 joins them by a pair of virtual cables.
    """
    with ExitStack() as stack:
        holders = [_held(stack, ["unshare", "--net", "cat"]) for _ in ADDRESSES]
        pair = [Machine(*end) for end in zip(ADDRESSES, holders, strict=True)]
        left, right = pair
        if latency_ms:
            pids = [str(machine.holder) for machine in pair]
            _held(stack, [sys.executable, __file__, *pids, str(latency_ms)])
        else:
            peer = ["peer", "name", WIRE, "netns", str(right.holder)]
            _do([*left.inside, "ip", "link", "add", WIRE, "type", "veth", *peer])
        for machine in pair:
            _do([*machine.inside, "ip", "address", "add", f"{machine.address}/24", "dev", WIRE])
            for interface in ("lo", WIRE):  # torchrun and gloo want loopback, too
                _do([*machine.inside, "ip", "link", "set", interface, "up"])
        yield left, right


@cache
def why_not(latency_ms: float = 0.0) -> str | None:
    """Why there can be no such machines here, found by trying; None where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with two_machines(latency_ms) as (left, right):
            _do([*left.inside, sys.executable, "-c", _REACH, right.address])
    except (OSError, subprocess.SubprocessError) as error:
        return f"two network namespaces could not be joined: {error}"
    return None


_REACH = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).connect((sys.argv[1], 9))"


def _held(stack: ExitStack, command: list[str]) -> int:
    """Start a process that lives until its input ends. Returns its id, once it is ready.

    It is ready when it has answered the line that is put in.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    stack.callback(_let_go, process)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"ready\n")
    process.stdin.flush()
    answers, _, _ = select.select([process.stdout], [], [], _STEP_S)
    if not answers or process.stdout.readline() != b"ready\n":
        raise OSError(f"{' '.join(command)}: {_let_go(process)}")
    return process.pid


def _let_go(process: subprocess.Popen[bytes]) -> str:
    """End a process by the end of its input. Returns its last words."""
    try:
        _, said = process.communicate(timeout=_STEP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    except (ValueError, BrokenPipeError):  # done before
        said = b""
    return said.decode(errors="replace").strip().rpartition("\n")[2]


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_STEP_S)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _namespace(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


# --- the slow link: a process of its own ---------------------------------------------------

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_PACKET_BYTES = 65536


def _tun(holder: int) -> int:
    """A new interface in a namespace: what the machine sends is read here, and the reverse.

    It lasts as long as this process.
    """
    with Path(_namespace(holder)).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", WIRE.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _carry(ends: tuple[int, int], latency_s: float) -> None:
    """Hand every packet over when it is due, until the input ends."""
    other = dict(zip(ends, reversed(ends), strict=True))
    waiting: deque[tuple[float, int, bytes]] = deque()  # in the order they are due
    while True:
        wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([*ends, sys.stdin], [], [], wait_s)
        if sys.stdin in readable:
            return
        for end in readable:
            packet = os.read(end, _PACKET_BYTES)
            waiting.append((time.monotonic() + latency_s, other[end], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, packet = waiting.popleft()
            try:
                os.write(end, packet)
            except OSError:
                continue  # the interface is not up yet: lost, as on a real link


if __name__ == "__main__":
    ready = sys.stdin.readline()
    tuns = (_tun(int(sys.argv[1])), _tun(int(sys.argv[2])))
    print(ready, end="", flush=True)
    _carry(tuns, float(sys.argv[3]) / 1000)
