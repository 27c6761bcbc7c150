"""How do the images of the Hugging Face Hub become arrays in our cache, once per machine?

The package `datasets` downloads, unpacks and knows the formats; it is called in a process of its
own (see `fetch`), writes an .npz file, and is not needed again: later runs read that file alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mach.config import HubConfig
from mach.data import cache
from mach.data.fetch import fetch
from mach.data.files import reading
from mach.errors import DataError, FetchError
from mach.extras import missing

# C channels, H height, W width

_VERSION = 1
"""Rises with every change of what is stored, so that no old cache is read."""
_LOOK_S = 0.1


@dataclass(frozen=True)
class Original:
    """A data set as the Hub has it: splits train and test."""

    source: str
    images: str
    """Name of the column of images; that of the labels is `label`."""
    classes: int
    shape: tuple[int, ...]
    """Of one sample: [H, W], or [C, H, W] in colour."""


ORIGINALS = {
    "cifar10": Original("uoft-cs/cifar10", "img", 10, (3, 32, 32)),
    "mnist": Original("ylecun/mnist", "image", 10, (28, 28)),
    "fashion_mnist": Original("zalando-datasets/fashion_mnist", "image", 10, (28, 28)),
}


def hub_file(config: HubConfig) -> Path:
    """The images as an uncompressed .npz in the cache; only the first to ask downloads.

    Raises:
        DataError: it is not there yet, and `datasets` is not installed, the Hub cannot be reached,
            or what it has is another data set.
    """
    source = config.source or ORIGINALS[config.name].source
    folder = cache.folder(config)
    name = f"{config.name}-{_key(source)}.npz"
    target = folder / name
    with reading(target, "a readable file"):
        if target.is_file():
            return target
    if missing("datasets"):
        raise DataError(
            f"data={config.name}: expected the package datasets, to download {source}; it is not "
            "installed. Install it: pip install 'mach[hf]'"
        )

    def chunks() -> Iterator[bytes]:
        unpacked = folder / f"{name}.unpacked"
        try:
            _fetch(config, source, unpacked)
            yield unpacked.read_bytes()
        finally:
            unpacked.unlink(missing_ok=True)

    with _alone(folder / f"{name}.lock", config.timeout_s):
        return cache.cached(folder, name, chunks)


def _fetch(config: HubConfig, source: str, target: Path) -> None:
    original = ORIGINALS[config.name]
    try:
        fetch(
            "pack_images",
            source,
            str(target),
            original.images,
            str(original.classes),
            *map(str, original.shape),
            timeout_s=config.timeout_s,
        )
    except FetchError as error:
        raise DataError(
            f"data={config.name}: expected to find {source}, or to download it; {error}. Go on "
            "with a network, copy the cache of a machine that has one (data.cache), or set "
            "data.source to a folder of its parquet files."
        ) from error


def _key(source: str) -> str:
    """Names a source; a folder is another one as soon as its files are others."""
    identity = f"{_VERSION}\0{source}"
    folder = Path(source).expanduser()
    with reading(source, "a folder of parquet files, or a name on the Hub"):
        if folder.exists():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            stats = [(path, path.stat()) for path in files]
            identity += "".join(f"\0{p}\0{s.st_size}\0{s.st_mtime_ns}" for p, s in stats)
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]


@contextmanager
def _alone(lock: Path, timeout_s: float) -> Iterator[None]:
    """Let one process at a time download; the others then find what it has written.

    The lock ends with its process. On a file system without locks each downloads for itself.
    """
    deadline = time.monotonic() + timeout_s
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise DataError(
            f"{lock}: expected to be able to write here; got: {error.strerror or error}. Set "
            "data.cache to a folder that you can write to."
        ) from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{lock}: another process has been downloading for {timeout_s:g} s. Wait "
                        "for it, or raise data.timeout_s."
                    ) from None
                time.sleep(_LOOK_S)
            except OSError:
                break
        yield
