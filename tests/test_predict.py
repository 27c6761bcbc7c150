"""What a model says of samples in files, folders and streams."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kept import CLASSES
from mach import cli
from mach.asking.inputs import samples_in
from mach.asking.samples import batch_of
from mach.config import ExportConfig
from mach.errors import InputError
from mach.export.export import export
from mach.inference import Run
from mach.signature import Signature, signature_of
from spawn import MACH, run

SHAPE = (6, 5)
LONG = "a" * 256
"""As no file system names a file: of such a path Python raises what it does not of one that is not
there, as of a folder that is somebody else's."""


def predict(*words: object, capsys) -> str:
    assert cli.answer("predict", list(map(str, words))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def rows(told: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(told)))


def logits_of(run_dir: Path, window: tuple[int, int] = (0, 2)) -> torch.Tensor:
    found = Run(run_dir)
    x = torch.from_numpy(np.asarray(found.dataset.x_test).astype("f4"))
    with torch.no_grad():
        return found.window(*window)((x - found.dataset.mean) / found.dataset.std)


def data_of(run_dir: Path) -> str:
    return Run(run_dir).config.data.path


# --- images and vectors --------------------------------------------------------------------------


def test_a_line_is_written_for_every_sample_of_an_npz(asked_images, capsys):
    code = cli.answer(
        "predict", [str(asked_images), "--input", data_of(asked_images), "window=1..2"]
    )
    told, beside = capsys.readouterr()
    expected = logits_of(asked_images, (1, 2))
    found = rows(told)
    assert code == 0
    assert [row["sample"] for row in found] == [str(i) for i in range(70)]
    assert [int(row["label"]) for row in found] == expected.argmax(-1).tolist()
    for row, value in zip(found, expected.softmax(-1).amax(-1).tolist(), strict=True):
        assert float(row["probability"]) == pytest.approx(value, rel=1e-4)
    accuracy = (expected.argmax(-1).numpy() == np.asarray(Run(asked_images).dataset.y_test)).mean()
    assert beside == f"accuracy {accuracy:.6g} of 70 samples\n"


def test_all_probabilities_and_the_next_best_are_told_on_demand(asked_images, capsys):
    words = [
        asked_images,
        f"input={data_of(asked_images)}",
        "format=jsonl",
        "top=2",
        "probabilities=true",
    ]
    lines = [json.loads(line) for line in predict(*words, capsys=capsys).splitlines()]
    expected = logits_of(asked_images).softmax(-1)
    for line, row in zip(lines, expected, strict=True):
        assert [line[f"p{c}"] for c in range(CLASSES)] == pytest.approx(row.tolist(), abs=1e-5)
        assert line["label_2"] == int(row.topk(2).indices[1])


def test_an_exported_folder_says_the_same(asked_images, tmp_path, capsys):
    export(ExportConfig(str(asked_images), window="1..2", out=str(tmp_path / "out")))
    words = [f"input={data_of(asked_images)}"]
    assert predict(tmp_path / "out", *words, capsys=capsys) == predict(
        asked_images, "window=1..2", *words, capsys=capsys
    )


def test_a_folder_of_pictures_is_read_by_name(asked_images, tmp_path, capsys):
    signature = signature_of(Run(asked_images))
    assert (signature.low, signature.high) == (0, 255)
    x = np.asarray(Run(asked_images).dataset.x_test)
    for i in range(3):
        Image.fromarray(x[i]).save(tmp_path / f"{2 - i}.png")
    np.save(tmp_path / "z.npy", x[3])
    found = rows(predict(asked_images, f"input={tmp_path}", capsys=capsys))
    assert [row["sample"] for row in found] == ["0.png", "1.png", "2.png", "z.npy"]
    labels = logits_of(asked_images).argmax(-1)[[2, 1, 0, 3]].tolist()
    assert [int(row["label"]) for row in found] == labels


@pytest.mark.parametrize("style", ["csv", "jsonl", "nested"])
def test_lines_are_read_from_a_file(asked_images, tmp_path, capsys, style):
    x = np.asarray(Run(asked_images).dataset.x_test)[:3]
    lines = {
        "csv": [",".join(map(str, row.ravel())) for row in x],
        "jsonl": [json.dumps(row.ravel().tolist()) for row in x],
        "nested": [json.dumps(row.tolist()) for row in x],
    }[style]
    file = tmp_path / "lines.txt"
    file.write_text("\n".join([*lines, ""]))
    found = rows(predict(asked_images, f"input={file}", capsys=capsys))
    assert [int(row["label"]) for row in found] == logits_of(asked_images)[:3].argmax(-1).tolist()


def test_a_stream_is_answered_line_by_line(asked_images, capsys, monkeypatch):
    x = np.asarray(Run(asked_images).dataset.x_test)[:2]
    lines = [*(json.dumps(row.tolist()) for row in x), "1,2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert cli.answer("predict", [str(asked_images), "input=-", "batch=1"]) == 2
    told, beside = capsys.readouterr()
    labels = [int(row["label"]) for row in rows(told)]
    assert labels == logits_of(asked_images)[:2].argmax(-1).tolist(), "those before it are answered"
    assert "sample 2: expected numbers of shape [samples, 6, 5]; got shape [1, 2]" in beside


def test_a_file_appears_when_it_is_complete(asked_images, tmp_path, capsys):
    out = tmp_path / "out.csv"
    predict(asked_images, f"input={data_of(asked_images)}", f"out={out}", capsys=capsys)
    assert len(rows(out.read_text())) == 70
    before = out.read_text()
    bad = tmp_path / "bad.npy"
    np.save(bad, np.full((100, *SHAPE), [1.0] * 4 + [math.nan], "f4"))
    assert cli.answer("predict", [str(asked_images), f"input={bad}", f"out={out}"]) == 2
    assert out.read_text() == before
    assert sorted(tmp_path.iterdir()) == [bad, out]


def test_a_device_is_written_to_and_stays_what_it_is(asked_images, tmp_path, capsys):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reads = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        predict(asked_images, f"input={data_of(asked_images)}", f"out={fifo}", capsys=capsys)
        assert len(rows(os.read(reads, 1 << 16).decode())) == 70
    finally:
        os.close(reads)
    assert fifo.is_fifo()


def test_a_table_that_excel_has_written_is_read(asked_images, tmp_path, capsys):
    x = np.asarray(Run(asked_images).dataset.x_test)[:2]
    text = "\r\n".join(",".join(map(str, row.ravel())) for row in x)
    (tmp_path / "x.csv").write_bytes(text.encode("utf-8-sig"))
    found = rows(predict(asked_images, f"input={tmp_path / 'x.csv'}", capsys=capsys))
    assert [int(row["label"]) for row in found] == logits_of(asked_images)[:2].argmax(-1).tolist()


# --- text ----------------------------------------------------------------------------------------


def bits_per_byte(run_dir: Path, said: str) -> float:
    """Window by window, each token from those of its own window."""
    found = Run(run_dir)
    tokens, context = torch.tensor(list(said.encode())), found.config.data.context
    model, bits = found.window(), 0.0
    for start in range(0, len(tokens) - 1, context):
        x, y = tokens[start : start + context], tokens[start + 1 : start + context + 1]
        with torch.no_grad():
            logits = model(x[None, : len(y)])
        bits += float(F.cross_entropy(logits, y, reduction="sum")) / math.log(2)
    return bits / (len(tokens) - 1)


def test_texts_as_json_and_all_probabilities_of_what_follows(asked_text, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps("The quick\nbrown"))
    words = [f"input={tmp_path / 'a.jsonl'}", "format=jsonl", "probabilities=true"]
    line = json.loads(predict(asked_text, *words, capsys=capsys))
    assert line["tokens"] == len("The quick\nbrown")
    every = [line[f"p{c}"] for c in range(256)]
    assert sum(every) == pytest.approx(1, abs=1e-4)
    assert max(every) == pytest.approx(line["probability"])


@pytest.mark.parametrize("said", ["The quick brown fox jumps over it", "The quick brown", "Th"])
def test_a_text_is_read_whatever_its_length(asked_text, tmp_path, capsys, said):
    (tmp_path / "a.txt").write_text(f"{said}\n")
    (row,) = rows(predict(asked_text, f"input={tmp_path / 'a.txt'}", "top=2", capsys=capsys))
    assert float(row["bits_per_byte"]) == pytest.approx(bits_per_byte(asked_text, said), rel=1e-4)
    assert int(row["tokens"]) == len(said)
    found = Run(asked_text)
    with torch.no_grad():
        last = found.window()(torch.tensor([list(said.encode())[-found.config.data.context :]]))[-1]
    assert row["next"] == chr(int(last.argmax()))
    assert float(row["probability"]) == pytest.approx(float(last.softmax(-1).max()), rel=1e-4)


def test_one_token_predicts_the_next_and_has_no_bits(asked_text, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("T\n")
    (row,) = rows(predict(asked_text, f"input={tmp_path / 'a.txt'}", capsys=capsys))
    assert row["bits_per_byte"] == ""
    assert row["next"]


def test_a_folder_of_texts_is_read_whole(asked_text, tmp_path, capsys):
    (tmp_path / "b.txt").write_text("The quick\nbrown fox\n")
    (row,) = rows(predict(asked_text, f"input={tmp_path}", "window=1..1", capsys=capsys))
    assert (row["sample"], row["tokens"]) == ("b.txt", "20")


# --- what is refused -----------------------------------------------------------------------------


def a_file(folder: Path, kind: str) -> Path:
    """Something that no model of pictures of 6 x 5 can be asked about."""
    good = np.ones((2, *SHAPE), "f4")
    bad = good.copy()
    bad[1, 2, 3] = np.nan
    arrays = {
        "nan": bad,
        "infinite": good * np.inf,
        "beyond float32": good.astype("f8") * 1e300,
        "text": good.astype(str),
        "shape": np.ones((2, 7), "f4"),
        "none": np.ones((0, *SHAPE), "f4"),
    }
    if kind in arrays:
        np.save(folder / "x.npy", arrays[kind])
        return folder / "x.npy"
    if kind == "pickle":
        np.save(folder / "x.npy", np.array([{}, {}], object), allow_pickle=True)
        return folder / "x.npy"
    if kind.startswith("labels"):
        y = {"objects": [{}, {}], "one-hot": np.eye(2, dtype=int), "words": ["a", "b"]}
        y |= {"too many": np.zeros(20, int), "too few": [1], "none": np.zeros(0, int)}
        with_objects = {"y": np.array(y[kind.partition(" ")[2]])}
        np.savez(folder / "x.npz", x=good[:2], **with_objects)
        return folder / "x.npz"
    if kind == "number":
        np.savez(folder / "x.npz", x=np.float32(1))
        return folder / "x.npz"
    if kind == "header":
        (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x0f\x00{'descr': (((((\n" + bytes(99))
        return folder / "x.npy"
    if kind in ("16 bits", "transparent"):
        deep = Image.fromarray(np.full(SHAPE, 60_000, "u2"))
        (deep if kind == "16 bits" else Image.new("LA", SHAPE[::-1])).save(folder / "x.png")
        return folder
    if kind == "keys":
        np.savez(folder / "x.npz", a=good, b=good)
        return folder / "x.npz"
    if kind == "size":
        Image.new("L", (9, 9)).save(folder / "x.png")
        return folder
    if kind == "damaged":
        (folder / "x.png").write_bytes(b"no picture")
        return folder
    if kind == "empty":
        return folder
    lines = {
        "words": "a,b,c",
        "json": "[1, 2",
        "null": json.dumps([[None] * 5] * 6),
        "nested": "[" * 100_000,
        "nothing": "\n\n",
    }
    (folder / "x.csv").write_text(lines[kind])
    return folder / "x.csv"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", r"sample 1: expected finite numbers within float32; got nan at \[2, 3\]"),
        ("infinite", "sample 0: expected finite numbers within float32; got inf"),
        ("beyond float32", "expected finite numbers within float32; got 1e\\+300"),
        ("text", r"x.npy: expected numbers, with samples along the first axis; got <U"),
        ("number", r"x.npz: expected numbers, with samples .*; got float32\[\]"),
        (
            "header",
            "x.npy: expected an array of numbers; it cannot .*Write the file again",
        ),
        ("labels objects", "cannot be read: Object arrays cannot be loaded"),
        ("labels one-hot", r"y: expected one class number for each sample.*; got int64\[2, 2\]"),
        ("labels words", r"y: expected one class number for each sample.*; got <U1\[2\]"),
        ("labels too many", "x.npz: y: expected a class .* each of the 2 samples in x; got 20"),
        ("labels too few", "x.npz: y: expected a class .* each of the 2 samples in x; got 1"),
        ("labels none", "x.npz: y: expected a class .* each of the 2 samples in x; got 0"),
        ("16 bits", "x.png: expected 8 bits a pixel and colour; got the mode I"),
        ("transparent", "x.png: expected an image without transparent pixels"),
        ("nested", "line 1: expected a JSON array"),
        ("nothing", "expected one sample or more; got none"),
        ("shape", r"expected numbers of shape \[samples, 6, 5\]; got shape \[1, 7\]"),
        ("pickle", "cannot be read: .*Python objects"),
        ("keys", "expected an array x or x_test; got a, b. Set key=NAME"),
        ("size", "expected 5 x 6 pixels; got 9 x 9. Resize it"),
        ("damaged", "expected an image; it cannot be read"),
        ("empty", "expected files; the folder is empty"),
        ("words", "line 1: expected a JSON array, or numbers with commas"),
        ("json", "line 1: expected a JSON array, or numbers with commas"),
        ("null", "sample 0: expected numbers of shape .*; got None"),
    ],
)
def test_samples_the_model_cannot_be_asked_about_are_refused(
    asked_images, tmp_path, capsys, kind, says
):
    path = a_file(tmp_path, kind)
    assert cli.answer("predict", [str(asked_images), f"input={path}"]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "input=x.npz"], "nowhere: expected a run folder"),
        (["{run}", "input=gone.npz"], "input=gone.npz: expected a file, a folder or -; nothing"),
        (["{run}", "input={run}/config.yaml"], r"expected \.npz.*got \.yaml"),
        (["{run}", "input=-", "window=9..9"], r"window=9\.\.9: expected j\.\.i"),
        (["{run}", "input=-", "format=xml"], "format: expected one of csv, jsonl"),
        (["{run}"], "input: expected a value"),
        (["{run}", f"input={LONG}"], r"input=a+: expected a path .*; File name too long\.$"),
        (
            ["{run}", "input=~$table.csv"],
            r"input=~\$table.csv: .* a ~ that is nobody's home. Write",
        ),
        (
            ["{run}", "input={data}", f"out={LONG}"],
            "out=a+: expected a path .*; File name too long",
        ),
        ([LONG, "input=-"], "a+: expected a path .*; File name too long"),
        (["~$run", "input=-"], r"~\$run: expected a path; got a ~ that is nobody's home"),
        (["{run}", "input={data}", "out="], "out=: expected the name of a file; got a folder"),
        (["{run}", "input={data}", "out=/"], "out=/: expected the name of a file; got a folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked_images, capsys, words, says):
    named = {"run": asked_images, "data": data_of(asked_images)}
    assert cli.answer("predict", [word.format(**named) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
    assert told.count("\n") == 1


@pytest.mark.parametrize("verb", ["serve", "export", "generate", "models", "report"])
def test_a_path_that_the_system_refuses_is_no_run(verb, capsys):
    """It was a traceback."""
    assert cli.answer(verb, [LONG, *(["prompt=To be"] if verb == "generate" else [])]) == 2
    told = capsys.readouterr().err
    assert re.search("a+: expected a path that can be looked at; File name too long", told), told
    assert told.count("\n") == 1


def test_a_file_is_utf_8_in_any_locale(asked_text, tmp_path):
    (tmp_path / "a.txt").write_text("The quick\n")
    words = [str(asked_text), "input=a.txt", "out=a.csv", "top=256"]  # halves of characters, too
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run([*MACH, "predict", *words], tmp_path, **ascii_alone)
    assert done.code == 0, done
    (row,) = rows((tmp_path / "a.csv").read_text(encoding="utf-8"))
    assert "\N{REPLACEMENT CHARACTER}" in row.values()


@pytest.mark.parametrize("place", ["x.npy", "x.npz", "folder"])
def test_a_language_model_takes_the_tokens_of_a_text_as_well(asked_text, tmp_path, capsys, place):
    """As the service does; of a folder it was told to bring .npy, and then that it had numbers."""
    (tmp_path / "a.txt").write_text("The quick\n")
    expected = rows(predict(asked_text, f"input={tmp_path / 'a.txt'}", capsys=capsys))
    tokens = np.array(list(b"The quick"))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "0", tokens)
    np.save(tmp_path / "x.npy", tokens[None])
    np.savez(tmp_path / "x.npz", x=tokens[None])
    found = rows(predict(asked_text, f"input={tmp_path / place}", capsys=capsys))
    assert [{**row, "sample": "0"} for row in found] == expected
    np.save(tmp_path / "x.npy", [[300]])
    assert cli.answer("predict", [str(asked_text), f"input={tmp_path / 'x.npy'}"]) == 2
    assert "sample 0: expected tokens 0 to 255; got 300" in capsys.readouterr().err


def test_text_that_is_none_is_refused(asked_text, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    assert cli.answer("predict", [str(asked_text), f"input={tmp_path}"]) == 2
    assert "expected a text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["To be", "To be, or not to be. " * 20])
def test_where_a_text_is_given_as_the_name_of_a_file_it_is_told_where_it_goes(
    asked_text, capsys, text
):
    assert cli.answer("predict", [str(asked_text), f"input={text}"]) == 2
    told = capsys.readouterr().err
    assert told.endswith("A text goes in a .txt file, or through -.\n"), told
    assert told.count("\n") == 1


def test_a_stream_that_is_no_text_is_refused(asked_text, capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"to be\ncaf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    assert cli.answer("predict", [str(asked_text), "input=-"]) == 2
    assert "standard input: expected lines of text; it cannot be" in capsys.readouterr().err


def test_a_text_is_no_sample_of_a_model_whose_tokenizer_nobody_knows(tmp_path):
    (tmp_path / "a.txt").write_text("to be")
    signature = Signature((2,), 256, "bits_per_token", True, True, True, None, 0, 255)
    with pytest.raises(InputError, match=r"a.txt: expected .npy; got .txt"):
        list(samples_in(str(tmp_path), None, signature))


@pytest.mark.parametrize(
    "values", [[[1, 300]], [[1, -1]], [[0.5, 1]], [[math.nan, 1]], [[1e30, 1]]]
)
def test_tokens_outside_the_vocabulary_are_refused(values):
    signature = Signature((2,), 256, "bits_per_token", True, True, True, None, 0, 255)
    assert batch_of([[1, 2]], signature).tolist() == [[1, 2]]
    assert batch_of([[7]], signature).tolist() == [[7]]
    with pytest.raises(InputError, match="expected tokens 0 to 255; got"):
        batch_of(values, signature)
