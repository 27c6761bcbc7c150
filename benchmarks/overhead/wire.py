"""What does an exchange of activations and gradients cost by itself?"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from pair import Peer, Report
from variants import OURS, VARIANTS, Settings, synthetic

from mach.channels import Header, Kind, connect, links
from mach.channels.base import frame_bytes
from mach.trainer import Assembly


def wire(peer: Peer, report: Report, settings: Settings, exchanges: int) -> None:
    """Report two floors over mach's own channels, with nothing computed.

    One message there and one back, each waited for: what a strict dependency costs. And both
    directions in a stream, as `delayed` has them: what a microbatch costs where nobody waits.
    """
    config = settings.config(next(v for v in VARIANTS if v.name == OURS))
    payloads = Assembly(config, synthetic().task).payloads()
    k = peer.rank
    channels = connect(
        links(payloads, config.credits, config.feedback),
        k,
        dist.PrefixStore("wire", peer.store),
        peer.device,
        "gloo",
        config.transport,
        identity={},
        incarnation=0,
    )
    payload = torch.randn(payloads[0].shape)
    sender = channels.to_parent if k == 0 else channels.to_child
    receiver = channels.from_parent if k == 0 else channels.from_child
    assert sender is not None
    assert receiver is not None

    def exchange(b: int, *, send_first: bool) -> None:
        header = Header(Kind.TRAIN, b)
        for sending in (send_first, not send_first):
            if sending:
                sender.send(header, payload)
            else:
                receiver.receive(header)

    times: dict[str, float] = {}
    b = 0
    for name, together in (("warm up", True), ("there and back", False), ("stream", True)):
        peer.barrier()
        started, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(exchanges):
            exchange(b, send_first=together or k == 0)
            b += 1
        times[f"{name}_ms"] = (time.perf_counter() - started) * 1e3 / exchanges
        times[f"{name}_cpu_ms"] = (time.process_time() - cpu_s) * 1e3 / exchanges
    channels.close_down()
    channels.close_up()
    report(
        {
            "bytes_per_microbatch": 2 * frame_bytes(payloads[0]),
            "there_and_back_ms": times["there and back_ms"],
            "stream_ms": times["stream_ms"],
            "stream_cpu_ms": times["stream_cpu_ms"],
        }
    )
