"""Models behind HTTP, for tests of what is served: clients, and a process that serves."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from fastapi.testclient import TestClient

from kept import SHAPE
from mach.config import ServeConfig
from mach.inference import Run
from mach.predictor import open_predictor
from mach.serve.app import create_app
from spawn import MACH, Command

NPY = {"content-type": "application/x-npy"}
JSON = {"content-type": "application/json"}
GOOD = np.zeros((1, *SHAPE)).tolist()


@contextmanager
def client_of(run_dir: Path, window: str | None = None, **options) -> Iterator[TestClient]:
    config = ServeConfig(str(run_dir), window=window, **options)
    with TestClient(create_app(open_predictor(run_dir, window), config)) as found:
        yield found


def x_of(run_dir: Path) -> np.ndarray:
    return np.asarray(Run(run_dir).dataset.x_test).astype("f4")


def probabilities(run_dir: Path, first: int, last: int) -> torch.Tensor:
    found = Run(run_dir)
    x = (torch.from_numpy(x_of(run_dir)) - found.dataset.mean) / found.dataset.std
    with torch.no_grad():
        return found.window(first, last)(x).softmax(-1)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@dataclass
class Server:
    command: Command
    url: str

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port


@contextmanager
def serving(
    run_dir: Path, folder: Path, *words: str, program: Sequence[str] = MACH
) -> Iterator[Server]:
    with Command([*program, "serve", str(run_dir), "port=0", *words], folder) as command:
        found: list[str] = []

        def listens() -> bool:
            found[:] = re.findall(r"http://\S+", command.so_far(0).stdout)
            return bool(found)

        command.until(listens)
        yield Server(command, found[0])
