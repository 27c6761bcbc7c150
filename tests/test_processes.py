"""K processes, compared with the oracle: the same weights, bit by bit. On CPU, and on GPUs."""

import time
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clouds import clouds, make
from gpus import GPU_TRANSPORTS, GPUS
from mach.channels import connect
from mach.data import Batches
from mach.topology import gpu_of
from mach.trainer import Assembly, Oracle, Trainer, Worker, program
from mach.trainer.oracle import Quiet

PLACES = [("cpu", "gloo"), *(("cuda", transport) for transport in GPU_TRANSPORTS)]
"""Where, and over what."""
RANKS = 4
DEADLINE_S = 60

GRID = list(product([1, 2, 3, 4], [0, 1, 2], [1, 4], ["recompute", "stash"]))
CASES = [
    make(
        components,
        delay=delay,
        accumulate=accumulate,
        replay=replay,
        steps=4,
        head={"weight": 0.1},
        optim={"clip": 1.0},
    )
    for components, delay, accumulate, replay in GRID
] + [
    make(4, schedule="sync", accumulate=4, steps=3),
    make(3, delay=2, student={"enabled": True}, steps=5, eval={"every": 2}),
    make(3, feedback=0, head={"weight": 1.0}, delay=1),
    make(2, delay=1, optim={"precision": "bf16"}),
    make(4, delay=1, transport={"credits": 7}),
    make(
        3, delay=2, predictor={"enabled": True, "width": 8}, student={"enabled": True, "mix": 0.5}
    ),
    make(3, delay=1, head={"weight": 0.1, "soft": 0.5}, student={"enabled": True, "soft": 0.5}),
    make(3, delay=1, head={"weight": 1.0}, one_hop=True, model={"raw_input": True}),
]


def on_gpus() -> list[int]:
    """Cases for GPUs: depth, delay and replay, and all the special ones."""
    chosen = [n for n, (k, d, m, _) in enumerate(GRID) if k == RANKS and d != 1 and m == 1]
    return [*chosen, *range(len(GRID), len(CASES))]


def cases(place: str) -> list[int]:
    return list(range(len(CASES))) if place == "cpu" else on_gpus()


def device_of(index: int, place: str) -> torch.device:
    return torch.device("cuda", gpu_of(index, GPUS)) if place == "cuda" else torch.device("cpu")


def rank(index: int, port: int, folder: Path, place: str, transport: str) -> None:
    """Train component `index` of every case and save its weights and scores."""
    torch.set_num_threads(1)
    device = device_of(index, place)
    if place == "cuda":
        torch.cuda.set_device(device)
    store = dist.TCPStore("localhost", port, timeout=timedelta(seconds=DEADLINE_S))
    dataset = clouds()
    for number in cases(place):
        config = CASES[number]
        if index >= config.components:
            continue
        assembly = Assembly(config, dataset.task)
        component, optimizers = assembly.component(index, device)
        channels = connect(
            assembly.links(device),
            index,
            dist.PrefixStore(f"case/{number}", store),
            device,
            transport,
            config.transport,
            identity={"case": str(number)},
            incarnation=0,
        )
        batches = Batches(dataset, config.seed, config.microbatch_size, device)
        worker = Worker(index, component, channels, batches, device)
        actions = program(config, index, batches, 0)
        outcome = Trainer(config, worker, optimizers, dataset.task, actions, Quiet()).run()
        channels.close_up()
        parts = {part: module.state_dict() for part, module in component.modules().items()}
        torch.save((parts, outcome.scores), folder / f"{number}-{index}.pt")


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def trained(request, tmp_path_factory):
    """All cases, trained by one group of processes; and where."""
    folder = tmp_path_factory.mktemp("trained")
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = mp.spawn(rank, (store.port, folder, *request.param), RANKS, join=False)
    ends = time.monotonic() + 3 * DEADLINE_S
    try:
        while not context.join(timeout=1):  # raises what a rank raised
            assert time.monotonic() < ends, f"the ranks did not end within {3 * DEADLINE_S} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return folder, request.param[0]


def name(number: int) -> str:
    config = CASES[number]
    if number < len(GRID):
        return f"K{config.components}-d{config.delay}-M{config.accumulate}-{config.replay}"
    others = ["sync", "students", "cut", "bf16", "credits", "predictors", "soft", "2019"]
    return others[number - len(GRID)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(CASES)), ids=name)
def test_processes_give_the_weights_of_the_oracle_bit_by_bit(trained, number):
    folder, place = trained
    if number not in cases(place):
        pytest.skip("a case for CPU")
    config = CASES[number]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        oracle = Oracle(config, clouds(), device=device_of(0, place))
        result = oracle.run()
    finally:
        torch.set_num_threads(threads)
    for k in range(config.components):
        parts, scores = torch.load(folder / f"{number}-{k}.pt", map_location=device_of(0, place))
        modules = oracle.trainers[k].worker.component.modules()
        assert modules.keys() == parts.keys()
        for part, module in modules.items():
            for key, value in module.state_dict().items():
                assert torch.equal(parts[part][key], value), (k, part, key)
        assert scores[0]["loss"] == result["chain"][k]["loss"]
