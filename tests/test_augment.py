"""What is seen of a training image is a pure function of (seed, microbatch); samples can be few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from images import images
from mach.config import DigitsConfig, LabelledConfig, NpzConfig
from mach.configfile import fingerprint, from_mapping
from mach.data import Batches, Dataset, open_dataset
from mach.data.augment import Augmentation, augmentation_of
from mach.errors import ConfigError, DataError
from mach.metrics import Task
from mach.shapes import TensorSpec

CPU = torch.device("cpu")
GREY, COLOUR = (8, 8), (3, 9, 7)
CROP, CROP_FLIP = Augmentation(2, flip=False), Augmentation(2, flip=True)


def batches(dataset: Dataset, seed: int = 3) -> Batches:
    return Batches(dataset, seed, 16, CPU)


def augmented(*shape: int, how: Augmentation = CROP_FLIP) -> Dataset:
    return replace(images(*shape), augmentation=how)


# --- views -----------------------------------------------------------------------------------


def candidates(image: torch.Tensor, padding: int, flip: bool) -> dict[str, torch.Tensor]:
    """Every view an image may have, cut out by hand with loops."""
    *channels, height, width = image.shape
    framed = torch.zeros((*channels, height + 2 * padding, width + 2 * padding), dtype=image.dtype)
    framed[..., padding : padding + height, padding : padding + width] = image
    views = {}
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            cut = framed[..., down : down + height, right : right + width]
            views[f"{down} {right}"] = cut
            if flip:
                views[f"{down} {right} mirrored"] = torch.stack(cut.unbind(-1)[::-1], -1)
    return views


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("how", [CROP, CROP_FLIP, Augmentation(0, flip=True)])
def test_every_view_is_a_crop_of_the_framed_image_and_all_of_them_are_met(shape, dtype, how):
    image = torch.randint(1, 255, shape, dtype=dtype) if dtype == torch.uint8 else torch.rand(shape)
    wanted = candidates(image, how.padding, how.flip)
    seen = how.view(image.expand(40 * len(wanted), *shape), seed=0, b=7)
    assert seen.dtype == dtype
    met = {name for view in seen for name, want in wanted.items() if torch.equal(view, want)}
    assert met == wanted.keys()
    assert all(any(torch.equal(view, want) for want in wanted.values()) for view in seen[:50])


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_all_components_see_the_same_view_whatever_they_have_seen_before(shape):
    dataset = augmented(*shape)
    one, other = batches(dataset), batches(dataset)
    expected = [one.train(b) for b in range(8)]
    for b in [5, 0, 7, 5, 1]:
        for got, want in zip(other.train(b), expected[b], strict=True):
            assert torch.equal(got, want)
    assert expected[0][0].shape == (16, *shape)
    assert expected[0][0].dtype == torch.float32


def test_seed_microbatch_origin_and_life_each_draw_other_views():
    x = torch.arange(16 * 64, dtype=torch.float32).reshape(16, 8, 8)
    names = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    views = [CROP_FLIP.view(x, *name) for name in names]
    assert torch.equal(views[0], CROP_FLIP.view(x, 0, 0))
    for i, view in enumerate(views):
        assert all(not torch.equal(view, other) for other in views[:i])


def test_samples_and_labels_are_those_without():
    plain, dataset = batches(images(*GREY)), augmented(*GREY, how=CROP)
    for b in range(7):
        for name in [(b,), (b, 2, 1)]:
            x, y = plain.train(*name)
            seen, labels = batches(dataset).train(*name)
            assert torch.equal(labels, y)
            inner = seen[:, 2:-2, 2:-2]  # is in the image, wherever it was cut
            for view, image in zip(inner, x, strict=True):
                places = image.unfold(0, 4, 1).unfold(1, 4, 1).reshape(-1, 4, 4)
                assert any(torch.equal(view, place) for place in places)


def test_the_test_split_is_never_augmented():
    plain, seen = batches(images(*GREY)), batches(augmented(*GREY))
    for batch in range(plain.evaluation_batches()):
        for got, want in zip(seen.evaluation(batch), plain.evaluation(batch), strict=True):
            assert torch.equal(got, want)


def test_what_comes_in_at_the_edge_is_black():
    dataset = augmented(*GREY, how=Augmentation(7, flip=False))
    seen = torch.cat([batches(dataset).train(b)[0] for b in range(6)])
    black = (0 - dataset.mean) / dataset.std
    assert seen.min() == pytest.approx(black)
    assert (seen == seen.min()).float().mean() > 0.3


# --- fewer samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10, 95, 96])
def test_of_so_many_samples_an_epoch_is_made_and_they_are_spread_over_all(count):
    whole = images(*GREY)
    dataset = replace(whole, x_train=np.arange(96.0)[:, None], mean=0, std=1, train_samples=count)
    drawn = batches(dataset)
    assert drawn.samples == count
    assert f"{count} of 96 + 20 samples" in str(dataset)
    stream = torch.cat([drawn.train(b)[0] for b in range(count)]).flatten().int().tolist()
    epochs = [stream[e * count : (e + 1) * count] for e in range(16)]
    chosen = sorted(epochs[0])
    assert len(set(chosen)) == count
    assert all(i * 96 // count <= n < (i + 1) * 96 // count for i, n in enumerate(chosen))
    assert all(sorted(epoch) == chosen for epoch in epochs)
    other_life = torch.cat([drawn.train(b, 1, 1)[0] for b in range(count)]).flatten().int().tolist()
    assert sorted(other_life[:count]) == chosen


def test_a_source_hands_on_what_its_config_asks_for():
    config = DigitsConfig(samples=100, augment="crop_flip", padding=1)
    dataset = open_dataset(config)
    assert dataset.train_samples == 100
    assert dataset.augmentation == Augmentation(1, flip=True)
    assert open_dataset(DigitsConfig()).augmentation is None
    hashes = {
        fingerprint(from_mapping({"data": {"name": "digits", **values}}))
        for values in ({}, {"samples": 9}, {"augment": "crop"}, {"augment": "crop", "padding": 1})
    }
    assert len(hashes) == 4


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"augment": "rotate"}, "data.augment: expected one of none, crop, crop_flip; got"),
        ({"padding": -1}, "data.padding: expected 0 or more; got -1"),
        ({"samples": 0}, "data.samples: expected 1 or more; got 0"),
        (
            {"name": "text", "path": "x", "augment": "crop"},
            "data.augment: expected a key of the config",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(data, says):
    with pytest.raises(ConfigError, match=says):
        from_mapping({"data": {"name": "digits", **data}})


@pytest.mark.parametrize(
    ("sample", "padding", "says"),
    [
        (TensorSpec((40,)), 4, r"data.augment=crop: expected images, .* float32\[40\]"),
        (TensorSpec((32, 32, 3)), 4, "data.augment=crop: .* channels last"),
        (TensorSpec((8, 6)), 6, r"data.padding: expected less than 6, .* float32\[8, 6\]; got 6"),
    ],
)
def test_what_cannot_be_cropped_is_refused(sample, padding, says):
    config = LabelledConfig(augment="crop", padding=padding)
    with pytest.raises(ConfigError, match=says):
        augmentation_of(config, Task(sample, 4, "accuracy"))


def test_vectors_and_more_samples_than_there_are_are_refused_when_the_data_is_opened(
    tmp_path: Path,
):
    path = tmp_path / "vectors.npz"
    x, y = np.zeros((8, 5), "f4"), np.arange(8) % 2
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(ConfigError, match=r"data.augment=crop_flip: expected im"):
        open_dataset(NpzConfig(path=str(path), augment="crop_flip"))
    with pytest.raises(DataError, match=r"vectors.npz: expected at least data.samples=9 .*; got 8"):
        open_dataset(NpzConfig(path=str(path), samples=9))
