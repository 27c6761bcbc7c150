"""How does `mach predict` get from samples to lines?"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mach.asking.answers import last_rows, likeliest, read, spelled
from mach.asking.inputs import Named, labels_in, samples_in
from mach.asking.samples import batch_of, tokens_of
from mach.config import PredictConfig
from mach.errors import InputError
from mach.inference import computed_together
from mach.paths import looked_at
from mach.predictor import Predictor, open_predictor

# A line is a mapping; its keys are the columns of a CSV file.


def predict(config: PredictConfig) -> int:
    """Write a line for every sample. Returns the exit code.

    Raises:
        MachError: there is no such model, or a sample it cannot be asked about; lines before that
            have been written to standard output, but no file.
    """
    predictor = open_predictor(config.model, config.window)
    signature = predictor.signature
    named = samples_in(config.input, config.key, signature)
    lines = (
        _texts(predictor, named, config)
        if signature.text and signature.tokenizer is not None
        else _arrays(predictor, named, config)
    )
    labels = None if signature.text else labels_in(config.input, config.key)
    with _output(config.out) as file, torch.inference_mode():
        right = _write(file, _one_or_more(lines, config), config, labels)
    if labels is not None:
        print(f"accuracy {right / len(labels):.6g} of {len(labels):,} samples", file=sys.stderr)
    return 0


def _one_or_more(
    lines: Iterator[dict[str, Any]], config: PredictConfig
) -> Iterator[dict[str, Any]]:
    first = next(lines, None)
    if first is None:
        raise InputError(f"input={config.input}: expected one sample or more; got none")
    yield first
    yield from lines


def _arrays(
    predictor: Predictor, named: Iterator[Named], config: PredictConfig
) -> Iterator[dict[str, Any]]:
    batch = computed_together(predictor.signature.logits, config.batch)
    while part := list(islice(named, batch)):
        names = [name for name, _ in part]
        # One by one, so that a message names the sample.
        rows = [
            batch_of([v] if isinstance(v, list) else v[None], predictor.signature, _who(n))
            for n, v in part
        ]
        if len({row.shape for row in rows}) == 1:
            logits = last_rows(predictor.module(torch.cat(rows)), len(rows))
        else:  # texts of several lengths
            logits = torch.cat([last_rows(predictor.module(row), 1) for row in rows])
        yield from _lines(names, logits, config)


def _lines(
    names: list[str], logits_BC: torch.Tensor, config: PredictConfig
) -> Iterator[dict[str, Any]]:
    classes, values = likeliest(logits_BC, config.top)
    for i, name in enumerate(names):
        top = _top("label", classes[i], values[i])
        yield {"sample": name, **top, **_every(logits_BC[i], config)}


def _texts(
    predictor: Predictor, named: Iterator[Named], config: PredictConfig
) -> Iterator[dict[str, Any]]:
    signature, tokenizer = predictor.signature, predictor.signature.restore_tokenizer()
    assert tokenizer is not None
    for name, said in named:
        if isinstance(said, str):
            tokens_T = tokens_of(said, signature, tokenizer, _who(name))
        else:  # of an .npz or .npy: its tokens
            tokens_T = batch_of(said[None], signature, _who(name))[0]
        reading = read(predictor.module, tokens_T, signature, tokenizer)
        classes, values = likeliest(reading.logits[None], config.top)
        follows = [spelled(token, tokenizer) for token in classes[0]]
        yield {
            "sample": name,
            "tokens": reading.tokens,
            "bits_per_byte": reading.bits_per_byte,
            **_top("next", follows, values[0]),
            **_every(reading.logits, config),
        }


def _top(key: str, answers: list[Any], values: list[float]) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for place, (answer, value) in enumerate(zip(answers, values, strict=True), start=1):
        end = "" if place == 1 else f"_{place}"
        line |= {f"{key}{end}": answer, f"probability{end}": value}
    return line


def _every(logits_C: torch.Tensor, config: PredictConfig) -> dict[str, float]:
    if not config.probabilities:
        return {}
    return {f"p{c}": value for c, value in enumerate(logits_C.float().softmax(-1).tolist())}


def _who(name: str) -> str:
    return f"sample {name}"


def _write(
    file: IO[str], lines: Iterable[dict[str, Any]], config: PredictConfig, labels: Any
) -> int:
    """Write as the lines come. Returns how many have the label that is expected of them."""
    right, writer = 0, None
    for number, line in enumerate(lines):
        if config.format == "jsonl":
            file.write(json.dumps(line) + "\n")
        else:
            if writer is None:
                # Lines end as RFC 4180 has them: before Python 3.13 a carriage return, which may be
                # what follows a text, is quoted only where lines end with one.
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow({k: _short(value) for k, value in line.items()})
        if labels is not None:
            right += int(line["label"] == np.asarray(labels)[number])
    return right


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


@contextmanager
def _output(out: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only when all has been written."""
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(out)
    with looked_at(f"out={out}", InputError):
        if path.is_dir() or not path.name:
            raise InputError(f"out={out}: expected the name of a file; got a folder")
        # A file in the place of a device or a pipe would be another thing.
        special = path.exists() and not path.is_file()
    try:
        with _open(path) if special else _appearing(path) as file:
            yield file
    except OSError as error:
        raise InputError(f"out={out}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _appearing(path: Path) -> Iterator[IO[str]]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _open(temporary) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path) -> IO[str]:
    return path.open("w", newline="", encoding="utf-8")  # whatever the terminal has
