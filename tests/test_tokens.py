"""Do tokens mean the text they came from, and is a model measured in bytes of it?"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn
from torch.nn import functional as F

from mach import checkpoint, cli
from mach.asking import predict
from mach.asking.answers import read
from mach.choice.latency import latencies
from mach.config import ServeConfig, TextConfig, TokensConfig
from mach.configfile import from_mapping
from mach.data import Batches, Dataset, check, encoding, open_dataset, tokenizers
from mach.data.files import Array
from mach.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    refuse_other,
    restore,
)
from mach.errors import CheckpointError, DataError
from mach.launcher.compose import compose
from mach.launcher.preflight import preflight
from mach.metrics import Score, Task
from mach.predictor import Predictor
from mach.serve.app import create_app
from mach.shapes import TensorSpec
from mach.signature import Signature
from mach.trainer import Oracle

CPU = torch.device("cpu")
TEXT = "Ζεύς ate the thin theatre's 3 naïve hens; 東京 🚀\n\n  then_\nthe 10\n end.\n" * 12
"""Characters of one to four bytes, and lines that end in words, signs, digits and spaces."""

PLUGIN = """
def words():
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"th", b"he", b" t", b"the", b" the", b"\\n\\n"):
        ranks[token] = len(ranks)
    special = {"<|end|>": 265}  # 262 to 264 are no tokens
    pattern = r" ?[A-Za-z]+|\\n+|[^A-Za-z\\n]"
    parts = {"pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": special}
    return {"name": "words", **parts}

def spaces():
    pattern = r"\\S+|\\s+(?!\\S)|\\s"  # of white space what gpt2 has
    ranks = {bytes([byte]): byte for byte in range(256)}
    return {"name": "spaces", "pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": {}}

ENCODING_CONSTRUCTORS = {"words": words, "spaces": spaces}
"""


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An encoding of our own, made known to tiktoken as its documentation says; in children too."""
    registry = pytest.importorskip("tiktoken.registry")
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "tiktoken_ext").mkdir()
    (folder / "tiktoken_ext" / "mach_words.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        patch.setattr(registry, "ENCODING_CONSTRUCTORS", None)
        registry._available_plugin_modules.cache_clear()
        yield
    registry._available_plugin_modules.cache_clear()


def text_config(folder: Path, text: str | bytes = TEXT, **options: object) -> TextConfig:
    path = folder / "text.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return TextConfig(
        **{  # type: ignore[arg-type]
            "path": str(path),
            "cache": str(folder / "cache"),
            "context": 8,
            "test_fraction": 0.3,
            **options,
        }
    )


def tokens_config(folder: Path, **options: object) -> TokensConfig:
    numbers = np.arange(600) % 251
    numbers.astype("u2").tofile(folder / "train.bin")
    numbers[:100].astype("u2").tofile(folder / "test.bin")
    given = {"train": str(folder / "train.bin"), "vocabulary": 251, "context": 8, **options}
    return TokensConfig(**given)  # type: ignore[arg-type]


def train(config: TextConfig | TokensConfig, **overrides: object) -> tuple[Oracle, dict]:
    values = {
        "components": 1,
        "steps": 2,
        "microbatch_size": 4,
        "model": {"name": "mlp", "width": 8},
        "data": vars(config) | {"test_samples": 16},
        **overrides,
    }
    run = from_mapping(values)
    oracle = Oracle(run, open_dataset(run.data))
    return oracle, oracle.run()


# --- tokenizers ----------------------------------------------------------------------------------


def tokenizer_of(name: str) -> Tokenizer:
    if name == "byte":
        return ByteTokenizer()
    return CharTokenizer("".join(sorted(set(TEXT)))) if name == "char" else TiktokenTokenizer(name)


NAMES = ("byte", "char", "tiktoken:words")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_encoded_is_decoded_again_also_after_a_way_through_json(name: str) -> None:
    tokenizer = tokenizer_of(name)
    tokens = tokenizer.encode(TEXT)
    assert (tokens.dtype, tokens.ndim) == (np.int64, 1)
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.vocabulary
    again = restore(json.loads(json.dumps(tokenizer.describe())))
    assert again.decode(tokens.tolist()) == tokenizer.decode(tokens) == TEXT
    assert np.array_equal(again.encode(TEXT), tokens)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.name, again.vocabulary) == (name, tokenizer.vocabulary)
    assert len(tokenizer.encode("")) == 0


def test_a_byte_is_a_token_and_a_character_is_its_place_in_the_alphabet() -> None:
    assert ByteTokenizer().encode(TEXT).tolist() == list(TEXT.encode())
    alphabet = sorted(set(TEXT))
    expected = [alphabet.index(character) for character in TEXT]
    assert CharTokenizer("".join(alphabet)).encode(TEXT).tolist() == expected


def test_tiktoken_is_asked_for_its_own_tokens_and_text_is_never_a_special_token() -> None:
    import tiktoken

    tokenizer = TiktokenTokenizer("tiktoken:words")
    said = f"{TEXT}<|end|>"
    assert tokenizer.encode(said).tolist() == tiktoken.get_encoding("words").encode_ordinary(said)
    assert tokenizer.vocabulary == 266


def test_a_model_may_say_what_is_no_text() -> None:
    assert ByteTokenizer().decode([65, 0xFF, 66]) == "A\N{REPLACEMENT CHARACTER}B"
    words = TiktokenTokenizer("tiktoken:words")
    assert words.decode([259, 263, 265]) == "the\N{REPLACEMENT CHARACTER}<|end|>"


def test_tokenizers_that_differ_have_other_fingerprints() -> None:
    some = [*map(tokenizer_of, NAMES), CharTokenizer("ab"), CharTokenizer("ac")]
    assert len({tokenizer.fingerprint for tokenizer in some}) == len(some)


def test_a_character_the_tokenizer_does_not_know_is_named() -> None:
    with pytest.raises(DataError, match=r"got 'q' \(U\+0071\) at character 2"):
        CharTokenizer("abc").encode("abq")
    with pytest.raises(DataError, match=r"got '🚀' \(U\+1F680\) at character 0"):
        CharTokenizer("abc").encode("🚀")


# --- text through a tokenizer --------------------------------------------------------------------


def held_out_text(text: str, fraction: float) -> str:
    """What is left of the last bytes when the rest of a character is taken away."""
    content = text.encode()
    tail = content[len(content) - int(len(content) * fraction) :]
    assert fraction == 0.3 or tail[0] & 0xC0 == 0x80, "the others cut a character"
    return tail[next(i for i, byte in enumerate(tail) if byte & 0xC0 != 0x80) :].decode()


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("fraction", [0.277, 0.296])
def test_the_same_text_is_held_out_whatever_the_tokenizer(
    tmp_path: Path, name: str, fraction: float
) -> None:
    config = text_config(tmp_path, tokenizer=name, test_fraction=fraction)
    for _ in ("cold cache", "warm cache"):
        dataset = open_dataset(config)
        check(dataset)
        assert isinstance(dataset.x_train, np.memmap)
        tokenizer = dataset.tokenizer
        assert tokenizer is not None
        held_out = held_out_text(TEXT, fraction)
        assert tokenizer.decode(dataset.x_test.tolist()) == held_out
        assert tokenizer.decode(dataset.x_train.tolist()) + held_out == TEXT
        assert dataset.task.classes == tokenizer.vocabulary
        assert dataset.task.metric == "bits_per_byte"
        expected = len(held_out.encode()) / len(tokenizer.encode(held_out))
        assert dataset.task.bytes_per_target == expected
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [
        ".bin",
        ".bin",
        ".json",
    ]


def test_a_text_may_be_read_in_chunks_that_cut_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_dataset(text_config(tmp_path, tokenizer="char"))
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 5)
    monkeypatch.setattr(encoding, "_PIECE", 3)
    again = open_dataset(text_config(tmp_path, tokenizer="char", cache=str(tmp_path / "other")))
    assert np.array_equal(whole.x_train, again.x_train)
    assert np.array_equal(whole.x_test, again.x_test)


def patterns() -> dict[str, str]:
    """How each of tiktoken's own encodings splits a text; no vocabulary is needed."""
    public = pytest.importorskip("tiktoken_ext.openai_public")
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(public, loader, lambda *_, **__: {})
        return {name: make()["pat_str"] for name, make in public.ENCODING_CONSTRUCTORS.items()}


def test_piece_by_piece_gives_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the patterns of all encodings that tiktoken has, which merge signs and line ends
    differently, and merges across whatever they leave together."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"\n\n", b".\n", b"_\n", b"0\n", b"n\n", b"\n ", b"\n  ", b"\n\n  ", b"th"):
        ranks[token] = len(ranks)
    monkeypatch.setattr(encoding, "_PIECE", 1)
    text = TEXT + TEXT.replace("\n", "\r\n") + "{th}\n{the}.\n/n\n\nthe 0.\nthen" * 12
    pieces = list(encoding._pieces(iter([text[:99], text[99:]])))
    assert len(pieces) > 12
    assert "".join(pieces) == text
    found = patterns()
    assert {"gpt2", "cl100k_base", "o200k_base"} <= found.keys()
    for name, pattern in found.items():
        one = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        by_piece = [token for piece in pieces for token in one.encode_ordinary(piece)]
        assert by_piece == one.encode_ordinary(text), name


@pytest.mark.parametrize("end", ["fox\n", "fox\r\n", ".\n", "}\n"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_text_is_encoded_in_pieces_whatever_its_lines_end_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: str
) -> None:
    """Those of Windows, and lines that end in a sign, as those of JSON do, were all in memory at
    once, and looked through again with every chunk that was read."""
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 99)
    monkeypatch.setattr(encoding, "_PIECE", 50)
    lengths: list[int] = []
    kind = CharTokenizer if name == "char" else TiktokenTokenizer
    encode = kind.encode

    def watched(self: Tokenizer, text: str) -> Array:
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(kind, "encode", watched)
    open_dataset(text_config(tmp_path, f"the 10 hens {end}" * 200, tokenizer=name))
    assert sum(lengths) == len(f"the 10 hens {end}" * 200)
    assert max(lengths) < 200


def test_a_changed_text_is_encoded_again(tmp_path: Path) -> None:
    open_dataset(text_config(tmp_path, tokenizer="char"))
    changed = open_dataset(text_config(tmp_path, TEXT.replace("Z", "X") + "!", tokenizer="char"))
    assert "!" in changed.tokenizer.describe()["characters"]  # type: ignore[union-attr]


def test_the_encoding_is_not_needed_once_the_tokens_are_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config(tmp_path, tokenizer="tiktoken:words")
    first = open_dataset(config)
    monkeypatch.setattr(tokenizers, "_load_encoding", lambda name: pytest.fail("was loaded"))
    second = open_dataset(config)
    assert np.array_equal(first.x_train, second.x_train)
    assert second.task == first.task


# --- files of tokens -----------------------------------------------------------------------------


def stream(dataset: Dataset) -> list[torch.Tensor]:
    batches = Batches(dataset, 0, 4, CPU)
    return [part for b in range(6) for part in batches.train(b)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_a_file_of_tokens_of_any_type_is_the_text_it_was_made_from(
    tmp_path: Path, dtype: str
) -> None:
    text = open_dataset(text_config(tmp_path))
    content = np.frombuffer(TEXT.encode(), dtype=np.uint8)
    content.astype(dtype).tofile(tmp_path / "all.bin")
    config = TokensConfig(
        train=str(tmp_path / "all.bin"), dtype=dtype, vocabulary=256, context=8, test_fraction=0.3
    )
    tokens = open_dataset(config)
    check(tokens)
    assert isinstance(tokens.x_train, np.memmap)
    assert tokens.x_train.filename == tmp_path / "all.bin"
    assert all(torch.equal(a, b) for a, b in zip(stream(tokens), stream(text), strict=True))
    assert torch.equal(
        Batches(tokens, 0, 4, CPU).evaluation(1)[0], Batches(text, 0, 4, CPU).evaluation(1)[0]
    )


def test_a_file_of_its_own_may_be_held_out(tmp_path: Path) -> None:
    dataset = open_dataset(tokens_config(tmp_path, test=str(tmp_path / "test.bin")))
    assert (len(dataset.x_train), len(dataset.x_test)) == (600, 100)
    split = open_dataset(tokens_config(tmp_path, test_fraction=0.25))
    assert (len(split.x_train), len(split.x_test)) == (450, 150)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": "none.bin"}, r"none.bin: expected a file of tokens \(data.train\); found noth"),
        ({"test": "none.bin"}, r"none.bin: expected a file of tokens \(data.test\); found nothing"),
        (
            {"dtype": "uint32", "train": "odd.bin"},
            "odd.bin: expected tokens of uint32, a multiple ",
        ),
        ({"train": "odd.bin"}, "a multiple of 2 bytes; got 7 bytes. Set data.dtype"),
        ({"train": "empty.bin"}, "empty.bin: expected tokens of uint16.*; it is empty"),
        ({"context": 60}, r"data.context \+ 1 = 61 tokens to train on and to test on; got 540 and"),
        ({"vocabulary": 250}, "train.bin: train: expected tokens 0 to 249; got 250 at index 250"),
        ({"train": "saved.npy"}, r"saved.npy: expected tokens of uint16 .*; got an .npy file. nu"),
        ({"test": "saved.npy"}, r"saved.npy: expected tokens of uint16 .*; got an .npy file. nu"),
        ({"dtype": "int64", "train": "minus.bin"}, "expected tokens 0 to 250; got -1 at index 3"),
    ],
)
def test_a_bad_file_of_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.bin").write_bytes(bytes(7))
    Path("empty.bin").write_bytes(b"")
    np.save("saved.npy", np.arange(200))
    np.where(np.arange(200) == 3, -1, 0).tofile("minus.bin")
    with pytest.raises(DataError, match=says) as refused:
        check(open_dataset(tokens_config(tmp_path, **options)))
    assert "\n" not in str(refused.value)


# --- what is measured ----------------------------------------------------------------------------


def test_bits_per_byte_are_bits_of_all_targets_over_their_bytes() -> None:
    """Against the definition, with cross-entropy written out in float64."""
    torch.manual_seed(0)
    logits, targets = torch.randn(10, 5), torch.randint(5, (10,))
    score = Score(CPU)
    score.add(logits[:4], targets[:4])
    score.add(logits[4:], targets[4:])
    nats = -F.log_softmax(logits.double(), -1)[torch.arange(10), targets].sum().item()
    sample = TensorSpec((8,), torch.int64)
    by_byte = score.result(Task(sample, 5, "bits_per_byte", bytes_per_target=3.5))
    assert by_byte["bits_per_byte"] == pytest.approx(nats / math.log(2) / (10 * 3.5))
    assert by_byte["loss"] == pytest.approx(nats / 10)
    by_token = score.result(Task(sample, 5, "bits_per_token"))
    assert by_token.keys() == {"loss", "bits_per_token"}
    assert by_token["bits_per_token"] == pytest.approx(nats / math.log(2) / 10)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_reports_bits_per_byte_of_the_original_text(tmp_path: Path, name: str) -> None:
    config = text_config(tmp_path, tokenizer=name)
    top = train(config)[1]["chain"][-1]
    bytes_per_token = open_dataset(config).task.bytes_per_target
    assert bytes_per_token == 1.0 if name == "byte" else bytes_per_token > 1.1
    assert top["bits_per_byte"] == pytest.approx(top["loss"] / math.log(2) / bytes_per_token)


@pytest.mark.parametrize("text", ["ï", "東", "🚀 ate", "the hens"])
@pytest.mark.parametrize("name", NAMES)
def test_bits_of_a_text_are_over_the_bytes_of_what_was_predicted(name: str, text: str) -> None:
    """The first token of "ï" was taken for the three bytes of what marks half a character: one byte
    less than none was left to predict."""
    tokenizer = tokenizer_of(name)
    vocabulary, encoded = tokenizer.vocabulary, tokenizer.encode(text)
    whole = {"tokenizer": tokenizer.describe(), "low": 0.0, "high": vocabulary - 1.0}
    signature = Signature((4,), vocabulary, "bits_per_byte", True, True, True, **whole)
    found = read(Uniform(vocabulary), torch.from_numpy(encoded), signature, tokenizer)
    alone = {  # bytes of the first token
        "byte": 1,
        "char": len(text[0].encode()),
        "tiktoken:words": 3 if text.startswith("the") else 1,
    }
    predicted = len(text.encode()) - alone[name]
    bits = math.log2(vocabulary) * (len(encoded) - 1)
    expected = pytest.approx(bits / predicted) if predicted else None
    assert found.bits_per_byte == expected


def test_of_a_large_vocabulary_few_windows_are_computed_together() -> None:
    """64 windows of 256 tokens of o200k_base had 13 GB of logits."""
    model, classes = Uniform(1 << 14), 1 << 14
    signature = Signature((256,), classes, "bits_per_byte", True, True, True, None, 0.0, classes)
    found = read(model, torch.arange(256 * 10 + 1) % 256, signature, ByteTokenizer())
    assert found.bits_per_byte == pytest.approx(14)
    assert model.windows == [4, 4, 2, 1]
    (its,) = latencies([model], signature)
    assert {one.batch for one in its} == {1, 4}


@pytest.mark.parametrize(("exits", "windows"), [(1, [4, 4, 2]), (2, [2] * 5)])
def test_of_a_large_vocabulary_a_service_computes_few_windows_together(
    exits: int, windows: list[int]
) -> None:
    """256 windows of 64 tokens of gpt2 had 3 GB of logits, and as many again by each exit."""
    found = of_a_large_vocabulary(exits)
    with TestClient(create_app(found, ServeConfig("run"))) as client:
        answer = client.post("/predict?exits=true", json={"inputs": [[0] * 256] * 10})
        client.post("/predict", json={"inputs": [[0] * 2] * 50})  # which have fewer logits
    assert [len(one["predictions"]) for one in answer.json()["exits"]] == [10] * exits
    assert found.module.windows == [*windows, 50]


@pytest.mark.parametrize(
    ("samples", "query", "says"),
    [
        (1025, "", r"at most 16,777,216 of samples x exits x classes at once; got 16,793,600\."),
        (513, "exits=true", r"at most 16,777,216 of samples x exits x classes at once; got 16,8"),
        (33, "top=16384", r"at most 524,288 of samples x exits x top at once; got 540,672\."),
        (17, "top=16384&exits=true", r"at most 524,288 of samples x exits x top at once; got 55"),
    ],
)
def test_an_answer_that_would_take_all_memory_is_refused_before_it_is_computed(
    samples: int, query: str, says: str
) -> None:
    """A vocabulary makes a large answer of a few bytes: 2,048 samples of one token took 800 MB."""
    found = of_a_large_vocabulary(exits=2)
    with TestClient(create_app(found, ServeConfig("run"))) as client:
        answer = client.post(f"/predict?{query}", json={"inputs": [[0]] * samples})
        assert answer.status_code == 413
        assert re.search(says, answer.json()["message"]), answer.json()
        assert found.module.windows == []
        assert client.post("/predict?top=3", json={"inputs": [[0]] * 2}).status_code == 200


def test_of_a_large_vocabulary_few_arrays_of_tokens_are_predicted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 64 of a batch were, whatever the vocabulary."""
    found = of_a_large_vocabulary()
    monkeypatch.setattr(predict, "open_predictor", lambda model, window: found)
    np.save(tmp_path / "x.npy", np.zeros((10, 256), int))
    out = tmp_path / "out.csv"
    assert cli.answer("predict", ["run", f"input={tmp_path / 'x.npy'}", f"out={out}"]) == 0
    assert len(out.read_text().splitlines()) == 1 + 10
    assert found.module.windows == [4, 4, 2]


def of_a_large_vocabulary(exits: int = 1) -> Predictor:
    """Four windows of this model have as many logits as are computed together."""
    classes = 1 << 14
    signature = Signature((256,), classes, "bits_per_token", True, True, True, None, 0.0, classes)
    return predictor_of(Uniform(classes), signature, exits)


def predictor_of(model: nn.Module, signature: Signature, exits: int = 1) -> Predictor:
    names = tuple(f"chain 0..{k}" for k in range(exits))
    return Predictor(names[-1], Path("run"), signature, model, names, lambda x: [model(x)] * exits)


class Uniform(nn.Module):
    """Takes every token for as likely as the others, whatever came before."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.windows: list[int] = []
        """How many it was given, each time."""

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        self.windows.append(len(x_BT))
        return torch.zeros(x_BT.numel(), self.vocabulary)


def test_tokens_of_unknown_text_are_reported_in_bits_per_token(tmp_path: Path) -> None:
    top = train(tokens_config(tmp_path))[1]["chain"][-1]
    assert top["bits_per_token"] == pytest.approx(top["loss"] / math.log(2))
    assert "bits_per_byte" not in top
    known = train(tokens_config(tmp_path, bytes_per_token=4.0))[1]["chain"][-1]
    assert known["bits_per_byte"] == pytest.approx(top["bits_per_token"] / 4)
    assert "bits_per_token" not in known


# --- checkpoints ---------------------------------------------------------------------------------


def save(run_dir: Path, config: TextConfig) -> Path:
    """Train a little and save, as a rank does."""
    oracle, _ = train(config)
    trainer = oracle.trainers[0]
    optimizers = {"chain": trainer._optimizer}
    tensors = checkpoint.tensors_of(trainer.worker.component, optimizers)
    files = checkpoint.save(run_dir, 2, 0, tensors)
    preprocessing = open_dataset(config).preprocessing
    checkpoint.write_manifest(run_dir, 2, files, oracle.config, preprocessing)
    return checkpoint.find(run_dir).path


def test_a_checkpoint_decodes_without_the_text_it_was_trained_on(tmp_path: Path) -> None:
    config = text_config(tmp_path, tokenizer="char")
    saved = save(tmp_path / "run", config)
    tokens = open_dataset(config).x_test[:20].tolist()
    Path(config.path).unlink()
    tokenizer = checkpoint.find(saved).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokens) == held_out_text(TEXT, 0.3)[:20]


@pytest.mark.parametrize(
    ("text", "tokenizer", "says"),
    [
        (TEXT, "byte", r"expected the tokenizer char \(\d+ tokens, \w+\).*; got byte \(256 tokens"),
        (TEXT.replace("s", "Q"), "char", r"expected the tokenizer char .*; got char \("),
    ],
)
def test_a_run_does_not_go_on_with_a_tokenizer_that_does_not_fit(
    tmp_path: Path, text: str, tokenizer: str, says: str
) -> None:
    saved = save(tmp_path / "run", text_config(tmp_path, tokenizer="char"))

    def resume(config: TextConfig) -> None:
        overrides = [
            "data=text",
            *(f"data.{key}={getattr(config, key)}" for key in ("path", "cache", "tokenizer")),
            *("data.context=8", "data.test_fraction=0.3", "components=1", "steps=4"),
            *("model.width=8", f"resume={saved}", "launch.device=cpu"),
        ]
        preflight(compose(overrides), tmp_path / "next", 1)

    with pytest.raises(CheckpointError, match="a tokenizer that does not fit the checkpoint") as no:
        resume(text_config(tmp_path, text, tokenizer=tokenizer))
    assert no.match(says)
    assert not (tmp_path / "next").exists()
    resume(text_config(tmp_path, tokenizer="char"))  # the text is another file, and the same text
    assert (tmp_path / "next").exists()


def test_a_checkpoint_without_a_tokenizer_fits_data_without_one() -> None:
    refuse_other("here", None, None)
    with pytest.raises(CheckpointError, match=r"expected data without a tokenizer.*; got byte"):
        refuse_other("here", ByteTokenizer(), None)
    with pytest.raises(CheckpointError, match=r"expected the tokenizer byte .*; got none"):
        refuse_other("here", None, ByteTokenizer().describe())


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"ab\xffcd" * 90, {"tokenizer": "char"}, "got byte 0xff at byte 2, which is none"),
        (b"a" * 400 + b"\xe2\x82", {"tokenizer": "char"}, "got byte 0xe2 at byte 400"),
        (
            b"short",
            {"tokenizer": "char"},
            r"data.context \+ 1 = 9 tokens to train on .* got 4 and 1",
        ),
        (TEXT, {"tokenizer": "tiktoken:word"}, "expected tiktoken: and one of .*words; got 'word'"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_refused(
    tmp_path: Path, content: str | bytes, options: dict, says: str
) -> None:
    with pytest.raises(DataError, match=says) as refused:
        open_dataset(text_config(tmp_path, content, **options))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("cache/*.tmp"))


WHITE = " " * (1 << 21)
"""More than the pattern of gpt2 goes back through."""


def test_a_text_that_tiktoken_does_not_split_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Its ValueError was a traceback."""
    says = r"tokenizer tiktoken:spaces .*: expected text that tiktoken can split; got .* Leave long"
    config = text_config(tmp_path, f"{TEXT}{WHITE}" * 3, tokenizer="tiktoken:spaces")
    with pytest.raises(DataError, match=says):
        open_dataset(config)


def test_a_service_refuses_a_text_that_tiktoken_does_not_split() -> None:
    """It answered with 500."""
    described = TiktokenTokenizer("tiktoken:spaces").describe()
    signature = Signature((8,), 256, "bits_per_byte", True, True, True, described, 0.0, 255.0)
    service = create_app(predictor_of(Uniform(256), signature), ServeConfig("run"))
    with TestClient(service) as client:
        answer = client.post("/predict", json={"inputs": [f"The{WHITE}end"]})
        assert answer.status_code == 422
        assert "expected text that tiktoken can split" in answer.json()["message"]
        assert client.post("/predict", json={"inputs": ["The end"]}).status_code == 200


def test_without_tiktoken_a_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    with pytest.raises(DataError, match=r"not installed. Install it: pip install 'mach\[tiktoken"):
        open_dataset(text_config(tmp_path, tokenizer="tiktoken:gpt2"))


def test_without_a_network_a_sentence_says_what_could_not_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"tiktoken:gpt2: expected to have .* TIKTOKEN_CACHE_DIR"):
        open_dataset(text_config(tmp_path, tokenizer="tiktoken:gpt2"))
    assert not list(tmp_path.glob("cache/*"))


def test_a_service_has_its_encoding_before_the_first_text_comes() -> None:
    """It listened all the same, and told every text that it could not be read; to load the encoding
    then held up all others."""
    described = TiktokenTokenizer("tiktoken:words").describe()

    def service(description: dict[str, object]) -> None:
        signature = Signature(
            (8,), 266, "bits_per_byte", True, True, True, description, low=0.0, high=265.0
        )
        create_app(predictor_of(Uniform(266), signature), ServeConfig("run"))

    service(described)
    with pytest.raises(DataError, match=r"expected the vocabulary 00.*tiktoken has"):
        service({**described, "digest": "00"})


def test_an_encoding_that_has_changed_is_refused() -> None:
    description = TiktokenTokenizer("tiktoken:words").describe() | {"digest": "0" * 16}
    with pytest.raises(DataError, match="expected the vocabulary 0000000000000000, with which"):
        restore(description).encode("the")
