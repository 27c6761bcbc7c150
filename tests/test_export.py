"""Models of a run as files that need no mach, and what is refused when they are read again."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mach
from kept import CLASSES, keep, of_images
from mach import cli
from mach.config import ExportConfig
from mach.errors import CheckpointError, ConfigError, DataError, ExportError, RunFolderError
from mach.export.check import agreement
from mach.export.export import _refuse_disagreement, _refuse_loss, export
from mach.export.folder import signed
from mach.export.layers import LAYERS
from mach.inference import Run
from mach.secrets import HIDDEN
from reported import inspect
from spawn import MACH, run
from texts import make as make_text
from texts import write_text

FORMATS = ["safetensors", "torch", "onnx"]
SAMPLES = 1000


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three components, pictures of 6 x 5, with as many test samples as are compared."""
    folder = tmp_path_factory.mktemp("images")
    return keep(of_images(folder, 6, 5, test=SAMPLES), folder / "run")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A language model of two components."""
    folder = tmp_path_factory.mktemp("text")
    data = {"test_fraction": 0.2, "test_samples": SAMPLES}
    config = make_text(write_text(folder), data=data, student={"enabled": True}, steps=2)
    return keep(config, folder / "run")


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory) -> dict[str, Path]:
    """Window 1..2 of the pictures in every format."""
    folder = tmp_path_factory.mktemp("exported")
    return {kind: write(images, folder / kind, kind, window="1..2") for kind in FORMATS}


def test_an_exported_model_is_kept_by_wandb_where_checkpoints_are(tmp_path, monkeypatch):
    """Offline here: read back from wandb's own file."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = of_images(tmp_path, 6, 5, report={"artifacts": "always", "tags": ["mine"]})
    run_dir = keep(config, tmp_path / "run")
    command = [*MACH, "export", str(run_dir), "window=1..2"]
    done = run(command, tmp_path, deadline_s=60)
    assert done.code == 0, done
    assert done.stderr == "", done
    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    records = inspect(file)
    (kept,) = [r["artifact"] for r in records if r["type"] == "artifact"]
    (told,) = [r["run"] for r in records if r["type"] == "run"]
    assert (told["job_type"], told["run_group"], told["tags"]) == ("export", "run", ["mine"])
    assert kept["type"] == "model"
    assert sorted(kept["aliases"]) == ["latest", "step-4"]
    files = {entry["path"] for entry in kept["manifest"]["contents"]}
    assert files == {path.name for path in (run_dir / "exports" / "1..2-safetensors").iterdir()}


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """Safetensors that may be changed."""
    return shutil.copytree(exported["safetensors"], tmp_path / "copy")


def write(run_dir: Path, out: Path, kind: str, **options: object) -> Path:
    return export(ExportConfig(str(run_dir), format=kind, out=str(out), **options))


def samples_of(run_dir: Path) -> np.ndarray:
    """Test samples as the data has them."""
    dataset = Run(run_dir).dataset
    if dataset.y_test is not None:
        return np.asarray(dataset.x_test).astype("f4")
    context = dataset.task.sample.shape[0]
    tokens = np.asarray(dataset.x_test).astype("i8")
    return np.lib.stride_tricks.sliding_window_view(tokens, context)[:SAMPLES].copy()


def expected_of(run_dir: Path, window: tuple[int, int]) -> torch.Tensor:
    """The logits of the run's own module on them, standardised here."""
    found, x = Run(run_dir), torch.from_numpy(samples_of(run_dir))
    if x.is_floating_point():
        x = (x - found.dataset.mean) / found.dataset.std
    with torch.no_grad():
        return found.window(*window)(x)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To float32's rounding: other batches and other programs sum in another order."""
    assert len(expected) >= SAMPLES
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# --- in Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, (0, 1), (2, 2), "1..2"])
def test_load_gives_the_module_of_a_run(images, window):
    bounds = {None: (0, 2), "1..2": (1, 2)}.get(window, window)
    model = mach.load(images, window)
    assert not model.training
    with torch.no_grad():
        close(model(torch.from_numpy(samples_of(images))), expected_of(images, bounds))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_language_model_that_sees_one_token_has_no_fewer(tmp_path, kind):
    """A length from 1 to 1 is none that torch.export can vary."""
    config = make_text(write_text(tmp_path), 1, data={"context": 1}, steps=1)
    folder = write(keep(config, tmp_path / "run"), tmp_path / "exported", kind)
    assert json.loads((folder / "model.json").read_text())["check"]["max_difference"] < 1e-5


def test_logits_bound_how_many_windows_are_compared_at_once(text, monkeypatch):
    """64 of them with a large vocabulary took more memory than the training had."""
    monkeypatch.setattr("mach.inference._LOGITS", 3 * 12 * 256)
    found, seen = Run(text), []
    model = found.window()

    def watched(x):
        seen.append(len(x))
        return model(x)

    assert agreement(found, model, watched, samples=8).max_difference == 0
    assert seen == [3, 3, 2]


def test_bytes_are_taken_as_they_are(images):
    model, x = mach.load(images), torch.from_numpy(samples_of(images))
    assert torch.equal(model(x), model(x.to(torch.uint8)))


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_an_exported_model_takes_bytes_too(exported, images, kind):
    model, x = mach.load(exported[kind]), torch.from_numpy(samples_of(images))
    for dtype in (torch.uint8, torch.float64, torch.int32):
        assert torch.equal(model(x), model(x.to(dtype)))


@pytest.mark.parametrize("window", [1, (1,), (0, 1, 2), (0, "2")])
def test_a_window_that_is_none_is_refused(images, window):
    with pytest.raises(ConfigError, match=r'window: expected \(j, i\) or "j..i"; got'):
        mach.load(images, window)


def test_a_run_folder_may_be_called_as_it_pleases(images, tmp_path, monkeypatch, capsys):
    shutil.copytree(images, tmp_path / "sweep.bin")
    assert mach.load(tmp_path / "sweep.bin") is not None
    (tmp_path / "run").symlink_to(images)  # as the first argument is called
    monkeypatch.chdir(tmp_path)
    assert cli.answer("models", ["run", "latency=false"]) == 0, capsys.readouterr().err


def test_a_run_whose_data_has_changed_or_gone_is_refused(tmp_path):
    config = of_images(tmp_path, 6, 5)
    run_dir = keep(config, tmp_path / "run")
    file = Path(config.data.path)
    with np.load(file) as arrays:
        content = dict(arrays)
    np.savez(file, **{**content, "x_train": content["x_train"] // 2 + 3})
    with pytest.raises(DataError, match="expected the data it was trained on, whose features"):
        mach.load(run_dir)
    file.unlink()
    with pytest.raises(DataError, match=r"It is .*run/config.yaml that has data.path"):
        mach.load(run_dir)
    np.savez(file, **content)
    assert mach.load(run_dir) is not None


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
@pytest.mark.parametrize("place", ["folder", "file"])
def test_load_gives_the_module_of_an_exported_folder(images, exported, kind, place):
    folder = exported[kind]
    model = mach.load(folder if place == "folder" else folder / f"model.{kind}")
    with torch.no_grad():
        close(model(torch.from_numpy(samples_of(images))), expected_of(images, (1, 2)))


# --- without mach ------------------------------------------------------------------------------

WITHOUT_MACH = """
import sys
sys.path[:0] = [{packages!r}, {folder!r} + "/safetensors"]
try:
    import mach
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("mach is here")
import numpy as np
x = np.load({folder!r} + "/x.npy")

import onnxruntime
(logits,) = onnxruntime.InferenceSession({folder!r} + "/onnx/model.onnx").run(None, {{"x": x}})
np.save({folder!r} + "/onnx.npy", logits)

import torch
x = torch.from_numpy(x)
from model import load
with torch.no_grad():
    np.save({folder!r} + "/safetensors.npy", load()(x).numpy())
    program = torch.export.load({folder!r} + "/torch/model.pt2").module()
    np.save({folder!r} + "/torch.npy", program(x).numpy())
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """All that is installed but mach."""
    folder = tmp_path_factory.mktemp("packages")
    (installed,) = {Path(package.__file__).parents[1] for package in (np, torch)}
    for entry in installed.iterdir():
        if not re.match(r"(__editable__[_.]*)?mach([-_.]|$)", entry.name):
            (folder / entry.name).symlink_to(entry)
    return folder


def agree_without_mach(run_dir: Path, window: tuple[int, int], folder: Path, packages: Path):
    np.save(folder / "x.npy", samples_of(run_dir))
    code = WITHOUT_MACH.format(packages=str(packages), folder=str(folder))
    done = run([sys.executable, "-I", "-S", "-B", "-c", code], folder, deadline_s=280)
    assert done.code == 0, done
    expected = expected_of(run_dir, window)
    for kind in FORMATS:
        close(torch.from_numpy(np.load(folder / f"{kind}.npy")), expected)


@pytest.mark.timeout(300)
def test_an_exported_window_needs_no_mach(images, exported, packages, tmp_path):
    for kind, folder in exported.items():
        (tmp_path / kind).symlink_to(folder)
    agree_without_mach(images, (1, 2), tmp_path, packages)


@pytest.mark.timeout(300)
def test_an_exported_language_model_needs_no_mach(text, packages, tmp_path):
    for kind in FORMATS:
        write(text, tmp_path / kind, kind, window="1..1", samples=100)
    agree_without_mach(text, (1, 1), tmp_path, packages)


# --- every family ------------------------------------------------------------------------------

NETWORKS = {
    "mlp": {"name": "mlp", "width": 12, "blocks": 2},
    "resnet": {"name": "resnet", "layers": 14, "width": 4, "groups": 2},
    "batch norm": {"name": "resnet", "layers": 14, "width": 4, "norm": "batch"},
    "own": {"name": "custom", "factory": "brought:picture"},
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_family_of_images_is_exported_with_all_its_windows(network, tmp_path):
    run_dir = keep(of_images(tmp_path, 8, 8, model=network), tmp_path / "run")
    for window in ("0..2", "1..2", "2..2"):
        folder = write(run_dir, tmp_path / window, "safetensors", window=window)
        check = json.loads((folder / "model.json").read_text())["check"]
        assert check["same_answer"] == 1
        assert check["max_difference"] <= 1e-5 * max(1, check["max_logit"])


def test_a_tied_model_stores_its_table_once(tmp_path):
    config = make_text(write_text(tmp_path), components=1, model={"tied": True}, steps=2)
    folder = write(keep(config, tmp_path / "run"), tmp_path / "out", "safetensors")
    assert "head.linear.weight" not in load_file(folder / "model.safetensors")
    model = mach.load(folder)
    assert model.head.linear.weight is model.bodies[0].stem.tokens.weight


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_layers_of_ones_own_need_a_format_without_source(kind, tmp_path):
    own = {"name": "custom", "factory": "brought:flat"}
    run_dir = keep(of_images(tmp_path, 8, 8, model=own), tmp_path / "run")
    if kind != "safetensors":
        write(run_dir, tmp_path / "out", kind)
        return
    says = "brought.Residual, whose source mach does not have. Set format=torch or format=onnx"
    with pytest.raises(ConfigError, match=says):
        write(run_dir, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_layers_have_names_of_their_own():
    assert len({kind.__name__ for kind in LAYERS.values()}) == len(LAYERS)
    assert {"FlatEmbed", "Embed", "Window", "Standardise"} <= LAYERS.keys()


def test_a_layer_that_is_there_twice_is_written_once(tmp_path):
    own = {"name": "custom", "factory": "brought:twice"}
    config = of_images(tmp_path, 8, 8, test=SAMPLES, model=own, components=1)
    run_dir = keep(config, tmp_path / "run")
    folder = write(run_dir, tmp_path / "out", "safetensors")
    model = mach.load(folder)
    with torch.no_grad():
        close(model(torch.from_numpy(samples_of(run_dir))), expected_of(run_dir, (0, 0)))
    assert len(model.state_dict()) > len({id(t) for t in model.state_dict(keep_vars=True).values()})


# --- what is written -----------------------------------------------------------------------------


def test_the_command_writes_into_the_run(images, capsys):
    words = ["export", str(images), "window=1..2", "--format", "safetensors"]
    assert cli._VERBS[words[0]](words[1:]) == 0
    folder = images / "exports" / "1..2-safetensors"
    assert str(folder) in capsys.readouterr().out
    before = (folder / "model.safetensors").read_bytes()
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, (
        "who may read one reads all"
    )
    assert cli.answer("export", words[1:]) == 0, "once more, in its place"
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_card_says_what_the_model_is(images, exported):
    description = json.loads((exported["onnx"] / "model.json").read_text())
    card = (exported["onnx"] / "README.md").read_text()
    result = json.loads((images / "result.json").read_text())
    window = next(w for w in result["windows"] if (w["first"], w["last"]) == (1, 2))
    assert description["metrics"]["accuracy"] == window["accuracy"]
    assert (description["params"], description["flops"]) == (window["params"], window["flops"])
    for needed in (
        "window 1..2",
        "images.npz: 256 + 1,000 samples",
        f"| accuracy | {window['accuracy']:.6g} |",
        f"| parameters | {window['params']:,} |",
        "on 1,000 test samples",
        "components: 3",
        result["torch"],
        result["git"],
        "Licence",
        "onnxruntime.InferenceSession",
    ):
        assert needed in card


def test_int8_tells_its_accuracy_and_is_smaller(tmp_path):
    config = of_images(tmp_path, 8, 8, model={"name": "mlp", "width": 64}, steps=40)
    run_dir = keep(config, tmp_path / "run")
    write(run_dir, tmp_path / "whole", "safetensors")
    write(run_dir, tmp_path / "int8", "onnx", quantize="int8", max_drop=0.2)
    whole, int8 = (json.loads((tmp_path / n / "model.json").read_text()) for n in ("whole", "int8"))
    assert int8["bytes"] < 0.5 * whole["bytes"]
    assert int8["metrics"]["accuracy"] >= 0.8 * whole["metrics"]["accuracy"]
    card = (tmp_path / "int8" / "README.md").read_text()
    assert "int8" in card
    assert "one sample at a time" in card
    assert "any number at once" not in card
    model, x = mach.load(tmp_path / "int8"), torch.from_numpy(samples_of(run_dir))
    logits = model(x)
    assert logits.shape == (20, CLASSES)
    x[0, 0, 0] = 1e6
    assert torch.equal(model(x)[1:], logits[1:]), "of the others, whatever one of them has"


def test_a_card_tells_no_secret_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    report = {"tags": ["0123456789abcdef", "https://me:pass-word@example.org"]}
    model = {
        "name": "custom",
        "factory": "brought:flat_of_keys",
        "arguments": {"hf_token": "other-secret"},
    }
    run_dir = keep(of_images(tmp_path, 8, 8, model=model, report=report), tmp_path / "run")
    write(run_dir, tmp_path / "out", "torch")
    card = (tmp_path / "out" / "README.md").read_text()
    assert not [s for s in ("0123456789abcdef", "other-secret", "pass-word") if s in card], card
    assert card.count(HIDDEN) == 3


def test_the_time_of_a_resumed_run_is_told_with_the_steps_it_took(images, tmp_path):
    run_dir = shutil.copytree(images, tmp_path / "run")
    result = json.loads((run_dir / "result.json").read_text())
    result |= {"steps": 3000, "first_step": 1000, "wall_s": 80.4}
    (run_dir / "result.json").write_text(json.dumps(result))
    write(run_dir, tmp_path / "out", "safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "in 3,000 steps, the last 2,000 of them in 80 s, by" in card


def test_of_a_run_that_is_where_one_stands_the_card_knows_the_name(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    write(Path(), tmp_path / "out", "safetensors")
    assert (tmp_path / "out" / "README.md").read_text().startswith("# chain 0..2 of run\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [({"accuracy": 0.9}, {"accuracy": 0.8}), ({"bits_per_byte": 2.0}, {"bits_per_byte": 2.1})],
)
def test_int8_that_loses_more_than_it_may_is_refused(before, after):
    config = ExportConfig("run", format="onnx", quantize="int8", max_drop=0.02)
    with pytest.raises(ExportError, match=f"expected {next(iter(before))} to lose at most 2 %"):
        _refuse_loss(config, before, after)
    _refuse_loss(config, after, before)


def test_an_export_that_answers_otherwise_is_not_written(images, tmp_path):
    with pytest.raises(ExportError, match="expected the logits of the run's own model on 1,000"):
        write(images, tmp_path / "out", "onnx", tolerance=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_export_that_answers_with_nan_is_refused(images, quantize):
    def sometimes(x):
        return torch.where(torch.arange(len(x))[:, None] % 2 == 0, 0.0, torch.nan).expand(-1, 4)

    run = Run(images)
    found = agreement(run, run.window(), sometimes, SAMPLES)
    assert np.isnan(found.max_difference)
    config = ExportConfig("run", format="onnx", quantize=quantize)
    with pytest.raises(ExportError, match="expected finite logits on 1,000 test samples"):
        _refuse_disagreement(config, found)


# --- what is refused -----------------------------------------------------------------------------


def test_an_operator_that_onnx_lacks_is_told(tmp_path):
    own = {"name": "custom", "factory": "brought:no_onnx"}
    run_dir = keep(of_images(tmp_path, 4, 4, model=own), tmp_path / "run")
    with pytest.raises(ExportError, match=r"format=onnx: .*i0e.*Set format=torch") as told:
        write(run_dir, tmp_path / "out", "onnx")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "run=nowhere: expected a run folder.*no such folder"),
        (["{run}", "window=1..7"], r"window=1\.\.7: expected j\.\.i with 0 <= j <= i <= 2"),
        (["{run}", "window=1-2"], r"window: expected j\.\.i"),
        (["{run}", "format=pickle"], "format: expected one of safetensors, torch, onnx"),
        (["{run}", "quantize=int8"], "quantize=int8: expected format=onnx.*got safetensors"),
        (["{run}", "out={run}"], "out=.*expected a folder that is not there yet"),
        (["{run}", "out={run}", "overwrite=true"], "expected an exported model to be replaced"),
        (["{run}", "samples=many"], "samples: .*many"),
        ([], "run: expected a value"),
    ],
)
def test_what_cannot_be_exported_is_refused(images, capsys, words, says):
    before = sorted(images.iterdir())
    assert cli.answer("export", [word.format(run=images) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1
    assert sorted(images.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".pt2"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / f"model{suffix}").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match="have to unpickle: that can run any code in it"):
        mach.load(tmp_path / f"model{suffix}")
    assert not (tmp_path / "harm").exists()


def test_a_folder_of_torch_export_is_refused_with_the_reason(exported):
    with pytest.raises(CheckpointError, match=r"model.pt2: .*torch unpickles parts"):
        mach.load(exported["torch"])


def damaged(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    return "expected a file of safetensors"


def a_pickle_in_disguise(folder):
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")
    return "expected a file of safetensors"


def one_bit(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return "model.safetensors: damaged or changed"


def other_shapes(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("expand.weight"))
    save_file({**tensors, name: torch.ones(3, 2)}, file)
    return rf"{name}: expected float32\[48, 12\], got float32\[3, 2\]"


def a_tensor_less(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["window.head.1.bias"]
    save_file(tensors, file)
    return r"window.head.1.bias: expected float32\[4\], got no such tensor"


def no_weights(folder):
    (folder / "model.safetensors").unlink()
    return "model.safetensors: expected by model.json"


def no_json(folder):
    (folder / "model.json").write_text("{")
    return "model.json: expected the description of an exported model"


def a_changed_word(folder):
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"title": "window', '"title": "chain'))
    return "model.json: .*one that was changed: its own digest is another"


def a_key_less(folder):
    description = json.loads((folder / "model.json").read_text())
    del description["files"]
    (folder / "model.json").write_text(json.dumps(signed(description)))
    return "model.json: expected the description of an exported model; got no 'files'"


def endless_json(folder):
    (folder / "model.json").write_text("[" * 100_000)
    return "model.json: expected the description of an exported model"


def rewritten(folder, before, after):
    """As by somebody who knows how it is signed."""
    text = (folder / "model.json").read_text()
    assert before in text
    changed = signed(json.loads(text.replace(before, after)))
    (folder / "model.json").write_text(json.dumps(changed))


def unknown_class(folder):
    rewritten(folder, '"nn.LayerNorm"', '"os.system"')
    return "os.system, which is no class of torch.nn and none that is known here"


def impossible_size(folder):
    rewritten(folder, " 48", " -48")
    return "model.json: expected the description of a model; got"


def no_module(folder):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(signed({**description, "module": 5})))
    return "model.json: expected the description of a model; got 5, which is no module"


@pytest.mark.parametrize(
    "change",
    [
        damaged,
        a_pickle_in_disguise,
        one_bit,
        other_shapes,
        a_tensor_less,
        no_weights,
        no_json,
        a_key_less,
        endless_json,
        a_changed_word,
        unknown_class,
        impossible_size,
        no_module,
    ],
)
def test_what_is_not_as_it_was_written_is_refused(copy, change):
    says = change(copy)
    with pytest.raises(CheckpointError, match=says) as told:
        mach.load(copy)
    assert "\n" not in str(told.value)


def test_an_onnx_file_that_is_none_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported["onnx"], tmp_path / "copy")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"model.onnx: damaged or changed"):
        mach.load(folder)


def test_another_window_than_the_exported_one_is_refused(exported):
    with pytest.raises(ConfigError, match=r"window=0\.\.2: expected 1\.\.2, the only one"):
        mach.load(exported["safetensors"], (0, 2))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"expected a run folder.*a folder with neither"):
        mach.load(tmp_path)
    with pytest.raises(RunFolderError, match=r"expected a run folder.*nothing there"):
        mach.load(tmp_path / "gone")
