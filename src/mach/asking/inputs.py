"""Which samples are in a file, a folder or a stream?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mach.data.files import Array, reading
from mach.data.npz import read_header
from mach.errors import InputError
from mach.paths import looked_at
from mach.signature import Signature

Named = tuple[str, Any]
"""Name of a sample, and the sample: an array, lists of numbers, or a text."""

_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"))
_LINES = frozenset((".csv", ".jsonl", ".json", ".txt"))
_JSON = frozenset((".jsonl", ".json"))
_THEN = "Write the file again."


def samples_in(source: str, key: str | None, signature: Signature) -> Iterator[Named]:
    """Samples one by one, none of them looked at yet.

    Args:
        source: as `PredictConfig.input`.
        key: of an .npz.

    Raises:
        InputError: there is nothing to be read there.
    """
    if source == "-":
        return _of_stdin(signature)
    then = "A text goes in a .txt file, or through -." if _spoken(signature) else ""
    with looked_at(f"input={source}", InputError, then):
        path = Path(source).expanduser()
        if path.is_dir():
            return _of_folder(path, signature)
        if not path.exists():
            said = f"input={source}: expected a file, a folder or -; nothing is there. {then}"
            raise InputError(said.rstrip())
    if path.suffix in (".npz", ".npy"):
        return ((str(i), row) for i, row in enumerate(_array(path, key)))
    if path.suffix in _LINES:
        return _of_file(path, signature)
    raise InputError(
        f"input={source}: expected .npz, .npy, .csv, .jsonl, .txt, a folder or -; got "
        f"{path.suffix or 'no suffix'}"
    )


def labels_in(source: str, key: str | None) -> Array | None:
    """The labels beside the samples of an .npz, where it has some.

    Raises:
        InputError: they are no class numbers, one for each sample.
    """
    path = Path(source).expanduser()
    if path.suffix != ".npz" or not path.is_file():
        return None
    beside = {"x": "y", "x_test": "y_test", "x_train": "y_train"}
    with reading(path, "arrays of numbers", _THEN), np.load(path, allow_pickle=False) as arrays:
        of = _key(path, key, arrays.files)
        name = beside.get(of, "")
        if name not in arrays.files:
            return None
        labels = np.asarray(arrays[name])
        with arrays.zip.open(f"{of}.npy") as member:  # its head alone: it may be large
            samples = read_header(member)[1][0]
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise InputError(
            f"{path}: {name}: expected one class number for each sample, int[samples]; got "
            f"{labels.dtype}{list(labels.shape)}. Leave it out, or name the samples otherwise and "
            "set key=NAME."
        )
    if len(labels) != samples:
        raise InputError(
            f"{path}: {name}: expected a class number for each of the {samples:,} samples in {of}; "
            f"got {len(labels):,}. Leave it out, or write the file again."
        )
    return labels


def _array(path: Path, key: str | None) -> Array:
    with reading(path, "an array of numbers", _THEN):
        if path.suffix == ".npy":
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        else:
            with np.load(path, allow_pickle=False) as arrays:
                array = np.asarray(arrays[_key(path, key, arrays.files)])
    if not array.ndim or array.dtype.kind not in "biuf":
        raise InputError(
            f"{path}: expected numbers, with samples along the first axis; got "
            f"{array.dtype}{list(array.shape)}"
        )
    return array


def _key(path: Path, key: str | None, present: list[str]) -> str:
    wanted = [key] if key is not None else ["x", "x_test", *(present if len(present) == 1 else [])]
    for name in wanted:
        if name in present:
            return name
    raise InputError(
        f"{path}: expected an array {' or '.join(wanted)}; got {', '.join(present) or 'none'}. Set "
        "key=NAME."
    )


def _of_file(path: Path, signature: Signature) -> Iterator[Named]:
    # -sig: tables that Excel writes begin with a mark of their encoding.
    with reading(path, "lines of text", _THEN), path.open(encoding="utf-8-sig") as file:
        yield from _of_lines(file, str(path), signature, json_texts=path.suffix in _JSON)


def _of_stdin(signature: Signature) -> Iterator[Named]:
    who = "standard input"
    with reading(who, "lines of text", _THEN):
        yield from _of_lines(sys.stdin, who, signature, json_texts=False)


def _of_lines(
    stream: IO[str] | Iterable[str], who: str, signature: Signature, *, json_texts: bool
) -> Iterator[Named]:
    """A sample for each line; with `json_texts` a text is written as JSON, not as it is."""
    number = 0
    for place, line in enumerate(stream, start=1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield str(number), _of_line(text, f"{who}, line {place}", signature, json_texts)
            number += 1


def _spoken(signature: Signature) -> bool:
    """Whether a sample may be a text."""
    return signature.text and signature.tokenizer is not None


def _of_line(text: str, who: str, signature: Signature, json_texts: bool) -> Any:
    if _spoken(signature):
        return _json_text(text, who) if json_texts else text
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [float(word) for word in text.split(",")]
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{who}: expected a JSON array, or numbers with commas between them; got {text[:40]!r}"
        ) from error


def _json_text(line: str, who: str) -> str:
    try:
        text = json.loads(line)
    except (ValueError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise InputError(f'{who}: expected a text as JSON, as in "To be"; got {line[:40]!r}')
    return text


def _of_folder(folder: Path, signature: Signature) -> Iterator[Named]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not files:
        raise InputError(f"input={folder}: expected files; the folder is empty")
    return ((path.name, _of_sample(path, signature)) for path in files)


def _of_sample(path: Path, signature: Signature) -> Any:
    spoken = _spoken(signature)
    if spoken and path.suffix == ".txt":
        with reading(path, "a text in UTF-8", _THEN):
            return path.read_bytes().decode()
    if path.suffix == ".npy":
        return _array(path, None)
    if path.suffix.lower() in _IMAGES and not signature.text:
        return _image(path, signature)
    wanted = ".txt or .npy" if spoken else ".npy" if signature.text else "images or .npy"
    raise InputError(f"{path}: expected {wanted}; got {path.suffix or 'no suffix'}")


def _image(path: Path, signature: Signature) -> Array:
    """The pixels of an image, from black to white what the training samples had as range."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: expected the package pillow, which reads images; it is not installed. "
            "Install it: pip install pillow"
        ) from error
    shape = signature.shape
    colours = {2: "L", 3: {1: "L", 3: "RGB"}.get(shape[0])}.get(len(shape))
    if colours is None:
        raise InputError(f"{path}: expected what becomes {list(shape)}; got an image")
    with reading(path, "an image", _THEN), Image.open(path) as image:
        _refuse_deep_or_transparent(path, image)
        pixels = np.asarray(image.convert(colours), dtype=np.float32)
    pixels = np.moveaxis(pixels, -1, 0) if colours == "RGB" else pixels
    if pixels.shape[-2:] != shape[-2:]:
        raise InputError(
            f"{path}: expected {shape[-1]} x {shape[-2]} pixels; got {pixels.shape[-1]} x "
            f"{pixels.shape[-2]}. Resize it."
        )
    low, high = signature.low, signature.high
    return np.asarray((low + pixels / 255 * (high - low)).reshape(shape))


def _refuse_deep_or_transparent(path: Path, image: Any) -> None:
    """What pillow would clip to 8 bits, or make black, without a word."""
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{path}: expected 8 bits a pixel and colour; got the mode {image.mode}. Convert it."
        )
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise InputError(
            f"{path}: expected an image without transparent pixels; got some. Flatten it onto a "
            "background."
        )
