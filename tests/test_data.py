"""Are samples what the files say, and drawn as (seed, microbatch) says?"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch

from datafiles import (
    IDX,
    Arrays,
    arrays,
    write_compressed,
    write_idx,
    write_idx_gz,
    write_npz,
    write_text,
)
from mach.config import DataConfig, DigitsConfig, NpzConfig, TextConfig
from mach.data import Batches, Dataset, cache, check, digits, open_dataset, order

CPU = torch.device("cpu")
DEADLINE_S = 100.0
MNIST = Path(__file__).parents[1] / "../shared/data/mnist.npz"


def batches(dataset: Dataset, size: int = 16, seed: int = 3) -> Batches:
    return Batches(dataset, seed, size, CPU)


def first_pixels(dataset: Dataset, x: torch.Tensor) -> list[int]:
    """Undo the standardisation of the pixel that numbers the samples of `arrays`."""
    return [round(value) for value in (x[:, 0, 0] * dataset.std + dataset.mean).tolist()]


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    return open_dataset(write_npz(tmp_path, arrays()))


@pytest.fixture
def sentence(tmp_path: Path) -> Dataset:
    """400 bytes to train on and 200 to test on; none of the 251 values repeats nearby."""
    return open_dataset(
        write_text(tmp_path, bytes(i % 251 for i in range(600)), test_fraction=1 / 3)
    )


# --- the training stream -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "sentence"])
def test_a_microbatch_depends_on_seed_and_number_only(
    kind: str, request: pytest.FixtureRequest
) -> None:
    dataset = request.getfixturevalue(kind)
    forward = batches(dataset)
    expected = [forward.train(b) for b in range(12)]
    other = batches(dataset)
    for b in [7, 0, 11, 3, 3, 10, 1, 0]:
        for got, want in zip(other.train(b), expected[b], strict=True):
            assert torch.equal(got, want)
    another_seed = batches(dataset, seed=4)
    assert not torch.equal(another_seed.train(0)[0], expected[0][0])


def test_every_epoch_is_a_permutation_and_no_two_are_the_same(images: Dataset) -> None:
    drawn = batches(images, size=10)  # 5 microbatches of 10 are one epoch of 50
    epochs = []
    for epoch in range(4):
        xs = [drawn.train(b)[0] for b in range(5 * epoch, 5 * epoch + 5)]
        epochs.append([pixel for x in xs for pixel in first_pixels(images, x)])
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_microbatch_straddles_two_epochs(images: Dataset) -> None:
    small, large = batches(images, size=1), batches(images, size=16)
    one_by_one = [first_pixels(images, small.train(position)[0])[0] for position in range(64)]
    by_sixteen = [pixel for b in range(4) for pixel in first_pixels(images, large.train(b)[0])]
    assert by_sixteen == one_by_one
    assert sorted(by_sixteen[:50]) == list(range(50))


def test_a_microbatch_may_be_larger_than_several_epochs(images: Dataset) -> None:
    pixels = first_pixels(images, batches(images, size=120).train(1)[0])  # positions 120 to 239
    assert sorted(pixels[30:80]) == list(range(50))
    assert len(pixels) == 120


def test_labels_stay_with_their_samples_and_x_keeps_its_shape(images: Dataset) -> None:
    x, y = batches(images).train(5)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((16, 5, 4), torch.float32, (16,), torch.int64)
    assert y.tolist() == [pixel % 3 for pixel in first_pixels(images, x)]


@pytest.mark.parametrize("kind", ["images", "sentence"])
def test_targets_alone_are_those_of_the_whole_batch(
    kind: str, request: pytest.FixtureRequest
) -> None:
    one = batches(request.getfixturevalue(kind))
    for stream in [(0, 0, 0), (7, 0, 0), (7, 2, 1)]:
        before_s = one.wait_s
        y = one.targets(*stream)
        assert one.wait_s > before_s
        assert torch.equal(y, one.train(*stream)[1])
    for batch in range(one.evaluation_batches()):
        assert torch.equal(one.evaluation_targets(batch), one.evaluation(batch)[1])
    assert torch.equal(one.evaluation_targets(0, 5), one.evaluation(0, 5)[1])


def test_changing_a_microbatch_in_place_does_not_change_the_data(tmp_path: Path) -> None:
    content = arrays() | {"x_train": arrays()["x_train"].astype(np.float32)}
    drawn = batches(open_dataset(write_npz(tmp_path, content)))
    kept = drawn.train(0)[0].clone()
    drawn.train(0)[0].zero_()
    assert torch.equal(drawn.train(0)[0], kept)


def test_large_data_are_numbered_with_64_bits() -> None:
    far = order.Order(4, 4, seed=0, stride=2**30).microbatch(0)
    assert sorted(far.tolist()) == [0, 2**30, 2**31, 3 * 2**30]


# --- the test split ------------------------------------------------------------------------------


def test_test_batches_are_the_whole_test_split_in_order(images: Dataset) -> None:
    drawn = batches(images, size=10)
    parts = [drawn.evaluation(i) for i in range(drawn.evaluation_batches())]
    assert [len(y) for _, y in parts] == [10, 10, 3]
    assert [p for x, _ in parts for p in first_pixels(images, x)] == list(range(100, 123))
    assert torch.cat([y for _, y in parts]).tolist() == [i % 3 for i in range(23)]


@pytest.mark.parametrize("labels", [np.arange(200) // 20, np.arange(200) % 10])
def test_a_part_of_the_test_split_has_every_class_however_it_is_sorted(
    tmp_path: Path, labels: np.ndarray
) -> None:
    content = arrays(n_test=200) | {"y_test": labels}
    drawn = batches(open_dataset(write_npz(tmp_path, content | {"y_train": np.arange(50) % 10})))
    parts = [drawn.evaluation(i, 40) for i in range(drawn.evaluation_batches(40))]
    ys = torch.cat([y for _, y in parts])
    assert len(ys) == 40
    assert ys.unique().tolist() == list(range(10))
    again = [drawn.evaluation(i, 40) for i in range(drawn.evaluation_batches(40))]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(parts, again, strict=True))


def test_more_test_samples_than_there_are_means_all(images: Dataset) -> None:
    drawn = batches(images)
    assert drawn.evaluation_batches(1000) == drawn.evaluation_batches(None) == 2
    assert torch.equal(drawn.evaluation(1, 1000)[0], drawn.evaluation(1)[0])


def test_a_subset_is_distinct_sorted_and_spread() -> None:
    chosen = order.subset(1000, 100)
    assert (chosen // 10).tolist() == list(range(100))


# --- standardisation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["bool", "u1", "i1", "u2", "i2", ">i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">f4", ">f8"],
)
def test_features_of_any_number_type_are_standardised(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    low = -100 if np.dtype(dtype).kind in "if" else 0
    x_train = rng.integers(low, 100, (40, 6)).astype(dtype)
    content = arrays(40) | {"x_train": x_train, "x_test": x_train[:9], "y_test": np.arange(9) % 3}
    dataset = open_dataset(write_npz(tmp_path, content))
    check(dataset)
    drawn = batches(dataset, size=40)
    wide = x_train.astype(np.float64)
    expected = torch.from_numpy((wide - wide.mean()) / wide.std()).float()
    assert drawn.train(0)[0].dtype == torch.float32
    # Scaling by 1 / std in float32, not dividing in float64, costs a few units of the last place.
    torch.testing.assert_close(drawn.train(0)[0].sort(0).values, expected.sort(0).values)
    torch.testing.assert_close(drawn.evaluation(0)[0], expected[:9])


def test_fortran_order_is_read_as_it_was_meant(tmp_path: Path) -> None:
    content = arrays()
    turned = content | {"x_train": np.asfortranarray(content["x_train"])}
    for write in (write_npz, write_compressed):
        dataset = open_dataset(write(tmp_path, turned))
        assert np.array_equal(dataset.x_train, content["x_train"])
        assert batches(dataset).train(0)[0].is_contiguous()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 7e-39])
def test_constant_features_become_zero(tmp_path: Path, value: float) -> None:
    constant = np.full((50, 3), value, dtype=np.float32)
    content = arrays() | {"x_train": constant, "x_test": constant[:23]}
    dataset = open_dataset(write_npz(tmp_path, content))
    check(dataset)
    assert dataset.std == 1.0
    x, _ = batches(dataset).train(0)
    assert x.isfinite().all()
    assert x.abs().max() <= 1e-6 * max(1.0, abs(value))


def test_statistics_do_not_fall_for_periodic_data(tmp_path: Path) -> None:
    """Every 4th sample of MNIST has a mean of 31, all have 33: a fixed stride sees it."""
    x_train = np.tile(np.float32([[0], [0], [0], [1]]), (16384, 1))
    content = arrays(len(x_train)) | {"x_train": x_train, "x_test": x_train[:23]}
    assert open_dataset(write_npz(tmp_path, content)).mean == pytest.approx(0.25, abs=0.02)


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_npz, write_compressed, write_idx, write_idx_gz])
def test_every_source_maps_the_same_content(
    tmp_path: Path, write: Callable[[Path, Arrays], DataConfig]
) -> None:
    content = arrays()
    for _ in ("cold cache", "warm cache"):
        dataset = open_dataset(write(tmp_path, content))
        check(dataset)
        for key, expected in content.items():
            got = getattr(dataset, key)
            assert isinstance(got, np.memmap)
            assert np.array_equal(got, expected)
        assert dataset.task.classes == 3
        assert dataset.task.metric == "accuracy"
        assert dataset.task.sample.shape == (5, 4)


def test_what_needs_no_unpacking_is_mapped_in_place(tmp_path: Path) -> None:
    npz_file = open_dataset(write_npz(tmp_path, arrays())).x_train
    idx_file = open_dataset(write_idx(tmp_path, arrays())).x_train
    assert isinstance(npz_file, np.memmap)
    assert isinstance(idx_file, np.memmap)
    assert npz_file.filename == tmp_path / "data.npz"
    assert idx_file.filename == tmp_path / "train-images-idx3-ubyte"
    assert not (tmp_path / "cache").exists()


def test_a_changed_file_is_unpacked_again(tmp_path: Path) -> None:
    config = write_compressed(tmp_path, arrays())
    open_dataset(config)
    write_compressed(tmp_path, arrays(n_train=51))
    assert len(open_dataset(config).x_train) == 51


def test_a_long_name_of_long_characters_is_no_name_too_long_for_the_cache(tmp_path: Path) -> None:
    """80 of three bytes are a name that a file may have; with what the cache adds they are not."""
    text = tmp_path / (80 * "\N{CJK UNIFIED IDEOGRAPH-6F22}" + ".txt")
    text.write_text(4 * "to be or not to be ")
    config = TextConfig(path=str(text), context=4, tokenizer="char", cache=str(tmp_path / "cache"))
    assert open_dataset(config).task.classes == 7
    start = {path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert start == {21 * "\N{CJK UNIFIED IDEOGRAPH-6F22}"}  # 63 bytes: no half of a character


def test_idx_names_with_a_dot_are_found(tmp_path: Path) -> None:
    config = write_idx(tmp_path, arrays())
    for name in IDX.values():
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
    assert np.array_equal(open_dataset(config).x_test, arrays()["x_test"])


def test_the_cache_folder_is_the_configs_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder(DigitsConfig(cache=str(tmp_path / "own"))) == tmp_path / "own"
    assert cache.folder(DigitsConfig()) == tmp_path / "xdg" / "mach"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder(DigitsConfig()) == tmp_path / ".cache" / "mach"


def test_digits_are_split_disjointly_and_evenly_by_class() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1797)
    train, test = digits.split(labels)
    assert sorted([*train, *test]) == list(range(1797))
    counts = np.bincount(labels)
    assert np.abs(np.bincount(labels[test]) - counts / 5).max() <= 0.5


def test_digits_come_whole_and_from_the_cache_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DigitsConfig(cache=str(tmp_path))
    cold = open_dataset(config)
    check(cold)
    assert (cold.x_train.shape[1:], cold.task.classes) == ((8, 8), 10)
    assert len(cold.x_train) + len(cold.x_test) == 1797
    assert int(cold.x_train.max()) == 16

    def not_again() -> None:
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(digits, "_pack", not_again)
    warm = open_dataset(config)
    assert isinstance(warm.x_train, np.memmap)
    assert np.array_equal(warm.x_train, cold.x_train)


@pytest.mark.skipif(not MNIST.exists(), reason="optional file ../shared/data/mnist.npz not found")
def test_mnist_opens_with_its_known_size_and_mean(tmp_path: Path) -> None:
    dataset = open_dataset(NpzConfig(path=str(MNIST), cache=str(tmp_path)))
    check(dataset)
    assert (dataset.x_train.shape, dataset.x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert dataset.task.classes == 10
    assert dataset.mean == pytest.approx(33.318, abs=0.5)  # of all; seen are 16,384 samples
    assert dataset.std == pytest.approx(78.567, abs=0.5)


# --- text ----------------------------------------------------------------------------------------


def test_text_targets_are_the_input_shifted_by_one(sentence: Dataset) -> None:
    drawn = batches(sentence)
    for x, y in (drawn.train(0), drawn.train(5), drawn.evaluation(0)):
        assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.int64, torch.int64, (16, 8), (16, 8))
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(y, (x + 1) % 251)  # the byte after each in this text
    assert isinstance(sentence.x_train, np.memmap)
    assert sentence.task.classes == 256
    assert sentence.task.metric == "bits_per_byte"


def test_text_windows_of_an_epoch_do_not_overlap_and_epochs_are_shifted() -> None:
    drawn = order.windows(length=403, context=8, microbatch_size=4, seed=0)
    shifts = set()
    for epoch in range(200):
        starts = np.sort(drawn.epoch(epoch))
        assert len(starts) == drawn.samples == 49
        assert (np.diff(starts) == 8).all()
        assert starts[-1] + 8 + 1 <= 403
        shifts.add(int(starts[0]))
    assert shifts == set(range(8))


@pytest.mark.parametrize("length", range(9, 40))
def test_text_windows_fit_whatever_the_length(length: int) -> None:
    drawn = order.windows(length, context=8, microbatch_size=4, seed=0)
    starts = np.concatenate([drawn.epoch(epoch) for epoch in range(30)])
    assert starts.min() >= 0
    assert starts.max() + 8 + 1 <= length


def test_text_test_windows_spread_over_the_held_out_part(tmp_path: Path) -> None:
    text = bytes(100 + i for i in range(100)) + bytes(range(50))  # the last third is held out
    dataset = open_dataset(write_text(tmp_path, text, test_fraction=1 / 3, test_samples=5))
    x, y = batches(dataset).evaluation(0)
    assert x[:, 0].tolist() == [0, 10, 20, 30, 41]
    assert y[-1, -1] == 49
    assert batches(dataset).evaluation(0, samples=2)[0].shape == (2, 8)


def test_text_has_no_more_test_windows_than_places_for_them(tmp_path: Path) -> None:
    dataset = open_dataset(write_text(tmp_path, bytes(range(60)), test_fraction=0.5))
    drawn = batches(dataset, size=100)
    assert drawn.evaluation_batches() == 1
    assert drawn.evaluation(0)[0][:, 0].tolist() == list(range(30, 52))


def test_one_window_of_text_is_enough(tmp_path: Path) -> None:
    drawn = batches(open_dataset(write_text(tmp_path, bytes(range(18)), test_fraction=0.5)))
    assert torch.equal(drawn.train(3)[0], torch.arange(8).expand(16, 8))
    assert torch.equal(drawn.evaluation(0)[1], torch.arange(10, 18)[None])


# --- several processes ---------------------------------------------------------------------------


def _open_together(config: NpzConfig, barrier: multiprocessing.synchronize.Barrier) -> None:
    barrier.wait(DEADLINE_S)
    dataset = open_dataset(config)
    for key, expected in arrays().items():
        assert np.array_equal(getattr(dataset, key), expected), key


def test_four_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    config = write_compressed(tmp_path, arrays())
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    processes = [spawn.Process(target=_open_together, args=(config, barrier)) for _ in range(4)]
    deadline = monotonic() + DEADLINE_S
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(deadline - monotonic())
        assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npy"] * 4
