"""How does one of the two processes become a component, as a rank of `mach train` does?"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from pair import Peer
from variants import synthetic

from mach.channels import Channels, Link, connect
from mach.component import Component
from mach.config import Config
from mach.data import Batches
from mach.optim import Optimizer
from mach.schedule import Action
from mach.trainer import Assembly, Trainer, Worker
from mach.trainer.oracle import Quiet


@dataclass(frozen=True)
class Member:
    """mach's own parts, put together without files, evaluations and reports."""

    trainer: Trainer
    component: Component
    optimizers: dict[str, Optimizer]
    channels: Channels
    chain: list[Link]
    batches: Batches
    assembly: Assembly


def join(peer: Peer, key: str, config: Config, program: list[Action]) -> Member:
    """Component `peer.rank`, connected; `key` is new for every run of the two."""
    k = peer.rank
    dataset = synthetic()
    assembly = Assembly(config, dataset.task)
    component, optimizers = assembly.component(k, peer.device)
    chain = assembly.links(peer.device)
    channels = connect(
        chain,
        k,
        dist.PrefixStore(key, peer.store),
        peer.device,
        "gloo",
        config.transport,
        identity={"run": key},
        incarnation=0,
    )
    batches = Batches(dataset, config.seed, config.microbatch_size, peer.device)
    worker = Worker(k, component, channels, batches, peer.device)
    trainer = Trainer(config, worker, optimizers, dataset.task, iter(program), Quiet())
    return Member(trainer, component, optimizers, channels, chain, batches, assembly)
