"""A run that was interrupted ends as one that was not, bit by bit."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from clouds import clouds, make
from datafiles import arrays, write_npz
from kept import save
from mach import checkpoint, runfolder
from mach.channels import connect_in_memory
from mach.component import Ages
from mach.config import Config
from mach.data import Batches, Dataset, open_dataset
from mach.errors import CheckpointError, DataError
from mach.launcher.app import launch
from mach.launcher.compose import compose
from mach.launcher.preflight import preflight, resume_point
from mach.rank import Rank
from mach.report.reporter import build as build_reporter
from mach.session.ordered import Hooks
from mach.session.seat import Seat, take_seat
from mach.trainer import Assembly, Faults, Oracle, Trainer, Worker, program
from runs import (
    LONG,
    SMALL,
    assert_same_tensors,
    checkpoint_steps,
    digests,
    lines,
    result,
    scores,
    stored_tensors,
    without_its_end,
)
from spawn import TRAIN, Command, assert_none_left, kill, rank_of, run

CPU = torch.device("cpu")


class DiedError(Exception):
    """What a test does to a run."""


def chain(
    config: Config, dataset: Dataset, run_dir: Path, dies_after: int | None = None
) -> list[Trainer]:
    """The components of a run in one process, with the hooks of real ranks; returned when done.

    Args:
        dies_after: raise `DiedError` as soon as the checkpoint of this step is complete.
    """
    torch.manual_seed(config.seed)
    runfolder.claim(run_dir, runfolder.check(run_dir, config))
    start = resume_point(config, run_dir, 0)
    first_step = start.step if start is not None else 0
    assembly = Assembly(config, dataset.task)
    batches = Batches(dataset, config.seed, config.microbatch_size, CPU)
    store = dist.HashStore()
    ends = connect_in_memory(assembly.links(CPU), 10.0)
    trainers, reporters = [], []
    for k, channels in enumerate(ends):
        component, optimizers = assembly.component(k, CPU)
        if start is not None:
            checkpoint.load(start, k, component, optimizers)
        rank = Rank(k, config.components, k, config.components, 0, "test", store, "here")
        seat = Seat(
            rank=rank,
            config=config,
            run_dir=run_dir,
            device=CPU,
            task=dataset.task,
            assembly=assembly,
            batches=batches,
            preprocessing=dataset.preprocessing,
            component=component,
            optimizers=optimizers,
            start=start,
        )
        reporters.append(build_reporter(config, run_dir, k, first_step))
        faults = Faults(config.faults, k, 0, component, lambda seconds: None)
        hooks = Hooks(seat, reporters[-1], faults)
        worker = Worker(k, component, channels, batches, CPU)
        actions = program(config, k, batches, first_step)
        trainers.append(Trainer(config, worker, optimizers, dataset.task, actions, hooks))
    try:
        while any(trainer.next is not None for trainer in trainers):
            for trainer in trainers:
                while trainer.next is not None and trainer.worker.ready(trainer.next):
                    trainer.advance()
                    if dies_after in checkpoint_steps(run_dir):
                        raise DiedError
    finally:
        for reporter in reporters:
            reporter.close()
    return trainers


def final_scores(trainers: list[Trainer]) -> list[dict]:
    return [trainer.outcome().scores for trainer in trainers]


def staleness(trainers: list[Trainer]) -> list[tuple[float, int]]:
    outcomes = [trainer.outcome() for trainer in trainers]
    return [(outcome.staleness_mean, outcome.staleness_max) for outcome in outcomes]


# --- in one process ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("schedule", "delay", "replay"),
    [
        ("sync", 0, "recompute"),
        ("delayed", 0, "recompute"),
        ("delayed", 1, "recompute"),
        ("delayed", 1, "stash"),
        ("delayed", 3, "stash"),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, schedule, delay, replay, optimizer):
    """Weights, optimizers and students; the second checkpoint is the one it goes on from."""
    config = make(
        3,
        schedule=schedule,
        delay=delay,
        replay=replay,
        steps=15,
        head={"weight": 0.1},
        student={"enabled": True, "width": 8},
        optim={"name": optimizer, "clip": 1.0},
        checkpoint={"every": 4},
        eval={"every": 3},
        report={"every": 2, "wandb": "off"},
    )
    whole = chain(config, clouds(), tmp_path / "whole")
    with pytest.raises(DiedError):
        chain(config, clouds(), tmp_path / "cut", dies_after=8)
    resumed = chain(replace(config, resume="auto"), clouds(), tmp_path / "cut")
    assert resumed[0].worker.component.version == 15
    assert_same_tensors(
        tmp_path / "whole/checkpoints/step-15", tmp_path / "cut/checkpoints/step-15"
    )
    assert final_scores(resumed) == final_scores(whole)
    assert staleness(resumed) == staleness(whole)
    for k in range(3):
        logged, other = (lines(tmp_path / name, k) for name in ("whole", "cut"))
        keys = ("step", "loss", "student_loss", "gradient_norm", "lr", "eval_accuracy")
        mine, theirs = ([[line.get(key) for key in keys] for line in x] for x in (logged, other))
        assert mine == theirs


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("predictor", {"predictor": {"enabled": True, "width": 8}, "student": {"mix": 1.0}}),
        ("before_body", {"optim": {"correction": "prediction"}, "student": {"soft": 0.5}}),
    ],
)
def test_what_a_method_remembers_resumes_as_everything_else(tmp_path, part, values):
    student = {"enabled": True, "width": 8, **values["student"]}
    common = {"delay": 2, "checkpoint": {"every": 2}, "report": {"wandb": "off"}}
    config = make(3, **{**common, **values, "student": student})
    chain(config, clouds(), tmp_path / "whole")
    with pytest.raises(DiedError):
        chain(config, clouds(), tmp_path / "cut", dies_after=4)
    chain(replace(config, resume="auto"), clouds(), tmp_path / "cut")
    checkpoints = [tmp_path / name / "checkpoints" / "step-6" for name in ("whole", "cut")]
    assert_same_tensors(*checkpoints)
    assert any(f"{part}." in name for name in stored_tensors(checkpoints[0]))


def test_what_learns_beside_the_chain_goes_on_from_its_own_step(tmp_path):
    """Where a component goes on alone it distils nothing, and then its student is behind it."""
    own = {"predictor": {"enabled": True, "width": 8}, "student": {"enabled": True, "width": 8}}
    config, dataset = make(3, report={"wandb": "off"}, **own), clouds()
    oracle = Oracle(config, dataset)
    component = oracle.trainers[1].worker.component
    component.resume(5)
    assert component.student.steps == component.predictor.steps == 5
    component.student.resume(3)
    component.predictor.resume(4)
    save(oracle, config, tmp_path / "run")
    found, _ = Assembly(config, dataset.task).component(1, CPU)
    start = checkpoint.latest(tmp_path / "run")
    checkpoint.load(start, 1, found, {})
    assert (found.student.steps, found.predictor.steps) == (3, 4)
    assert found.version == start.step


def test_a_checkpoint_of_before_says_neither_ages_nor_steps_and_loads(tmp_path, monkeypatch):
    def of_before(*arguments):
        tensors = checkpoint.state.tensors_of(*arguments)
        return {n: t for n, t in tensors.items() if not n.startswith(("ages", "steps/"))}

    config, dataset = make(2, report={"wandb": "off"}, student={"enabled": True}), clouds()
    monkeypatch.setattr(checkpoint, "tensors_of", of_before)
    save(Oracle(config, dataset), config, tmp_path / "run")
    found, _ = Assembly(config, dataset.task).component(1, CPU)
    checkpoint.load(checkpoint.latest(tmp_path / "run"), 1, found, {})
    assert found.version == found.student.steps == config.steps
    assert found.ages == Ages()


def test_the_stash_is_no_other_algorithm_after_a_resume(tmp_path):
    """Without a delay nothing is in flight, so stash and recompute must agree, resumed or not."""
    weights = []
    for replay in ("recompute", "stash"):
        config = make(2, replay=replay, checkpoint={"every": 3}, report={"wandb": "off"})
        with pytest.raises(DiedError):
            chain(config, clouds(), tmp_path / replay, dies_after=3)
        chain(replace(config, resume="auto"), clouds(), tmp_path / replay)
        weights.append(tmp_path / replay / "checkpoints" / "step-6")
    mine, other = (
        {k: v for k, v in stored_tensors(w).items() if "random" not in k} for w in weights
    )
    assert all(torch.equal(mine[name], other[name]) for name in mine | other)


def test_keep_counts_complete_checkpoints(tmp_path):
    for keep, kept in ((1, [10]), (3, [6, 8, 10])):
        config = make(2, steps=10, checkpoint={"every": 2, "keep": keep}, report={"wandb": "off"})
        chain(config, clouds(), tmp_path / str(keep))
        assert checkpoint_steps(tmp_path / str(keep)) == kept


def test_while_it_trains_the_checkpoint_before_the_last_stays(tmp_path):
    config = make(2, steps=10, checkpoint={"every": 2, "keep": 1}, report={"wandb": "off"})
    with pytest.raises(DiedError):
        chain(config, clouds(), tmp_path, dies_after=8)
    assert checkpoint_steps(tmp_path) == [6, 8]


def test_a_checkpoint_without_a_manifest_is_none(tmp_path):
    config = make(2, checkpoint={"every": 2}, report={"wandb": "off"})
    with pytest.raises(DiedError):
        chain(config, clouds(), tmp_path, dies_after=2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-2", folder / "step-4")
    (folder / "step-4" / "manifest.json").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    chain(replace(config, resume="auto"), clouds(), tmp_path)  # writes over what is left
    chain(config, clouds(), tmp_path / "whole")
    assert_same_tensors(folder / "step-6", tmp_path / "whole/checkpoints/step-6")
    assert checkpoint_steps(tmp_path) == [4, 6]


def test_what_a_start_that_ended_had_saved_completes_no_checkpoint_of_the_next(tmp_path):
    """The store outlives a start. 1 and 2 had saved step 10 when 0 died: in the next start the
    files of 0 are not those that 1 and 2 are about to write anew."""
    config = make(3, steps=20, checkpoint={"every": 5, "keep": 1})
    store = dist.HashStore()

    def save(step, k, start):
        weights = {"w": torch.full((4,), float(start))}
        return checkpoint.save_together(tmp_path, step, k, weights, config, store, None, start)

    for k in range(3):
        save(5, k, 0)
    for k in (1, 2):
        save(10, k, 0)
    save(10, 0, 1)
    assert checkpoint_steps(tmp_path) == [5]
    save(10, 1, 1)
    assert checkpoint_steps(tmp_path) == [5]
    save(10, 2, 1)
    assert checkpoint_steps(tmp_path) == [5, 10]
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.verify(found)


def test_a_damaged_manifest_of_an_earlier_checkpoint_stops_no_save(tmp_path):
    config = make(1, steps=20, checkpoint={"every": 5, "keep": 2})
    store = dist.HashStore()
    save = partial(checkpoint.save_together, k=0, tensors={"w": torch.ones(4)}, config=config)
    assert save(tmp_path, 5, store=store)
    (tmp_path / "checkpoints/step-5/manifest.json").write_text("half")
    with pytest.warns(UserWarning, match=r"step-5.*damaged"):
        assert save(tmp_path, 10, store=store)
    assert checkpoint_steps(tmp_path) == [10], "the damaged one is none, and older"
    shutil.copytree(tmp_path / "checkpoints/step-10", tmp_path / "checkpoints/step-5")
    (tmp_path / "checkpoints/step-5/manifest.json").write_text("half")
    with pytest.warns(UserWarning, match=r"step-5.*damaged"):
        found = checkpoint.latest_of(tmp_path, 0)
    assert found is not None
    assert found.step == 10


def test_a_component_that_goes_on_from_a_finished_run_knows_the_life_it_had(tmp_path):
    """Its own manifest says it, and that of all components does not."""
    config = make(1, steps=5, schedule="free")
    files = checkpoint.save(tmp_path, 5, 0, {"w": torch.ones(4)})
    checkpoint.seal(tmp_path, 5, 0, files, config, life=3)
    assert checkpoint_steps(tmp_path) == [5]
    found = checkpoint.latest_of(tmp_path, 0)
    assert found is not None
    assert found.manifest["life"] == 3


def test_a_run_that_goes_on_evaluates_at_the_step_it_has(tmp_path):
    """One that has its last checkpoint and was ended before it had a result."""
    config = make(1, checkpoint={"every": 3}, report={"wandb": "off"})
    for again in (config, replace(config, resume="auto")):
        chain(again, clouds(), tmp_path)
    assert [line["step"] for line in lines(tmp_path, 0) if "eval_loss" in line] == [6, 6]


def test_a_run_killed_before_its_first_checkpoint_goes_back_to_where_it_began(tmp_path):
    """It had begun from another run. To start from nothing instead would be another training."""
    config = make(2, checkpoint={"every": 3}, report={"wandb": "off"})
    chain(config, clouds(), tmp_path / "old")
    longer = replace(config, steps=9, resume=str(tmp_path / "old"))
    runfolder.claim(tmp_path / "new", longer)  # and then it was killed
    again = runfolder.check(tmp_path / "new", replace(longer, resume="auto"))
    found = resume_point(again, tmp_path / "new", 0)
    assert found is not None
    assert found.path == tmp_path / "old" / "checkpoints" / "step-6"


@pytest.mark.parametrize(
    ("part", "key", "was", "now"),
    [
        ("optim", "name", "muon", "adamw"),
        ("optim", "correction", "none", "nesterov"),
        ("optim", "correction", "nesterov", "none"),
        ("student", "optimizer", "muon", "adamw"),
    ],
)
def test_another_optimizer_is_refused_before_the_run_folder_is_taken(tmp_path, part, key, was, now):
    """Else the command would not work again once it is mended: its folder would hold a run."""
    parts = {"student": {"enabled": True, "width": 8}, "optim": {}}
    parts[part][key] = was
    config = make(2, steps=2, report={"wandb": "off"}, **parts)
    chain(config, open_dataset(config.data), tmp_path / "old")
    longer = replace(config, steps=4, resume=str(tmp_path / "old"))
    other = replace(longer, **{part: replace(getattr(longer, part), **{key: now})})
    message = f"^{part}.{key}={now}: expected .* its config.yaml has {part}.{key}"
    with pytest.raises(CheckpointError, match=message):
        preflight(other, tmp_path / "new", 2)
    assert not (tmp_path / "new").exists()
    preflight(longer, tmp_path / "new", 2)


# --- with other data -----------------------------------------------------------------------


@pytest.fixture
def on_other_data(tmp_path) -> Callable[..., Config]:
    """How a run is asked for whose data file has changed since it was stopped, at tmp_path / cut.

    Such a run took its last steps on the other data, without a word.
    """
    data = write_npz(tmp_path, arrays())
    words = [*SMALL, "components=1", "launch=inprocess", "checkpoint.every=2", "student=none"]
    words += ["data=npz", f"data.path={data.path}", f"data.cache={data.cache}"]
    launch(compose([*words, "steps=4", f"out={tmp_path / 'run'}"]))
    without_its_end(tmp_path / "run", tmp_path / "cut", 4)
    larger = {key: 50.0 * values if key[0] == "x" else values for key, values in arrays().items()}
    write_npz(tmp_path, larger)
    return lambda *more: compose([*words, *more])


def test_a_run_does_not_go_on_with_data_that_has_changed(tmp_path, on_other_data):
    before = digests(tmp_path / "cut")
    config = on_other_data("steps=4", f"out={tmp_path / 'cut'}", "resume=auto")
    says = r"step-2: .* the data has changed since\. .* or begin a new run from it: resume="
    with pytest.raises(DataError, match=says):
        launch(config)
    assert digests(tmp_path / "cut") == before
    launch(on_other_data("steps=4", f"out={tmp_path / 'new'}", f"resume={tmp_path / 'cut'}"))
    assert result(tmp_path / "new")["first_step"] == 2


def test_a_component_that_comes_back_does_not_go_on_with_data_that_has_changed(
    tmp_path, on_other_data, monkeypatch
):
    """Whoever starts it again looked at the data when the run began."""
    monkeypatch.setattr("mach.session.seat.occupy", lambda *_: CPU)
    rank = Rank(0, 1, 0, 1, 1, "test", dist.HashStore(), "here")
    with pytest.raises(DataError, match=r"step-2: .* the data has changed since"):
        take_seat(rank, on_other_data("steps=4"), tmp_path / "cut")


# --- as processes --------------------------------------------------------------------------


def test_a_component_that_is_killed_is_named_and_resume_finishes_the_run(tmp_path, finished):
    """`resume=auto` once trained again from step 0: the ranks read the first launch's config."""
    with Command([*TRAIN, *LONG, "out=run"], tmp_path) as started:
        started.until(lambda: bool(checkpoint_steps(tmp_path / "run")))
        kill(rank_of(tmp_path, 1))
        done = started.wait()
    assert done.code == 1, done
    assert re.match("mach: component 1 of 2: was ended by SIGKILL", done.stderr), done
    assert "out=run resume=auto" in done.stderr, done
    assert done.stderr.count("\n") == 1, done
    assert_none_left(tmp_path)

    last = checkpoint_steps(tmp_path / "run")[-1]
    resume = [*TRAIN, *LONG, "out=run", "resume=auto"]
    done = run([*resume, "report.every=5"], tmp_path)  # how it is watched may change
    assert done.code == 0, done
    assert result(tmp_path / "run")["first_step"] == last
    assert_same_tensors(tmp_path / "run/checkpoints/step-100", finished[0] / "checkpoints/step-100")
    assert scores(tmp_path / "run")[:2] == scores(finished[0])[:2]
    for k in (0, 1):
        steps = [line["step"] for line in lines(tmp_path / "run", k) if "loss" in line]
        assert steps == [1, *range(10, last, 10), *range(last, 101, 5)]
    assert_none_left(tmp_path)

    before = digests(tmp_path / "run")
    done = run(resume, tmp_path)
    assert done.code == 0, done
    assert "top exit" in done.stdout  # nothing left to do: it shows the result
    del before["config.yaml"]
    assert before.items() <= digests(tmp_path / "run").items()


def test_sync_processes_ended_by_a_signal_resume_to_what_one_process_computes(tmp_path):
    sync = [*LONG, "schedule=sync", "out=run"]
    with Command([*TRAIN, *sync], tmp_path) as started:
        started.until(lambda: bool(checkpoint_steps(tmp_path / "run")))
        started.process.send_signal(signal.SIGTERM)
        assert started.wait().code == 128 + signal.SIGTERM
    assert checkpoint_steps(tmp_path / "run")[-1] < 100
    done = run([*TRAIN, *sync, "resume=auto"], tmp_path)
    assert done.code == 0, done
    assert result(tmp_path / "run")["first_step"] >= 20
    assert_none_left(tmp_path)

    config = compose([*sync, f"out={tmp_path / 'whole'}"])
    chain(config, open_dataset(config.data), tmp_path / "whole")
    mine, other = (
        stored_tensors(tmp_path / name / "checkpoints" / "step-100") for name in ("run", "whole")
    )
    assert mine.keys() == other.keys()
    for name in mine:
        if not name.endswith("random_state"):  # one process has one for all
            assert torch.equal(mine[name], other[name]), name
