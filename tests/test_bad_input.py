"""A mistake ends every process, with one message that says what to do about it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clouds import clouds, make
from mach.errors import DivergedError, OutOfMemoryError
from mach.outofmemory import told
from mach.trainer import Oracle
from runs import LONG, SMALL, checkpoint_steps, digests, stored_tensors
from spawn import TORCHRUN, TRAIN, Done, assert_none_left, run

pytestmark = pytest.mark.timeout(400)

AT_ONCE_S = 45.0
"""Ten seconds are asked for, and an idle laptop takes five. The rest is for a machine that does
other work: importing torch alone may then take twenty."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def refused(folder: Path, *overrides: str, says: str, code: int = 2) -> Done:
    """Run `mach train` and expect one line on stderr that matches `says`, within seconds."""
    done = run([*TRAIN, *overrides], folder, **NO_GPU)
    print(f"{done.duration_s:.1f} s: {done.stderr}", end="")
    assert done.code == code, done
    assert done.duration_s < AT_ONCE_S, done
    assert "Traceback" not in done.stderr + done.stdout, done
    assert done.stderr.startswith("mach: "), done
    assert done.stderr.count("\n") == 1, done
    assert re.search(says, done.stderr), done
    assert_none_left(folder)
    return done


# --- config --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("componets=2", "componets: expected a key .* got one .* Did you mean components"),
        ("+componets=2", "componets: expected a key .* got one .* Did you mean components"),
        ("component=2", "component: expected a key .* Did you mean components or faults.component"),
        ("+delay=2", "Could not append to config. An item is already at 'delay'. Take the . away"),
        ("~optim.lr", "optim.lr: expected a choice to take out; got a key"),
        ("width=8", "width: expected a key .* Did you mean model.width, .* or student.width"),
        ("model.path=x", "model.path: expected a key"),
        ("delay=-1", "delay: expected 0 or more; got -1"),
        ("delay=soon", "delay: expected a whole number; got 'soon'"),
        ("student.enabled=often", "student.enabled: expected true or false; got 'often'"),
        ("head=3", "head: expected a group of keys; got 3"),
        ("delay", "delay: expected key=value"),
        (
            "components=2,4",
            r"components: expected one value; got several: 2,4\. .* mach train -m; a",
        ),
        ("delay=range(1,3)", r"delay: expected one value; got several: range\(1,3\)\. For a sweep"),
        ("components=0", "components: expected 1 or more; got 0"),
        ("model.depth=2 components=3", "components: expected at most model.depth=2.*; got 3"),
        ("model=nothing", "model: expected one of .*mlp.*; got 'nothing'"),
        ("data=npz", "data.path: expected a value; got none"),
        ("method=ddg replay=recompute", "method=ddg: expected replay=stash; got recompute"),
        (
            "optim.correction=compensation replay=stash",
            "optim.correction=compensation: expected optim=sgd with replay=stash; got muon",
        ),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(tmp_path, overrides, says):
    refused(tmp_path, "out=run", *overrides.split(), says=says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("launch.device=cuda", "launch.device=cuda: expected a GPU, found none"),
        ("transport=nccl", "transport=nccl: expected a GPU for each of the 2 components.*found 0"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(tmp_path, overrides, says):
    refused(tmp_path, "components=2", "out=run", *overrides.split(), says=says)
    assert not (tmp_path / "run").exists()


def test_going_on_without_saying_where_is_refused(tmp_path):
    refused(tmp_path, *SMALL, "resume=auto", says="resume=auto: .* got none. Say out=FOLDER")
    assert not (tmp_path / "runs").exists()


def test_an_empty_out_is_not_the_working_directory(tmp_path):
    """As of a variable of the shell that is not set; a sweep's folder is made before its jobs."""
    says = "out: expected a folder; got an empty name"
    refused(tmp_path, *SMALL, "out=", says=says)
    refused(tmp_path, "-m", *SMALL, "seed=0,1", "out=", says=says)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_sweep_whose_folder_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    says = "out=file/sweep: expected a folder that can be written; Not a directory"
    refused(tmp_path, "-m", *SMALL, "seed=0,1", "out=file/sweep", says=says)


def test_under_torchrun_rank_0_alone_says_that_the_number_of_processes_is_wrong(tmp_path):
    """torchrun adds a report of its own and always ends with 1."""
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "mach.train", *SMALL, "components=3"]
    done = run([*command, "out=run"], tmp_path)
    print(f"{done.duration_s:.1f} s")
    ours = [line for line in done.stderr.splitlines() if line.startswith("mach: ")]
    assert ours == [
        "mach: component 0: components: expected 2, the number of torchrun's processes; got 3. "
        "Use --nproc-per-node=3 or components=2."
    ], done
    assert done.code == 1
    assert done.duration_s < AT_ONCE_S
    assert not (tmp_path / "run").exists()
    assert_none_left(tmp_path)


# --- data ----------------------------------------------------------------------------------


def good_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.normal(size=(64, 6)).astype("f4"),
        "y_train": np.arange(64) % 4,
        "x_test": random.normal(size=(16, 6)).astype("f4"),
        "y_test": np.arange(16) % 4,
    }


def missing(path: Path) -> None:
    assert not path.exists()


def truncated(path: Path) -> None:
    np.savez(path, **good_arrays())
    path.write_bytes(path.read_bytes()[:-300])


def wrong_shape(path: Path) -> None:
    np.savez(path, **{**good_arrays(), "x_test": np.zeros((16, 7), "f4")})


def label_too_large(path: Path) -> None:
    arrays = good_arrays()
    arrays["y_test"][3] = 4
    np.savez(path, **arrays)


def negative_label(path: Path) -> None:
    arrays = good_arrays()
    arrays["y_train"][5] = -1
    np.savez(path, **arrays)


def nan(path: Path) -> None:
    arrays = good_arrays()
    arrays["x_train"][7, 2] = np.nan
    np.savez(path, **arrays)


def infinity(path: Path) -> None:
    arrays = good_arrays()
    arrays["x_test"][1, 0] = np.inf
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "data.npz: .*no such file|data.npz: expected an .npz file"),
        (truncated, "data.npz: expected a complete .npz file"),
        (wrong_shape, r"data.npz: .*\b7\b"),
        (label_too_large, "y_test: expected labels 0 to 3; got 4 at index 3"),
        (negative_label, "y_train: expected labels 0 to 3; got -1 at index 5"),
        (nan, r"x_train: expected finite numbers.*; got nan at sample 7, position \[2\]"),
        (infinity, r"x_test: expected finite numbers.*; got inf at sample 1, position \[0\]"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, make, says):
    make(tmp_path / "data.npz")
    refused(tmp_path, *SMALL, "out=run", "data=npz", "data.path=data.npz", says=says)
    assert not (tmp_path / "run").exists()


# --- the run folder ------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path, out):
    """Below a regular file, and where even root may not write."""
    (tmp_path / "file").write_text("not a folder")
    says = f"out={out}: expected a folder that can be written; .* Choose another `out`"
    refused(tmp_path, *SMALL, f"out={out}", says=says)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_folder_that_holds_another_run_is_left_as_it_is(tmp_path, finished):
    run_dir, _ = finished
    before = digests(run_dir)
    says = "expected a folder without a run, got one that holds a run. .*resume=auto"
    refused(tmp_path, *LONG, f"out={run_dir}", says=says)
    assert digests(run_dir) == before


def test_another_config_is_not_resumed_in_the_folder_of_a_run(tmp_path, finished):
    run_dir, _ = finished
    before = digests(run_dir)
    says = "resume=auto: .* has another config: delay was 1, is 2.* Repeat its overrides"
    refused(tmp_path, *LONG, "delay=2", f"out={run_dir}", "resume=auto", says=says)
    assert digests(run_dir) == before


# --- checkpoints ---------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, finished) -> Path:
    """The finished run again, as it was before its result: free to be damaged."""
    shutil.copytree(finished[0], tmp_path / "copy")
    (tmp_path / "copy" / "result.json").unlink()
    return tmp_path / "copy"


def flip_a_byte(checkpoint: Path) -> str:
    file = checkpoint / "component-1" / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return "component-1/__0_0.distcp: damaged: expected SHA-256"


def lose_a_file(checkpoint: Path) -> str:
    (checkpoint / "component-0" / ".metadata").unlink()
    return "component-0/.metadata: expected by manifest.json, got no such file"


def lose_the_names(checkpoint: Path) -> str:
    file = checkpoint / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "files": None}))
    return "manifest.json: damaged: expected a manifest, got files: None"


def cut_the_manifest(checkpoint: Path) -> str:
    file = checkpoint / "manifest.json"
    file.write_bytes(file.read_bytes()[:40])
    return "manifest.json: damaged"


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_file, cut_the_manifest, lose_the_names])
def test_a_damaged_checkpoint_is_named_and_nothing_is_overwritten(tmp_path, copy, damage):
    last = copy / "checkpoints" / "step-100"
    says = damage(last)
    before = digests(copy)
    refused(tmp_path, *LONG, f"out={copy}", "resume=auto", says=f"step-100/{says}")
    refused(tmp_path, *LONG, "steps=120", f"resume={last}", "out=new", says=says)
    assert digests(copy) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.width=24", r"component-0: body.*: expected \[.*24.*\], got \[.*16"),
        ("components=3", "expected components=3, got a checkpoint of 2"),
        ("steps=60", "expected a step below steps=60, got step 100"),
        ("steps=100", "expected a step below steps=100, got step 100. Raise steps"),
        ("student.enabled=false", "component-1: student.*: expected no such tensor, got"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, finished, override, says):
    run_dir, _ = finished
    refused(tmp_path, *LONG, "steps=120", override, f"resume={run_dir}", "out=new", says=says)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    says = "resume=nowhere: expected a run folder or a checkpoint.*; got nothing there"
    refused(tmp_path, *SMALL, "resume=nowhere", "out=new", says=says)
    assert not (tmp_path / "new").exists()


# --- while it runs -------------------------------------------------------------------------


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    """A rate that climbs to 1000 without clipping: it holds for some steps, then it blows up."""
    explode = ["optim=sgd", "optim.lr=1e3", "optim.warmup=0.9", "optim.clip=0"]
    done = run([*TRAIN, *SMALL, "steps=200", "checkpoint.every=2", *explode, "out=run"], tmp_path)
    print(f"{done.duration_s:.1f} s: {done.stderr}", end="")
    assert done.code == 1, done
    assert done.duration_s < AT_ONCE_S, done
    assert "Traceback" not in done.stderr, done
    assert re.match(r"mach: component \d of 2: expected a finite loss, got", done.stderr), done
    assert "Lower optim.lr" in done.stderr, done
    assert "Go on from a checkpoint: resume=run/checkpoints/step-.. out=.." in done.stderr, done
    assert done.stderr.count("\n") == 1, done
    good = checkpoint_steps(tmp_path / "run")
    assert good, done
    tensors = stored_tensors(tmp_path / "run" / "checkpoints" / f"step-{good[-1]}")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (tmp_path / "run" / "result.json").exists()
    assert_none_left(tmp_path)


@pytest.mark.parametrize("way", ["gang", "inprocess"])
def test_a_network_that_does_not_fit_in_memory_is_told_what_would(tmp_path, way):
    """Its matrices are larger than what a process can have addresses for."""
    says = r"memory: expected room for 2\.38e\+05 GiB more; it has run out\. Set a smaller micro"
    large = ["model.width=4000000", f"launch={way}", "out=run"]
    refused(tmp_path, *SMALL, *large, says=says, code=1)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has .."),
            "memory of the GPU: expected room for 20 GiB more",
        ),
        (RuntimeError("CUDA error: out of memory"), "memory of the GPU: expected room for more"),
        (MemoryError("Unable to allocate 728. TiB for an array"), "room for 7.45e+05 GiB more"),
        (MemoryError(), "memory: expected room for more; it has run out. Sell"),
    ],
)
def test_memory_that_runs_out_is_said_in_one_way(error, says):
    with pytest.raises(OutOfMemoryError, match=re.escape(says)), told("Sell something."):
        raise error


def test_an_error_that_is_not_of_memory_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^shapes do not meet$"), told("Sell something."):
        raise RuntimeError("shapes do not meet")


def test_what_may_have_led_to_it_is_not_the_only_checkpoint_that_is_left(tmp_path):
    explode = ["optim=sgd", "optim.lr=1e6", "optim.clip=0", "optim.warmup=0"]
    saved = ["checkpoint.every=1", "checkpoint.keep=1", "launch=inprocess", "steps=30", "out=run"]
    done = run([*TRAIN, *SMALL, *explode, *saved], tmp_path)
    assert done.code == 1, done
    assert "the last of which may have what led to it" in done.stderr, done
    assert len(checkpoint_steps(tmp_path / "run")) == 2


def test_a_last_step_that_spoils_the_top_exit_ends_in_no_result():
    explode = {"name": "sgd", "lr": 1e38, "clip": 0.0, "warmup": 0.0}
    with pytest.raises(DivergedError, match=r"in the evaluation after step 1\."):
        Oracle(make(2, steps=1, optim=explode), clouds()).run()


def test_a_student_that_diverged_leaves_the_chain_and_a_result_that_is_json():
    """The student learns beside the chain; its loss was once written as NaN, which is no JSON."""
    sane = {"enabled": True, "width": 8}
    results = []
    for student in (sane, {**sane, "lr": 1e30}):
        config = make(2, steps=6, student=student, optim={"clip": 0.0})
        results.append(Oracle(config, clouds()).run())
    expected, found = (json.loads(json.dumps(r, allow_nan=False)) for r in results)
    assert found["windows"][0]["loss"] is None
    assert found["chain"] == expected["chain"]


def test_the_manifest_lists_every_file_with_its_hash(finished):
    checkpoint = finished[0] / "checkpoints" / "step-100"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    present = digests(checkpoint)
    del present["manifest.json"]
    assert manifest["files"] == present
