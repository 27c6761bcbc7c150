"""Windows whose student, bodies and head are trained together after the run."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

import mach
from kept import keep, of_images
from mach import cli
from mach.checkpoint import consolidated
from mach.checkpoint.consolidated import run_of
from mach.component.soft import SoftTargets
from mach.config import ConsolidateConfig, EvalConfig, NpzConfig, OptimConfig
from mach.config.window import Name
from mach.consolidation.consolidate import consolidate
from mach.consolidation.teachers import way
from mach.consolidation.together import Course, Together, learn, optimizer_of
from mach.data import Batches, open_dataset
from mach.errors import CheckpointError, ConfigError, ConsolidationError, RunFolderError
from mach.inference import Run
from mach.predictor import open_predictor
from runs import digests
from texts import make as make_text
from texts import write_text

CPU = torch.device("cpu")
SHORT = {"steps": 6, "validation": 40}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Three components, pictures of 6 x 5. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    return keep(of_images(folder, 6, 5, test=100, steps=8), folder / "run")


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def made(run_dir: Path, window: str = "2..2", **options: object) -> consolidated.Consolidated:
    return consolidate(ConsolidateConfig(str(run_dir), window, **{**SHORT, **options}))


def samples(run_dir: Path) -> torch.Tensor:
    """Test samples as the data has them."""
    return torch.from_numpy(np.asarray(Run(run_dir).dataset.x_test).astype("f4"))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    return all(torch.equal(mine[name], other[name]) for name in mine)


# --- a step ------------------------------------------------------------------------------------


def together_of(run: Run, optim: OptimConfig, weight: float = 0.3) -> Together:
    batches = Batches(run.dataset, 5, 16, CPU)
    window, teacher = run.window(1, 2), run.window()
    optimizer = optimizer_of(window, optim, 10)
    targets = run.assembly.family.targets
    return Together(window, teacher, batches, targets, SoftTargets(weight, 2.0), optimizer)


def test_steps_equal_a_few_lines_of_plain_torch(trained):
    run = Run(trained)
    optim = OptimConfig(name="adamw", lr=1e-2, clip=0.0, warmup=0.0, cosine=False)
    together = together_of(run, optim)
    losses = [together.step(index) for index in range(3)]

    window, teacher = run.window(1, 2), run.window()
    plain = torch.optim.AdamW(window.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    batches = Batches(run.dataset, 5, 16, CPU)
    for index in range(3):
        x, y = batches.train(index)
        z, t = window(x), teacher(x).detach()
        soft = F.kl_div(
            F.log_softmax(z / 2, 1), F.log_softmax(t / 2, 1), reduction="batchmean", log_target=True
        )
        loss = 0.7 * F.cross_entropy(z, y) + 0.3 * 4 * soft
        plain.zero_grad()
        loss.backward()
        plain.step()
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-6, atol=0)
    for mine, other in zip(together.window.parameters(), window.parameters(), strict=True):
        # The two sums of the loss are formed in another order.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_with_weight_0_the_teacher_is_not_asked(trained):
    run = Run(trained)
    together = together_of(run, OptimConfig(), weight=0.0)
    together._teacher = None
    together.step(0)


def test_every_part_of_the_window_learns_and_the_teacher_does_not(trained):
    run = Run(trained)
    together = together_of(run, OptimConfig())
    before = copy.deepcopy(together.window)
    together.step(0)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before.parameters(), together.window.parameters(), strict=True)
    ]
    assert all(changed)
    assert same(together._teacher, run.window())


def test_muon_takes_the_matrices_of_bodies_and_student_alone(trained):
    window = Run(trained).window(1, 2)
    optimizer = optimizer_of(window, OptimConfig(), 10)
    for parameter in window.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0)
    by_muon = {n for n in optimizer.state() if n.endswith("/momentum_buffer")}
    shapes = {n: p for n, p in window.named_parameters() if p.ndim == 2}
    assert {n.removesuffix("/momentum_buffer") for n in by_muon} == {
        n for n in shapes if not n.startswith("head.")
    }


# --- the best of all looks -----------------------------------------------------------------------


def course_of(trained: Path, values: list[float], **options: object) -> tuple[Course, list]:
    """Look with these accuracies, whatever the window is worth. Also the weights at each look."""
    together = together_of(Run(trained), OptimConfig())
    seen: list[dict] = []

    def score(window):
        assert not window.training
        seen.append(copy.deepcopy(window.state_dict()))
        return {"loss": 1.0, "accuracy": values[len(seen) - 1]}

    settings = {"steps": 2 * (len(values) - 1), "every": 2, "patience": 0, **options}
    course = learn(together, score, say=lambda line: None, **settings)
    best = together.window.state_dict()
    assert not together.window.training
    assert all(torch.equal(best[name], course.weights[name]) for name in best)
    return course, seen


def test_the_best_look_is_kept_and_the_first_of_equals(trained):
    course, seen = course_of(trained, [0.1, 0.5, 0.7, 0.7, 0.6])
    assert (course.best_step, [look["step"] for look in course.looks]) == (4, [0, 2, 4, 6, 8])
    assert all(torch.equal(value, seen[2][name]) for name, value in course.weights.items())


def test_patience_counts_looks_without_a_better_one(trained):
    course, seen = course_of(trained, [0.1, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9], patience=2)
    assert (course.best_step, len(seen)) == (6, 6)


def test_the_last_step_is_looked_at_whatever_the_interval(trained):
    course, _ = course_of(trained, [0.1, 0.2, 0.3], steps=3)
    assert [look["step"] for look in course.looks] == [0, 2, 3]


# --- the entry -----------------------------------------------------------------------------------


def test_the_original_stays_and_the_entry_is_new(trained, run_dir):
    found = made(run_dir)
    assert found.path == run_dir / "consolidated" / "2..2"
    after = digests(run_dir)
    new = {name for name in after if name.startswith("consolidated/")}
    assert {name: after[name] for name in after.keys() - new} == digests(trained)
    files = {"window.safetensors", "consolidate.yaml", "consolidated.json"}
    assert new == {f"consolidated/2..2/{name}" for name in files}
    assert [path.name for path in (run_dir / "consolidated").iterdir()] == ["2..2"]


def test_what_is_read_again_is_what_was_trained_bit_by_bit(run_dir):
    run = Run(run_dir)
    options = ConsolidateConfig(str(run_dir), "2..2", **SHORT)
    # The same by hand.
    batches = Batches(run.dataset.keeping_back(40), 0, 16, CPU, split="validation")
    window, optim = run.window(2, 2), replace(run.config.optim, correction="none")
    optimizer = optimizer_of(window, optim, 6)
    targets = run.assembly.family.targets
    soft = SoftTargets(options.weight, options.temperature)
    together = Together(window, run.window(), batches, targets, soft, optimizer)
    learn(
        together,
        lambda model: run.score(model, batches),
        steps=6,
        every=1,
        patience=0,
        say=lambda line: None,
    )

    found = consolidate(options)
    assert same(run.model(found.name), window)
    assert not same(run.model(found.name), run.window(2, 2))
    x = samples(run_dir)
    expected = window((x - run.dataset.mean) * (1 / run.dataset.std))
    for model in (
        mach.load(run_dir, "consolidated/2..2"),
        mach.load(found.path),
        mach.load(found.path / "window.safetensors"),
        mach.load(found.path, "consolidated/2..2"),
    ):
        assert torch.equal(model(x), expected)


def test_the_same_words_give_the_same_weights(run_dir):
    first = made(run_dir).manifest["files"]["window.safetensors"]
    again = made(run_dir, overwrite=True)
    assert again.manifest["files"]["window.safetensors"] == first
    assert made(run_dir, overwrite=True, seed=1).manifest["files"]["window.safetensors"] != first


def test_nothing_is_chosen_by_the_test_split(tmp_path):
    weights = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        config = of_images(folder, 6, 5, test=50, steps=8)
        if name == "b":  # labels that nothing can be learnt about
            with np.load(config.data.path) as file:
                arrays = {**file, "y_test": (file["y_test"] + 1) % 4}
            np.savez(config.data.path, **arrays)
        found = made(keep(config, folder / "run"))
        weights.append(found.manifest["files"]["window.safetensors"])
        assert found.manifest["split"] == "test"
    assert weights[0] == weights[1]


def test_the_manifest_says_how_it_was_made(run_dir):
    found = made(run_dir, steps=5, batch=8)
    manifest = json.loads((found.path / "consolidated.json").read_text())
    result = json.loads((run_dir / "result.json").read_text())
    before = next(w for w in result["windows"] if (w["first"], w["last"]) == (2, 2))
    assert manifest["before"]["accuracy"] == before["accuracy"]
    assert manifest["teacher"]["accuracy"] == result["chain"][-1]["accuracy"]
    assert (manifest["params"], manifest["flops"]) == (before["params"], before["flops"])
    assert (manifest["samples"], manifest["validation"]) == (40, 40)
    assert manifest["validation_is_new_to_the_run"] is False
    assert manifest["checkpoints"] == {"0": 8, "1": 8, "2": 8}
    assert found.made_of() == {
        k: replace(c, manifest={"step": 8}) for k, c in Run(run_dir).checkpoints(0, 2).items()
    }
    (stage,) = manifest["stages"]
    assert (stage["window"], stage["teacher"]) == ("2..2", "chain 0..2")
    run = Run(run_dir)
    test = Batches(run.dataset, 0, 8, CPU)
    assert manifest["metrics"] == run.score(run.model(found.name), test)
    asked = yaml.safe_load((found.path / "consolidate.yaml").read_text())
    assert ConsolidateConfig(**asked) == ConsolidateConfig(
        str(run_dir), "2..2", steps=5, batch=8, validation=40
    )


def test_a_run_that_reports_on_validation_is_not_tested(tmp_path):
    config = of_images(tmp_path, 6, 5, steps=8)
    kept, split = replace(config.data, validation=30), EvalConfig(split="validation")
    config = replace(config, data=kept, eval=split)
    found = made(keep(config, tmp_path / "run"), validation=None)
    manifest = found.manifest
    assert (manifest["split"], manifest["validation"]) == ("validation", 30)
    assert manifest["validation_is_new_to_the_run"] is True
    with pytest.raises(ConfigError, match=r"validation=5: expected it to be left out.*=30 samples"):
        made(tmp_path / "run", validation=5, overwrite=True)


def test_an_exit_of_the_chain_can_be_consolidated_without_students(tmp_path):
    run_dir = keep(of_images(tmp_path, 6, 5, student={"enabled": False}), tmp_path / "run")
    assert made(run_dir, "0..0").name == Name(0, 0, consolidated=True)
    with pytest.raises(ConfigError, match=r"window=1\.\.1: .*student\.enabled=false"):
        made(run_dir, "1..1")


def test_a_batch_norm_counts_in_the_window_and_not_in_the_teacher(tmp_path):
    network = {"name": "resnet", "layers": 14, "width": 4, "norm": "batch"}
    run_dir = keep(of_images(tmp_path, 8, 8, model=network), tmp_path / "run")
    run, found = Run(run_dir), made(run_dir, "1..2", steps=3)
    buffers = [dict(model.named_buffers()) for model in (run.window(1, 2), run.model(found.name))]
    counted = {n for n in buffers[0] if not torch.equal(buffers[0][n], buffers[1][n])}
    assert counted == buffers[0].keys() != set()


def test_a_batch_norm_of_a_single_value_is_refused(tmp_path):
    network = {"name": "resnet", "layers": 8, "width": 4, "norm": "batch"}
    run_dir = keep(of_images(tmp_path, 4, 4, model=network), tmp_path / "run")
    with pytest.raises(ConfigError, match="batch norm that needs more than one value"):
        made(run_dir, batch=1)
    assert not (run_dir / "consolidated").exists()


def test_a_language_model_is_consolidated_in_bits_per_byte(tmp_path, capsys):
    config = make_text(write_text(tmp_path), student={"enabled": True}, steps=3)
    run_dir = keep(config, tmp_path / "run")
    found = made(run_dir, "1..1", validation=20, steps=20, lr=1e-2)
    assert found.manifest["metrics"]["bits_per_byte"] < found.manifest["before"]["bits_per_byte"]
    words = [f"run={run_dir}", "prompt=The quick", "tokens=3", "window=consolidated/1..1"]
    assert cli.answer("generate", words) == 0
    assert capsys.readouterr().out.startswith("The quick")


# --- teachers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Run:
    """Four components; students are small."""
    folder = tmp_path_factory.mktemp("four")
    config = of_images(folder, 6, 5, components=4, student={"width": 4})
    return Run(keep(config, folder / "run"))


@pytest.mark.parametrize(
    ("window", "assistants", "expected"),
    [
        ((3, 3), None, "0..3 1..3 2..3 3..3"),
        ((2, 2), None, "0..3 1..3 2..3 2..2"),
        ((0, 1), None, "0..3 0..2 0..1"),
        ((3, 3), [], "0..3 3..3"),
        ((3, 3), [(2, 3)], "0..3 2..3 3..3"),
    ],
)
def test_assistants_lead_from_the_chain_to_the_window(four, window, assistants, expected):
    assert " ".join(map(str, way(four, Name(*window), assistants))) == expected


@pytest.mark.parametrize(
    ("window", "assistants", "says"),
    [
        ((1, 2), [(3, 3)], r"from large to small; got window 3\.\.3 .*, then window 1\.\.2"),
        ((3, 3), [(2, 5)], r"window=2\.\.5: expected j\.\.i"),
        ((1, 3), None, r"assistants=all: expected a model between chain 0\.\.3 and window 1\.\.3"),
        ((0, 3), [], r"window=0\.\.3: expected a part of the chain"),
    ],
)
def test_teachers_that_are_none_are_refused(four, window, assistants, says):
    with pytest.raises(ConfigError, match=says):
        way(four, Name(*window), assistants)


def test_an_assistant_teaches_as_it_was_trained_and_is_not_kept(run_dir):
    run, kept_back = Run(run_dir), 40
    batches = Batches(run.dataset.keeping_back(kept_back), 0, 16, CPU, split="validation")
    teacher = run.window()
    for bounds in ((1, 2), (2, 2)):
        window, optim = run.window(*bounds), replace(run.config.optim, correction="none")
        optimizer = optimizer_of(window, optim, 6)
        targets, soft = run.assembly.family.targets, SoftTargets(0.5, 4.0)
        together = Together(window, teacher, batches, targets, soft, optimizer)
        score = lambda model: run.score(model, batches)  # noqa: E731
        learn(together, score, steps=6, every=1, patience=0, say=lambda line: None)
        teacher = window
    found = made(run_dir, assistants="1..2")
    assert same(run.model(found.name), teacher)
    assert [stage["teacher"] for stage in found.manifest["stages"]] == ["chain 0..2", "window 1..2"]
    assert [entry.name for entry in consolidated.entries(run_dir)] == [found.name]


# --- where it is used ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entry(trained, tmp_path_factory) -> consolidated.Consolidated:
    """Window 2..2 of a copy. Not to be changed."""
    folder = tmp_path_factory.mktemp("entry")
    return made(shutil.copytree(trained, folder / "run"), steps=20)


def test_models_lists_it_and_names_it_so_that_it_is_found(entry, capsys):
    run_dir = entry.path.parents[1]
    assert cli.answer("models", [str(run_dir), "latency=false", "format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    (row,) = [row for row in rows if row["consolidated"]]
    assert (row["first"], row["last"]) == (2, 2)
    assert row["value"] == entry.manifest["metrics"]["accuracy"]
    assert len(rows) == 7
    words = [str(run_dir), "latency=false", f"min_accuracy={row['value']}", "cost=params"]
    assert cli.answer("models", words) == 0
    told = capsys.readouterr().out
    assert "consolidated 2..2" in told
    named = re.search(r"Chosen: .*mach export \S+ window=(\S+)", told).group(1)
    assert named == "consolidated/2..2"
    mach.load(run_dir, named)


def test_it_is_exported_with_its_story(entry, capsys):
    run_dir = entry.path.parents[1]
    assert cli.answer("export", [str(run_dir), "window=consolidated/2..2"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == run_dir / "exports" / "2..2-consolidated-safetensors"
    description = json.loads((folder / "model.json").read_text())
    assert description["metrics"]["accuracy"] == entry.manifest["metrics"]["accuracy"]
    card = (folder / "README.md").read_text()
    assert "# consolidated 2..2 of run" in card
    assert "trained together for" in card
    x = samples(run_dir)
    exported, own = mach.load(folder, "consolidated/2..2"), mach.load(run_dir, "consolidated/2..2")
    torch.testing.assert_close(exported(x), own(x))
    with pytest.raises(ConfigError, match=r"window=2\.\.2: expected consolidated/2\.\.2, the only"):
        mach.load(folder, "2..2")


def test_it_is_found_by_a_path_that_goes_up_and_down(entry, monkeypatch):
    monkeypatch.chdir(entry.path)
    assert run_of(Path("..") / entry.path.name) == (entry.path.parents[1], "consolidated/2..2")


def test_it_is_predicted_and_served_with_one_exit(entry, tmp_path, capsys):
    run_dir = entry.path.parents[1]
    data = Run(run_dir).config.data.path
    out = tmp_path / "said.csv"
    assert (
        cli.answer("predict", [str(entry.path), "--input", data, "key=x_test", f"out={out}"]) == 0
    )
    labels = [int(line.split(",")[1]) for line in out.read_text().splitlines()[1:]]
    model = mach.load(run_dir, "consolidated/2..2")
    assert labels == model(samples(run_dir)).argmax(-1).tolist()
    predictor = open_predictor(run_dir, "consolidated/2..2")
    assert predictor.exits == ("consolidated 2..2",)
    (only,) = predictor.every(samples(run_dir))
    assert torch.equal(only, model(samples(run_dir)))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "window=1..1"], "run=nowhere: expected a run folder.*no such folder"),
        (["{run}"], "window: expected a value"),
        (["{run}", "window=1..7"], r"window=1\.\.7: expected j\.\.i with 0 <= j <= i <= 2"),
        (["{run}", "window=0..2"], r"window=0\.\.2: expected a part of the chain"),
        (["{run}", "window=consolidated/1..2"], "expected a window of the run"),
        (["{run}", "window=2..2"], r"window=2\.\.2: expected one that has not been cons.*overwr"),
        (["{run}", "window=1..2", "steps=0"], "steps: expected 1 or more; got 0"),
        (["{run}", "window=1..2", "steps=few"], "steps: .*few"),
        (["{run}", "window=1..2", "weight=2"], "weight: expected 0 to 1; got 2"),
        (["{run}", "window=1..2", "temperature=0"], "temperature: expected more than 0; got 0"),
        (["{run}", "window=1..2", "validation=256"], "validation: expected samples of 256 to keep"),
        (["{run}", "window=1..2", "assistants=some"], "assistants: expected none, all, or windows"),
        (["{run}", "window=2..2", "weight=0", "assistants=all"], "assistants: expected none becau"),
        (["{run}", "window=1..2", "optimizer=lion"], "optimizer: expected one of muon, adamw, sgd"),
        (["{run}", "window=1..2", "every=2000"], "every: expected at most steps=1000"),
    ],
)
def test_what_cannot_be_asked_is_refused(entry, capsys, words, says):
    run_dir = entry.path.parents[1]
    before = digests(run_dir)
    assert cli.answer("consolidate", [word.format(run=run_dir) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1
    assert digests(run_dir) == before


def test_a_window_that_does_not_become_better_is_not_written(run_dir, monkeypatch):
    monkeypatch.setattr(Run, "score", lambda *_: {"loss": 1.0, "accuracy": 0.5})
    with pytest.raises(ConsolidationError, match=r"was, accuracy 50\.00 %.*Nothing was written"):
        made(run_dir)
    assert not (run_dir / "consolidated").exists()


def test_what_was_not_consolidated_is_told_with_what_was(entry):
    run_dir = entry.path.parents[1]
    with pytest.raises(CheckpointError, match=r"run has consolidated/2\.\.2\. Make it: mach cons"):
        mach.load(run_dir, "consolidated/1..2")
    with pytest.raises(ConfigError, match=r"expected j\.\.i.* or consolidated/j\.\.i; got 'x/1"):
        mach.load(run_dir, "x/1..2")
    with pytest.raises(ConfigError, match=r"window=1\.\.2: expected consolidated/2\.\.2, the only"):
        mach.load(entry.path, (1, 2))


def one_bit(folder):
    content = bytearray((folder / "window.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "window.safetensors").write_bytes(content)
    return "window.safetensors: damaged or changed: expected SHA-256"


def no_weights(folder):
    (folder / "window.safetensors").unlink()
    return "window.safetensors: expected by consolidated.json beside it"


def no_json(folder):
    (folder / "consolidated.json").write_text("{")
    return r"consolidated.json: expected what `mach consolidate` has written of 2\.\.2"


def another_window(folder):
    text = (folder / "consolidated.json").read_text()
    (folder / "consolidated.json").write_text(text.replace('"first": 2', '"first": 1'))
    return r"written of 2\.\.2; got the window 1\.\.2"


def another_network(folder):
    config = folder.parents[1] / "config.yaml"
    config.write_text(config.read_text().replace("width: 12", "width: 11"))
    return r"bodies.0.block2.contract.bias: expected float32\[11\], got float32\[12\]"


@pytest.mark.parametrize("change", [one_bit, no_weights, no_json, another_window, another_network])
def test_an_entry_that_is_not_as_it_was_written_is_refused(entry, tmp_path, change):
    copied = shutil.copytree(entry.path.parents[1], tmp_path / "run")
    says = change(copied / "consolidated" / "2..2")
    with pytest.raises(CheckpointError, match=says) as told:
        mach.load(copied, "consolidated/2..2")
    assert "\n" not in str(told.value)


def test_an_entry_away_from_its_run_says_where_it_belongs(entry, tmp_path):
    moved = shutil.copytree(entry.path, tmp_path / "a" / "b" / "2..2")
    with pytest.raises(RunFolderError, match="expected a consolidated window in its run folder"):
        mach.load(moved)


# --- samples that are kept back ------------------------------------------------------------------


@pytest.mark.parametrize("used", [None, 60])
def test_what_is_kept_back_was_trained_on_and_is_no_longer(tmp_path, used):
    np.savez(
        tmp_path / "numbers.npz",
        x_train=np.arange(90, dtype="f4")[:, None],
        y_train=np.arange(90) % 3,
        x_test=np.zeros((4, 1), dtype="f4"),
        y_test=np.zeros(4, dtype=int),
    )
    dataset = open_dataset(NpzConfig(path=str(tmp_path / "numbers.npz"), samples=used))
    before = dataset.split("train")
    chosen = np.arange(90) if before.chosen is None else before.chosen
    assert dataset.places == (used or 90)
    after = dataset.keeping_back(20)
    left, kept = after.split("train").chosen, after.split("validation").chosen
    assert len(kept) == 20
    assert after.split("train").samples == (used or 90) - 20
    assert sorted([*left, *kept]) == sorted(chosen)


def test_of_text_the_last_windows_are_kept_back(tmp_path):
    config = make_text(write_text(tmp_path))
    dataset = open_dataset(config.data)
    after = dataset.keeping_back(5)
    tokens = np.concatenate([after.x_train, after.x_validation])
    assert np.array_equal(tokens, dataset.x_train)
    assert len(after.x_validation) == 5 * 12 + 1
    batches = Batches(after, 0, 4, CPU, split="validation")
    assert sum(len(batches.evaluation(b)[0]) for b in range(batches.evaluation_batches())) == 5


@pytest.mark.parametrize("more", range(1, 14))
def test_of_text_there_is_a_whole_window_left_to_train_on(tmp_path, more):
    """Of 12 n + 1 tokens n - 1 windows left 12, and a window has a target after its twelfth."""
    dataset = open_dataset(make_text(write_text(tmp_path)).data)
    dataset = replace(dataset, x_train=dataset.x_train[: 36 + more])
    batches = Batches(dataset.keeping_back(dataset.places - 1), 0, 4, CPU, split="validation")
    assert [tuple(tensor.shape) for tensor in batches.train(0)] == [(4, 12), (4, 12)]
