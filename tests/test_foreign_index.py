"""A run folder from somebody else, whose digests are his own, runs nothing when it is opened."""

import json
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

import mach
from kept import keep, of_images
from mach.errors import CheckpointError


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return keep(of_images(folder, 3, 4), folder / "run")


def call_something(index: Metadata, trap: Path) -> object:
    return (index, Trap(trap))


def call_something_within(index: Metadata, trap: Path) -> object:
    index.planner_data = Trap(trap)
    return index


def call_by_a_name_of_torch(index: Metadata, trap: Path) -> object:
    index.planner_data = torch.load
    return index


def say_that_a_tensor_is_a_pickle(index: Metadata, trap: Path) -> object:
    # torch unpickles what is stored so with weights_only=False.
    name = next(name for name in index.state_dict_metadata if name.startswith("body"))
    index.state_dict_metadata[name] = BytesStorageMetadata()
    return index


def be_something_else(index: Metadata, trap: Path) -> object:
    return ["no", "index"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (call_something, "pathlib.Path"),
        (call_something_within, "pathlib.Path"),
        (call_by_a_name_of_torch, "torch.serialization.load"),
        (say_that_a_tensor_is_a_pickle, "BytesStorageMetadata"),
        (be_something_else, "got list"),
    ],
)
def test_an_index_that_is_more_than_one_is_refused(
    run, tmp_path, change: Callable[[Metadata, Path], object], says
):
    shutil.copytree(run, tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    index = FileSystemReader(step / "component-0").read_metadata()
    replace(step, pickle.dumps(change(index, tmp_path / "trap")))
    with pytest.raises(CheckpointError, match="expected an index of tensors") as refused:
        mach.load(tmp_path / "run")
    assert says in str(refused.value)
    assert not (tmp_path / "trap").exists()


def test_an_index_that_is_cut_short_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    replace(step, (step / "component-0" / ".metadata").read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="expected an index of tensors"):
        mach.load(tmp_path / "run")


def replace(step: Path, index: bytes) -> None:
    """Put another index there, under its own digest."""
    (step / "component-0" / ".metadata").write_bytes(index)
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"]["component-0/.metadata"] = sha256(index).hexdigest()
    (step / "manifest.json").write_text(json.dumps(manifest))
