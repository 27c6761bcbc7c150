"""Where do unpacked arrays live, and how do several processes share them without a lock?

A file is written under a name of its own and moved in whole, so whoever comes second finds either
nothing (and unpacks too; the last one wins, with the same bytes) or a complete file.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from mach.config import DataConfig
from mach.data.files import reading
from mach.errors import DataError

_START_BYTES = 64
"""Of the source's own name; file systems count bytes, 255 as a rule."""


def folder(config: DataConfig) -> Path:
    """`data.cache`, else `$XDG_CACHE_HOME/mach`, else `~/.cache/mach`."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if config.cache:
            return Path(config.cache).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "mach"
    except RuntimeError as error:
        raise DataError(
            "data.cache: expected a home folder to put unpacked data in; got none. "
            "Set data.cache to a folder."
        ) from error


def name_of(source: Path, member: str = "") -> str:
    """Name of what `source` unpacks to: another one as soon as the source is another file."""
    with reading(source, "a file"):
        stat = source.stat()
        identity = f"{source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
    start = os.fsencode(source.name.split(".")[0])[:_START_BYTES]
    # A character that was cut through is left out.
    return "-".join(filter(None, (start.decode(errors="ignore"), member, key)))


def cached(cache: Path, name: str, chunks: Callable[[], Iterable[bytes]]) -> Path:
    """The file `name` in the cache, made from `chunks` if it is not there yet.

    Whatever goes wrong while reading must leave `chunks` as a `DataError`; an `OSError` from here
    is then the cache's own.
    """
    target = cache / name
    try:
        if target.is_file():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f"{name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as file:
                for chunk in chunks():
                    file.write(chunk)
                file.flush()
                # Else a crash of the machine could leave the name without its bytes.
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(
            f"{target}: expected to be able to write unpacked data here; got: "
            f"{error.strerror or error}. Set data.cache to a folder that you can write to and that "
            "has room."
        ) from error
    return target
