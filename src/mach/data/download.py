"""What happens in the process that downloads?

A program, run by `fetch` as a file and not as a module of mach, which would import torch first.
Whatever goes wrong becomes the last line of stdout; progress goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# n samples, C channels, H height, W width

_PROBE_S = 10.0
_MOST_SAID = 300


def pack_images(source: str, target: str, column: str, classes: str, *shape: str) -> None:
    """Download a data set of the Hugging Face Hub, unpack it, and write it as an .npz file.

    Args:
        source: its name on the Hub, or a folder that has its parquet files.
        target: the file.
        column: the name of the column of images; that of the labels is `label`.
        classes: how many labels there may be.
        shape: of one image, H W, or C H W in colour.
    """
    loaded = _load(source)
    arrays: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        if split not in loaded:
            raise ValueError(f"it has the splits {', '.join(loaded)}, not {split}")
        x, y = _arrays(loaded[split], column, int(classes), [int(n) for n in shape])
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    with Path(target).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_encoding(name: str) -> None:
    """Let tiktoken load an encoding, and so put its vocabulary into its cache."""
    import_module("tiktoken").get_encoding(name)


def _load(source: str) -> Any:
    local = Path(source).expanduser()
    datasets: Any = import_module("datasets")
    if local.exists():
        return datasets.load_dataset(str(local))
    silence = _probe(source)
    if silence is None:
        return datasets.load_dataset(source)
    # `datasets` is to look in its own cache at once, and not after half a minute of asking again.
    constants: Any = import_module("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(source)
    except ConnectionError as error:
        raise ConnectionError(f"the Hub does not answer ({_one_line(silence)})") from error


def _probe(source: str) -> Exception | None:
    """Ask the Hub once. Returns what came instead of an answer."""
    hub: Any = import_module("huggingface_hub")
    errors: Any = import_module("huggingface_hub.errors")
    try:
        hub.HfApi().dataset_info(source, timeout=_PROBE_S)
    except errors.HfHubHTTPError as error:
        raise ValueError(f"the Hub answers: {error}") from error
    except Exception as error:  # whatever HTTP library it uses has its own
        return error
    return None


def _arrays(
    split: Any, column: str, classes: int, shape: Sequence[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """uint8 images [n, H, W] or [n, C, H, W], and uint8 labels [n]."""
    for name in (column, "label"):
        if name not in split.column_names:
            raise ValueError(f"it has the columns {', '.join(split.column_names)}, not {name}")
    height, width = shape[-2:]
    colour = len(shape) == 3
    x = np.empty((len(split), *shape), dtype=np.uint8)
    for index, image in enumerate(split[column]):
        pixels = np.asarray(image.convert("RGB" if colour else "L"))
        if pixels.shape[:2] != (height, width):
            raise ValueError(
                f"image {index} has {pixels.shape[0]} x {pixels.shape[1]} pixels, not "
                f"{height} x {width}"
            )
        x[index] = pixels.transpose(2, 0, 1) if colour else pixels
    y = np.asarray(split["label"])
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"it has labels from {y.min()} to {y.max()}, not 0 to {classes - 1}")
    return x, y.astype(np.uint8)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    if len(text) > _MOST_SAID:
        text = f"{text[:_MOST_SAID]}.."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Call what the command line names."""
    functions: dict[str, Callable[..., None]] = {
        "pack_images": pack_images,
        "load_encoding": load_encoding,
    }
    name, *arguments = sys.argv[1:]
    try:
        functions[name](*arguments)
    except BaseException as error:
        print(json.dumps({"said": _one_line(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
