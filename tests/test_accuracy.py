"""Does it learn? Real data, the defaults of `conf/`, the oracle."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from mach.data import open_dataset
from mach.launcher.compose import compose
from mach.trainer import Oracle

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist.npz"


@pytest.fixture(scope="module")
def mnist1d(tmp_path_factory):
    """32,000 training and 8,000 test samples."""
    arguments = get_dataset_args()
    arguments.num_samples = 40_000
    data = make_dataset(arguments)
    path = tmp_path_factory.mktemp("mnist1d") / "mnist1d.npz"
    names = {"x_train": "x", "y_train": "y", "x_test": "x_test", "y_test": "y_test"}
    np.savez(path, **{ours: data[theirs] for ours, theirs in names.items()})
    assert len(data["x"]) == 32_000
    return path


def top_exit(overrides):
    torch.set_num_threads(1)
    config = compose([*overrides, "report.every=1000"])
    return Oracle(config, open_dataset(config.data)).run()["chain"][-1]["accuracy"]


DELAYS = (0, 4)


@pytest.mark.timeout(600)
def test_mnist1d_is_learnt_by_late_gradients_as_by_exact_ones(mnist1d, tmp_path):
    """In a third of the experiment: 92.1 % at staleness 0, 91.7 % at 6 when this was written. What
    whole runs reach is in benchmarks/accuracy."""
    common = ["experiment=mnist1d", f"data.path={mnist1d}", f"data.cache={tmp_path}"]
    common += ["student=none", "steps=1000"]
    with ProcessPoolExecutor(len(DELAYS), multiprocessing.get_context("spawn")) as pool:
        exact, late = pool.map(top_exit, [[*common, f"delay={delay}"] for delay in DELAYS])
    print(f"mnist1d, 1,000 steps: exact {exact:.4f}, late {late:.4f}")
    assert exact >= 0.91
    assert late >= exact - 0.015


@pytest.mark.skipif(not MNIST.exists(), reason=f"real MNIST is not at {MNIST}")
@pytest.mark.timeout(600)
def test_real_mnist_is_learnt_in_a_tenth_of_the_experiment(tmp_path):
    overrides = ["experiment=mnist", f"data.path={MNIST}", f"data.cache={tmp_path}"]
    accuracy = top_exit([*overrides, "steps=300", "student=none"])
    print(f"MNIST, 300 steps: {accuracy:.4f}")
    assert accuracy >= 0.95
