"""Does every experiment of conf/ train? Each with its size cut down, on small real files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from mach.config import Config, GptConfig, HubConfig, LabelledConfig, MlpConfig, SequenceConfig
from mach.data import check, open_dataset
from mach.data.hub import ORIGINALS
from mach.launcher.compose import compose, conf_dir
from mach.trainer import Oracle, Simulation

EXPERIMENTS = sorted((conf_dir() / "experiment").glob("*.yaml"))
STEPS, TRAIN, TEST = 2, 48, 8


@dataclass(frozen=True)
class Files:
    """What the experiments read, small."""

    npz: Path
    text: Path
    tokens: Path

    def overrides(self, kind: str) -> list[str]:
        """What makes an experiment with data of this kind read them."""
        if kind == "text":
            return [f"data.path={self.text}"]
        if kind == "tokens":
            return [f"data.train={self.tokens}", "data.test=null", "data.vocabulary=256"]
        if kind in ("npz", *ORIGINALS):  # the Hub's images have a test of their own
            return ["data=npz", f"data.path={self.npz}"]
        return []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Digits of scikit-learn at the size of MNIST, and the words of a book of this project."""
    folder = tmp_path_factory.mktemp("files")
    pixels, labels = load_digits(return_X_y=True)
    large = np.kron(pixels.reshape(-1, 8, 8)[: TRAIN + TEST] * 15, np.ones((1, 3, 3)))
    x = np.pad(large.astype("u1"), ((0, 0), (2, 2), (2, 2)))
    y = labels[: TRAIN + TEST]
    np.savez(
        folder / "digits.npz",
        x_train=x[:TRAIN],
        y_train=y[:TRAIN],
        x_test=x[TRAIN:],
        y_test=y[TRAIN:],
    )
    content = Path(__file__).read_bytes()
    (folder / "text.txt").write_bytes(content)
    np.frombuffer(content, dtype="u1").astype("u2").tofile(folder / "tokens.bin")
    return Files(folder / "digits.npz", folder / "text.txt", folder / "tokens.bin")


def data_of(experiment: Path) -> str:
    """The source of data that an experiment chooses; its path is the user's."""
    for choice in yaml.safe_load(experiment.read_text()).get("defaults", []):
        if isinstance(choice, dict) and "override /data" in choice:
            return str(choice["override /data"])
    return "digits"


def smaller(config: Config) -> list[str]:
    """Overrides that cut its size down, and leave what it is."""
    cuts = [f"steps={STEPS}", "eval.every=0", "microbatch_size=2", "report.every=1"]
    if isinstance(config.model, MlpConfig):
        cuts.append("model.width=16")
    if isinstance(config.model, GptConfig):  # features come in pairs, in every head
        cuts.append(f"model.width={8 * config.model.heads}")
    if isinstance(config.data, SequenceConfig):
        cuts += [f"data.context={min(32, config.data.context)}", f"data.test_samples={TEST}"]
    if isinstance(config.data, LabelledConfig) and config.data.samples is not None:
        cuts.append(f"data.samples={TRAIN // 2}")
    return cuts


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_trains_with_its_size_cut_down(
    experiment: Path, files: Files, tmp_path: Path
) -> None:
    overrides = [f"experiment={experiment.stem}", *files.overrides(data_of(experiment))]
    overrides += ["launch.device=cpu", f"data.cache={tmp_path}"]
    config = compose([*overrides, *smaller(compose(overrides))])
    assert not isinstance(config.data, HubConfig)
    dataset = open_dataset(config.data)
    check(dataset)
    result = (Simulation if config.schedule == "free" else Oracle)(config, dataset).run()
    assert len(result["chain"]) == config.components
    assert result["steps"] == STEPS
    for row in [*result["chain"], *result["windows"]]:
        assert math.isfinite(row["loss"])


def test_there_are_experiments() -> None:
    assert {"mnist", "text"} <= {path.stem for path in EXPERIMENTS}
