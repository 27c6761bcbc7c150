"""Do images of the Hub arrive in our cache, once, and is the user told where they cannot?

Here the Hub is a folder of parquet files with the columns of the original, which the real package
`datasets` reads.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mach.config import Cifar10Config, FashionMnistConfig, HubConfig, MnistConfig
from mach.data import check, hub, open_dataset
from mach.data.fetch import fetch
from mach.errors import DataError, FetchError
from mach.extras import missing
from spawn import TRAIN, assert_none_left, run

NOWHERE = "http://127.0.0.1:9"
"""Where nobody answers."""

Arrays = dict[str, np.ndarray]


@cache
def digits(colour: bool) -> Arrays:
    """Real digits at the size of the originals, in colours if need be."""
    pixels, labels = load_digits(return_X_y=True)
    side = 32 if colour else 28
    large = np.kron(pixels.reshape(-1, 8, 8).astype("u1") * 15, np.ones((1, 3, 3), dtype="u1"))
    x = np.pad(large, ((0, 0), *[((side - 24) // 2,) * 2] * 2))
    x = np.stack([x, x // 2, 255 - x], axis=1) if colour else x
    y = labels.astype("u1")
    return {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:42], "y_test": y[30:42]}


def write_parquet(folder: Path, arrays: Arrays, column: str) -> Path:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    features = datasets.Features(
        {column: datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}
    )
    datasets.disable_progress_bars()
    folder.mkdir()
    for split in ("train", "test"):
        x = arrays[f"x_{split}"]
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
        rows = {column: [image.fromarray(one) for one in x], "label": arrays[f"y_{split}"].tolist()}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("hub") / "grey", digits(colour=False), "image")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the user has in the Hub's own cache, and no way to the Hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def same(config: HubConfig, expected: Arrays) -> None:
    dataset = open_dataset(config)
    check(dataset)
    for key, value in expected.items():
        got = getattr(dataset, key)
        assert isinstance(got, np.memmap)
        assert np.array_equal(got, value), key
    assert dataset.task.sample.shape == expected["x_train"].shape[1:]
    assert (dataset.task.classes, dataset.task.metric) == (10, "accuracy")


def test_images_are_unpacked_once_and_the_package_is_not_needed_again(
    tmp_path: Path, grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FashionMnistConfig(source=str(grey), cache=str(tmp_path / "cache"))
    same(config, digits(colour=False))
    (name,) = files(tmp_path / "cache")
    assert name.startswith("fashion_mnist-")
    monkeypatch.setitem(sys.modules, "datasets", None)
    same(config, digits(colour=False))
    assert files(tmp_path / "cache") == [name]


def test_colour_comes_as_channels_height_width(tmp_path: Path) -> None:
    expected = digits(colour=True)
    assert expected["x_train"].shape == (30, 3, 32, 32)
    source = write_parquet(tmp_path / "colour", expected, "img")
    same(Cifar10Config(source=str(source), cache=str(tmp_path / "cache")), expected)


def test_a_source_that_has_changed_is_another_one(grey: Path) -> None:
    before = hub._key(str(grey))
    assert hub._key(str(grey)) == before != hub._key("ylecun/mnist")
    (grey / "README.md").write_text("more")
    assert hub._key(str(grey)) != before


def test_the_originals_have_a_source_and_a_choice_in_the_config() -> None:
    kinds: list[Callable[..., HubConfig]] = [Cifar10Config, MnistConfig, FashionMnistConfig]
    assert {kind().name for kind in kinds} == hub.ORIGINALS.keys()


def test_one_downloads_and_the_others_find_what_it_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def write(config: HubConfig, source: str, target: Path) -> None:
        downloads.append(source)
        with target.open("wb") as file:
            np.savez(file, **digits(colour=False))

    monkeypatch.setattr(hub, "_fetch", write)
    found: list[Path] = []
    config = MnistConfig(cache=str(tmp_path / "cache"))
    threads = [threading.Thread(target=lambda: found.append(hub.hub_file(config))) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert downloads == ["ylecun/mnist"]
    assert len(found) == 4
    assert len({*found}) == 1


def test_one_that_takes_too_long_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        hub._alone(tmp_path / "lock", 60),
        pytest.raises(DataError, match=r"another process has been downloading for 0.01 s"),
        hub._alone(tmp_path / "lock", 0.01),
    ):
        pass


# --- what goes wrong -----------------------------------------------------------------------------


def test_without_the_package_a_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"data=mnist: .*not installed.*: pip install 'mach\[hf\]'"):
        open_dataset(MnistConfig(cache=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_called_as_a_package_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_data").mkdir()
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("only_data") is not None
    assert missing("only_data", "a_package", "nowhere", "json") == ["only_data", "nowhere"]


def test_another_data_set_is_refused(tmp_path: Path, grey: Path) -> None:
    config = Cifar10Config(source=str(grey), cache=str(tmp_path / "cache"))
    says = "data=cifar10: .*it has the columns image, label, not img"
    with pytest.raises(DataError, match=says) as refused:
        open_dataset(config)
    assert "\n" not in str(refused.value)
    assert not files(tmp_path / "cache")


def test_without_a_network_the_run_is_refused_before_any_process_starts(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    done = run([*TRAIN, "data=mnist", "data.cache=cache", "out=run"], tmp_path, deadline_s=110)
    print(f"{done.duration_s:.1f} s")
    assert done.code == 2, done
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("mach: "))
    assert said.startswith(
        "mach: data=mnist: expected to find ylecun/mnist, or to download it; ConnectionError: the "
        "Hub does not answer"
    )
    assert "set data.source to a folder of its parquet files" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert not files(tmp_path / "cache")
    assert_none_left(tmp_path)


def test_a_download_that_hangs_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = monotonic()
        with pytest.raises(FetchError, match=r"it was not there after 0.5 s"):
            fetch("pack_images", "a/b", "nowhere", "image", "10", "28", "28", timeout_s=0.5)
        assert monotonic() - began < 30


def test_what_goes_wrong_in_the_other_process_is_told() -> None:
    with pytest.raises(FetchError, match="KeyError: 'no_such'"):
        fetch("no_such", timeout_s=60)
