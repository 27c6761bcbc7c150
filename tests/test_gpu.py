"""Whole runs on the GPUs of this machine: what is true on CPU holds there, too.

Components share a GPU where there are fewer GPUs than components. That works over gloo; over NCCL
from 2.30 on with NCCL_MULTI_RANK_GPU_ENABLE=1.
"""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import mach
from gpus import GPU_TRANSPORTS, GPUS
from mach.randomness import Streams, go_on_from, seed_of, streams
from runs import LONG, assert_same_tensors, checkpoint_steps, lines, result, scores
from spawn import MACH, TRAIN, Command, Done, assert_none_left, kill, rank_of, run
from texts import write_text

pytestmark = [
    pytest.mark.skipif(GPUS == 0, reason="there is no GPU"),
    pytest.mark.timeout(300),
]
HERE = "launch.device=cuda"
RUN = [word for word in LONG if not word.startswith("launch.")] + [HERE]
GANG = [*RUN, "launch=gang", "components=3", "out=run"]
FREE = [*GANG[:-2], "components=3", "schedule=free", "launch=supervised", "out=run", "steps=200"]
each_transport = pytest.mark.parametrize("transport", GPU_TRANSPORTS)


def train(folder: Path, *words: str) -> Done:
    done = run([*TRAIN, *words], folder)
    assert done.code == 0, done
    assert_none_left(folder)
    return done


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """Folder of a run of three components over a transport; made once."""
    made: dict[str, Path] = {}

    def folder(transport: str) -> Path:
        if transport not in made:
            made[transport] = tmp_path_factory.mktemp(transport)
            train(made[transport], *GANG, f"transport={transport}")
        return made[transport] / "run"

    return folder


def test_one_process_on_the_gpu_gives_the_weights_of_processes_that_share_it(over, tmp_path):
    alone = [word for word in GANG if word != "launch=gang"]
    train(tmp_path, *alone, "launch=inprocess")
    mine, other = tmp_path / "run/checkpoints/step-100", over("gloo") / "checkpoints/step-100"
    assert scores(tmp_path / "run")[:2] == scores(over("gloo"))[:2]
    assert_same_tensors(mine, other)


@pytest.mark.skipif("nccl" not in GPU_TRANSPORTS, reason="NCCL wants a GPU for each component")
def test_nccl_and_gloo_give_the_same_weights(over):
    last = "checkpoints/step-100"
    assert_same_tensors(over("nccl") / last, over("gloo") / last)


def test_a_run_learns_on_a_gpu_what_it_learns_on_cpu(over, tmp_path):
    """Not the same bits, as other kernels add in another order: within 3 of 360 test samples."""
    words = [word for word in GANG if word != HERE]
    train(tmp_path, *words, "launch.device=cpu", "launch.threads=1")
    here, there = (result(folder)["chain"][-1] for folder in (over("gloo"), tmp_path / "run"))
    assert here["accuracy"] == pytest.approx(there["accuracy"], abs=3 / 360)


@each_transport
def test_a_component_that_is_killed_is_named_and_resume_gives_the_same_weights(
    over, tmp_path, transport
):
    words = [*GANG, f"transport={transport}"]
    with Command([*TRAIN, *words, "faults.pace_ms=20"], tmp_path) as started:
        started.until(lambda: bool(checkpoint_steps(tmp_path / "run")))
        kill(rank_of(tmp_path, 1))
        done = started.wait()
    assert done.code == 1, done
    assert re.match("mach: component 1 of 3: was ended by SIGKILL", done.stderr), done
    assert_none_left(tmp_path)
    train(tmp_path, *words, "resume=auto")
    last = "checkpoints/step-100"
    assert result(tmp_path / "run")["first_step"] >= 20
    assert_same_tensors(tmp_path / "run" / last, over(transport) / last)


@each_transport
def test_a_component_that_is_killed_comes_back_while_the_others_go_on(tmp_path, transport):
    words = [*FREE, f"transport={transport}", "faults.pace_ms=10", "report.every=1"]
    with Command([*TRAIN, *words], tmp_path) as started:
        started.until(lambda: (tmp_path / "run/checkpoints").exists())
        others = [rank_of(tmp_path, k) for k in (0, 2)]
        kill(rank_of(tmp_path, 1))
        events = tmp_path / "run/events.jsonl"
        started.until(lambda: events.exists() and '"back"' in events.read_text())
        assert all(other.is_running() for other in others)
        done = started.wait()
    assert done.code == 0, done
    assert_none_left(tmp_path)
    assert result(tmp_path / "run")["restarts"] == 1
    last = lines(tmp_path / "run", 1)[-100:]
    assert max(line.get("links_up", 0) for line in last) == 2, "the neighbours stayed away"


def test_a_compiled_chain_in_bf16_learns(tmp_path):
    train(tmp_path, *GANG, "model.compile=true", "optim.precision=bf16")
    assert result(tmp_path / "run")["chain"][-1]["accuracy"] > 0.8


def test_jobs_side_by_side_take_turns_at_the_gpu(tmp_path):
    """They overlap where there is a GPU for each."""
    words = [*RUN, "components=1", "model.depth=2", "student=none", "launch.parallel=2"]
    train(tmp_path, "-m", *words, "launch=gang", "seed=0,1,2", "out=sweep")
    times = []
    for job in ("0", "1", "2"):
        mine = [line["time"] for line in lines(tmp_path / "sweep" / job, 0) if "time" in line]
        times.append((mine[0], mine[-1]))
    times.sort()
    apart = all(before[1] < after[0] for before, after in pairwise(times))
    assert apart == (GPUS == 1), times


def test_text_is_trained_and_generated_on_a_gpu(tmp_path):
    text = ["data=text", f"data.path={write_text(tmp_path)}", "data.context=16"]
    small = ["model=gpt", "microbatch_size=4", "data.test_samples=8", "accumulate=2"]
    train(tmp_path, *RUN, *small, *text, "out=run")
    prompt = ["prompt=the", "tokens=8", "temperature=0"]
    said = [
        run([*MACH, "generate", f"run={tmp_path / 'run'}", *prompt, f"device={device}"], tmp_path)
        for device in ("cuda", "cpu")
    ]
    assert [done.code for done in said] == [0, 0], said
    assert said[0].stdout.startswith("the")


def test_a_run_of_a_gpu_is_read_used_and_sharpened_on_either_device(over, tmp_path):
    folder = shutil.copytree(over("gloo"), tmp_path / "run")
    model, x = mach.load(folder), torch.randn(4, 64)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert torch.allclose(model(x), model.cuda()(x.cuda()).cpu(), atol=1e-4)
    consolidate = [*MACH, "consolidate", f"run={folder}", "window=2..2", "steps=20"]
    for device in ("cuda", "cpu"):
        done = run([*consolidate, f"device={device}", "overwrite=true"], tmp_path)
        assert done.code == 0, done


def test_random_numbers_that_a_gpu_draws_go_on_where_they_were():
    """As after a resume; and components that share a process do not draw from one stream."""
    here = torch.device("cuda", 0)
    streams_of_both = Streams(seed=0, components=2, device=here)
    drawn = []
    for k in (0, 1, 0, 1):
        with streams_of_both.of(k):
            drawn.append(torch.rand(4, device=here))
    torch.manual_seed(seed_of(0, 2, 1))
    alone = [torch.rand(4, device=here)]
    kept = streams(here)
    alone.append(torch.rand(4, device=here))
    go_on_from(kept, here)
    assert torch.equal(torch.rand(4, device=here), alone[1])
    assert torch.equal(torch.stack(drawn[1::2]), torch.stack(alone))
    assert not torch.equal(drawn[0], drawn[1])
