"""A model behind HTTP: what it answers, what it refuses, and that it stays up."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from kept import keep, of_images
from mach import cli
from mach.config import ServeConfig
from mach.inference import Run
from mach.predictor import open_predictor
from mach.serve import app
from mach.serve import server as server_module
from mach.serve.app import create_app
from mach.serve.batching import Batcher, BusyError, TooManyError
from mach.serve.npy import read, written
from mach.serve.server import threads_of
from spawn import MACH, Command, run, until
from texts import make as make_text
from texts import write_text

SHAPE = (6, 5)
NPY = {"content-type": "application/x-npy"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return keep(of_images(folder, *SHAPE, test=70), folder / "run")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    config = make_text(write_text(folder), student={"enabled": True}, steps=10)
    return keep(config, folder / "run")


@pytest.fixture(scope="module")
def client(images) -> Iterator[TestClient]:
    """Of window 1..2 of the pictures, in this process."""
    with client_of(images, window="1..2", max_body_mb=0.1) as found:
        yield found


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


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "?", "<i8", "f2"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (4, 0, 2)])
def test_arrays_are_read_and_written_as_numpy_does(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for _ in range(2):  # the second time its head is remembered
        assert written(array) == npy(array)
        found = read(npy(array))
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    columns = np.asfortranarray(array)
    np.testing.assert_array_equal(read(npy(columns)), columns)
    assert written(columns) == npy(np.ascontiguousarray(columns))


def test_what_numpy_does_not_read_is_not_read():
    good = npy(np.zeros((2, 3)))
    for body in (b"", good[:4], good[:40], good[:-1], b"no" + good):
        with pytest.raises((ValueError, EOFError)):
            read(body)
    assert read(good + b"more").shape == (2, 3), "as numpy.load, which reads no further"
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read(pickled.getvalue())


# --- answers -------------------------------------------------------------------------------------


def test_json_and_npy_get_the_same_answer(images, client):
    x = x_of(images)
    as_json = client.post("/predict?top=2", json={"inputs": x.tolist()})
    as_npy = client.post("/predict?top=2", content=npy(x), headers=NPY)
    assert as_json.status_code == as_npy.status_code == 200
    assert as_json.json() == as_npy.json()
    expected = probabilities(images, 1, 2)
    found = as_json.json()
    assert found["model"] == "window 1..2"
    for answers, row in zip(found["predictions"], expected, strict=True):
        assert [a["label"] for a in answers] == row.topk(2).indices.tolist()
        assert answers[0]["probability"] == pytest.approx(float(row.max()), rel=1e-4)


def test_an_array_of_all_probabilities_comes_back_where_it_is_asked_for(images, client):
    headers = {**NPY, "accept": "application/x-npy"}
    answer = client.post("/predict", content=npy(x_of(images).astype("u1")), headers=headers)
    assert answer.headers["content-type"] == "application/x-npy"
    found = torch.from_numpy(np.load(io.BytesIO(answer.content)))
    torch.testing.assert_close(found, probabilities(images, 1, 2))


def test_every_exit_of_the_window_answers(images, client):
    answer = client.post("/predict?exits=true", json={"inputs": x_of(images).tolist()}).json()
    assert [one["name"] for one in answer["exits"]] == ["window 1..1", "window 1..2"]
    for last, one in enumerate(answer["exits"], start=1):
        labels = [answers[0]["label"] for answers in one["predictions"]]
        assert labels == probabilities(images, 1, last).argmax(-1).tolist()
    assert answer["exits"][-1]["predictions"] == answer["predictions"]


def test_texts_of_several_lengths_are_answered_in_their_order(text):
    inputs = ["The quick", "T", "brown fox jumps over the lazy dog", "The slow."]
    with client_of(text) as client:
        answer = client.post("/predict?exits=true", json={"inputs": inputs}).json()
    model, context = Run(text).window(), Run(text).config.data.context
    for said, answers in zip(inputs, answer["predictions"], strict=True):
        with torch.no_grad():
            row = model(torch.tensor([list(said.encode())[-context:]]))[-1].softmax(-1)
        assert answers[0]["label"] == bytes([int(row.argmax())]).decode(errors="replace")
        assert answers[0]["probability"] == pytest.approx(float(row.max()), rel=1e-4)
    assert [one["name"] for one in answer["exits"]] == ["chain 0..0", "chain 0..1"]


def test_what_the_model_takes_is_told_and_requests_are_counted(client):
    assert client.get("/healthz").json() == {"status": "ok", "model": "window 1..2"}
    told = client.get("/model").json()
    assert (told["shape"], told["classes"], told["kind"]) == ([6, 5], 4, "features")
    client.post("/predict", json={"inputs": np.zeros((3, *SHAPE)).tolist()})
    metrics = client.get("/metrics").text
    assert re.search(r'mach_requests_total{path="/predict",status="200"} [1-9]', metrics)
    assert re.search(r'mach_batch_samples_bucket{le="4.0"} [1-9]', metrics)
    assert "swagger" in client.get("/docs").text
    assert "cdn" not in client.get("/docs").text


def test_what_is_refused_early_is_counted_by_its_address(images):
    with client_of(images, max_body_mb=0.001) as client:
        assert client.post("/predict", content="x" * 2000).status_code == 413
        client.get("/nowhere")
        client.get("/predict")
        metrics = client.get("/metrics").text
    told = dict(re.findall(r'mach_requests_total(\{path="\S+",status="\d+"\}) (\S+)', metrics))
    assert told == {
        '{path="/predict",status="413"}': "1.0",
        '{path="other",status="404"}': "1.0",
        '{path="/predict",status="405"}': "1.0",
    }


# --- batches -------------------------------------------------------------------------------------


def run_alone(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to its end on a thread of its own: on this one a browser's driver may have a loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result(30)


async def ask_one(batcher: Batcher, kind: bool, x: torch.Tensor) -> list[torch.Tensor]:
    (found,) = await batcher.ask(kind, [x])
    return found


def test_requests_that_come_while_the_model_is_busy_share_a_batch():
    release, sizes = threading.Event(), []

    def compute(kind, x):
        sizes.append(len(x))
        release.wait(10)
        return [x * 2, x * 3]

    async def ask():
        batcher = Batcher(compute, max_batch=8, wait_s=0, max_queue=100)
        batcher.start()
        first = asyncio.create_task(ask_one(batcher, False, torch.zeros(1, 2)))
        while not sizes:
            await asyncio.sleep(0)
        threes = [torch.full((3, 2), i) for i in range(4)]
        others = [asyncio.create_task(ask_one(batcher, False, x)) for x in threes]
        odd = asyncio.create_task(ask_one(batcher, True, torch.ones(1, 2)))
        await asyncio.sleep(0)
        gone = others.pop()
        gone.cancel()
        release.set()
        answers = await asyncio.gather(first, *others, odd)
        await batcher.stop()
        return answers, batcher.waiting

    answers, waiting = run_alone(ask())
    assert sizes == [1, 6, 3, 1], "two of three fit into eight, then the other kind is alone"
    for i, (twice, thrice) in enumerate(answers[1:4]):
        assert torch.equal(twice, torch.full((3, 2), 2 * i))
        assert torch.equal(thrice, torch.full((3, 2), 3 * i))
    assert waiting == 0


def test_a_request_larger_than_a_batch_is_computed_in_parts():
    sizes = []

    def compute(kind, x):
        sizes.append(len(x))
        return [x + 1]

    async def ask():
        batcher = Batcher(compute, max_batch=4, wait_s=0, max_queue=100)
        batcher.start()
        (found,) = await ask_one(batcher, False, torch.arange(10.0)[:, None])
        await batcher.stop()
        return found

    assert torch.equal(run_alone(ask()), torch.arange(10.0)[:, None] + 1)
    assert sizes == [4, 4, 2]


def test_an_error_of_the_model_reaches_who_asked_and_nobody_else():
    def compute(kind, x):
        if kind:
            raise ValueError("no")
        return [x]

    async def ask():
        batcher = Batcher(compute, max_batch=4, wait_s=0, max_queue=100)
        batcher.start()
        with pytest.raises(ValueError, match="no"):
            await ask_one(batcher, True, torch.zeros(1, 1))
        (found,) = await ask_one(batcher, False, torch.ones(1, 1))
        await batcher.stop()
        return found

    assert run_alone(ask()).item() == 1


def test_more_than_may_wait_is_refused():
    async def ask():
        batcher = Batcher(lambda kind, x: [x], max_batch=4, wait_s=0, max_queue=5)
        waits = asyncio.create_task(ask_one(batcher, False, torch.zeros(3, 1)))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="at most 5 samples waiting; 3 do"):
            await ask_one(batcher, False, torch.zeros(4, 1))
        with pytest.raises(TooManyError, match="at most 5 samples at once; got 6"):
            await ask_one(batcher, False, torch.zeros(6, 1))
        with pytest.raises(BusyError):
            await batcher.ask(False, [torch.zeros(1, 1), torch.zeros(2, 2)])
        waits.cancel()
        return batcher.waiting

    assert run_alone(ask()) == 3, "of a request that is refused no part waits"


def test_what_is_left_of_a_request_that_failed_is_not_computed():
    """Texts of several lengths are several parts of one request."""
    told, sizes = threading.Event(), []

    def compute(kind, x):
        sizes.append(len(x))
        if len(sizes) == 2:  # may have been taken before the loop knew of the first
            told.wait(10)
        raise ValueError("no")

    async def ask():
        batcher = Batcher(compute, max_batch=4, wait_s=0, max_queue=100)
        batcher.start()
        with pytest.raises(ValueError, match="no"):
            await batcher.ask(False, [torch.zeros(n, n) for n in (1, 2, 3)])
        told.set()
        with pytest.raises(ValueError, match="no"):
            await ask_one(batcher, False, torch.zeros(4, 4))
        await batcher.stop()

    run_alone(ask())
    assert 3 not in sizes


# --- what is refused -----------------------------------------------------------------------------


def headed(head: bytes) -> bytes:
    """An .npy that says this of its array."""
    return b"\x93NUMPY\x01\x00" + (len(head) + 1).to_bytes(2, "little") + head + b"\n"


GOOD = np.zeros((1, *SHAPE)).tolist()


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (json.dumps({"inputs": [[1, 2]]}), None, 422, r"expected numbers of shape \[samples, 6, 5"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "NaN", 1), None, 422, "finite numbers.*nan"),
        (json.dumps({"inputs": GOOD}).replace("0.0", '"a"', 1), None, 422, "numbers .*got 'a'"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "null", 1), None, 422, "got None"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "true", 1), None, 422, "got True"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "1e39", 1), None, 422, "within float32"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "1e30", 1), None, 422, "2.55e.08 of 0"),
        (json.dumps({"inputs": GOOD}).replace("0.0", "9" * 400, 1), None, 422, "expected"),
        (json.dumps({"inputs": []}), None, 422, "one sample or more"),
        (json.dumps({"inputs": "text"}), None, 422, "a list of samples; got str"),
        (json.dumps({"input": GOOD}), None, 422, 'expected {"inputs"'),
        (json.dumps([1]), None, 422, 'expected {"inputs"'),
        ("{", None, 400, "expected JSON"),
        (b"\xff\xfe", None, 400, "expected JSON"),
        ("", None, 400, "expected JSON"),
        ("x", {"content-type": "text/plain"}, 415, "expected content-type"),
        (b"no npy", NPY, 400, "expected what numpy.save writes"),
        (npy(np.zeros((1, *SHAPE)))[:-9], NPY, 400, "expected what numpy.save writes"),
        (npy(np.full((1, *SHAPE), np.nan)), NPY, 422, "finite"),
        (npy(np.zeros((2, 3))), NPY, 422, r"got shape \[2, 3\]"),
        (npy(np.zeros(())), NPY, 422, "one number"),
        (npy(np.full((1, *SHAPE), "a")), NPY, 422, "got <U1"),
        ("x" * 200_000, None, 413, "at most 104,857 bytes"),
    ],
)
def test_a_bad_request_gets_a_clear_error_as_json(client, body, headers, status, says):
    headers = headers or JSON
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "message"}
    assert re.search(says, answer.json()["message"]), answer.json()
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"PK\x03\x04garbage",
        headed(b"{'descr': (((("),
        headed(b"{'descr': ('<f4',), 'fortran_order': False, 'shape': (1, 6, 5)}"),
        headed(b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"-" * 3000 + b"1}"),
        headed(b"{'descr': '<f4', 'fortran_order': False, 'shape': 1" + b"+1" * 3000 + b"}"),
    ],
    ids=["zip", "brackets", "tuple", "minus", "plus"],
)
def test_whatever_numpy_stumbles_over_is_no_npy(client, body):
    """Each made it raise another error than the last."""
    answer = client.post("/predict", content=body, headers=NPY)
    assert answer.status_code == 400
    assert "expected what numpy.save writes" in answer.json()["message"]


def test_objects_are_not_unpickled(client):
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    answer = client.post("/predict", content=file.getvalue(), headers=NPY)
    assert answer.status_code == 400
    assert "allow_pickle=False" in answer.json()["message"]


@pytest.mark.parametrize("query", ["top=0", "top=5", "top=many", "exits=maybe"])
def test_a_bad_query_is_refused(client, query):
    answer = client.post(f"/predict?{query}", json={"inputs": GOOD})
    assert answer.status_code == 422
    assert query.split("=")[0] in answer.json()["message"]


@pytest.mark.parametrize("inputs", [[""], [1], [], "text", [None]])
def test_what_is_no_text_is_refused(text, inputs):
    with client_of(text) as client:
        assert client.post("/predict", json={"inputs": inputs}).status_code == 422


def test_too_many_samples_at_once_are_told_to_be_fewer(images, text):
    with client_of(images, max_queue=2) as client:
        answer = client.post("/predict", json={"inputs": GOOD * 3})
    assert answer.status_code == 413
    assert "retry-after" not in answer.headers, "they would be too many for ever"
    assert answer.json()["message"].startswith("expected at most 2 samples at once; got 3")
    with client_of(text, max_queue=2) as client:
        assert client.post("/predict", json={"inputs": ["a", "bc", "d"]}).status_code == 413


def test_samples_for_which_there_is_no_room_now_are_told_to_come_again(images):
    computing, release = threading.Event(), threading.Event()
    predictor = open_predictor(images)

    def module(x: torch.Tensor) -> torch.Tensor:
        computing.set()
        release.wait(60)
        return predictor.module(x)

    def ask(samples: int) -> httpx.Response:
        return client.post("/predict", json={"inputs": GOOD * samples})

    held = create_app(replace(predictor, module=module), ServeConfig(str(images), max_queue=2))
    with TestClient(held) as client, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, 1)
        assert computing.wait(60)
        second = threads.submit(ask, 2)
        until(lambda: "mach_waiting_samples 2.0" in client.get("/metrics").text, 60)
        refused = ask(1)
        release.set()
        answered = [one.result(60).status_code for one in (first, second)]
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["message"].startswith("expected at most 2 samples waiting; 2 do")
    assert answered == [200, 200]


# --- a process of its own ------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def server(images, tmp_path_factory) -> Iterator[Server]:
    """One that loses its patience after two seconds."""
    folder = tmp_path_factory.mktemp("server")
    with serving(images, folder, "window=1..2", "read_timeout_s=2") as found:
        yield found


@pytest.fixture(scope="module")
def patient(images, tmp_path_factory) -> Iterator[Server]:
    """One that closes no connection for its slowness."""
    folder = tmp_path_factory.mktemp("patient")
    with serving(images, folder, "read_timeout_s=600", "max_bodies_mb=8") as found:
        yield found


@pytest.mark.timeout(300)
def test_the_service_is_as_its_openapi_description_says(server, tmp_path):
    schemathesis = Path(sys.executable).with_name("schemathesis")
    words = ["--max-examples", "10", "--phases", "examples,coverage,fuzzing", "--checks", "all"]
    words += ["--seed", "0", "--generation-database", "none", "--no-color"]
    command = [str(schemathesis), "run", f"{server.url}openapi.json", *words]
    done = run(command, tmp_path, deadline_s=280)
    assert done.code == 0, str(done)
    assert httpx.get(f"{server.url}healthz", timeout=60).status_code == 200


def test_no_part_of_an_answer_waits_for_the_client(server):
    """Nagle's algorithm would hold back the body for 40 ms, every time."""

    def asked_s() -> float:
        began = time.perf_counter()
        assert client.get("healthz").status_code == 200
        return time.perf_counter() - began

    with httpx.Client(base_url=server.url, timeout=60) as client:
        times = [asked_s() for _ in range(60)]  # at first a client acknowledges at once
    assert min(times[40:]) < 0.03


def test_it_listens_on_this_machine_alone(server):
    assert server.address[0] == "127.0.0.1"


def test_many_slow_connections_do_not_keep_others_out(server):
    """Half of them say nothing, half begin a request and never end it."""
    began = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.address)) for _ in range(1000)]
        for one in slow[::4]:
            one.sendall(began)
        for one in slow[1::4]:
            one.sendall(began + b"content-length: 1000\r\n\r\n{")
        answer = httpx.post(f"{server.url}predict", json={"inputs": GOOD}, timeout=60)
        assert answer.status_code == 200
        for one in slow:
            one.settimeout(60)
        told = [b"".join(iter(partial(one.recv, 4096), b"")) for one in slow]  # until it closes
        assert not any(told[::4])
        assert not any(told[2::4]), "closed without a word, as no request had begun"
        for one in told[1::4]:
            assert one.startswith(b"HTTP/1.1 408")
            assert b'"error": "TooSlow"' in one
    metrics = httpx.get(f"{server.url}metrics", timeout=60).text
    assert re.search(r'mach_requests_total{path="/predict",status="408"} [1-9]', metrics)


def test_a_body_without_a_length_is_cut_off_too(images, tmp_path):
    began = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with serving(images, tmp_path, "max_body_mb=0.01") as server:
        with socket.create_connection(server.address, timeout=60) as one:
            one.sendall(began + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(3):  # of 4 KB each
                one.sendall(b"1000\r\n" + b"[" * 4096 + b"\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 413")
        assert httpx.get(f"{server.url}healthz", timeout=60).status_code == 200


FAILING = """
from torch import nn
from mach import cli

nn.Linear.forward = lambda layer, x: 1 / 0
cli.main()
"""


def test_a_model_that_fails_is_told_as_json_and_logged_once(images, tmp_path):
    program = [sys.executable, "-c", FAILING]
    with serving(images, tmp_path, program=program) as server:
        answer = httpx.post(f"{server.url}predict", json={"inputs": GOOD}, timeout=60)
        assert httpx.get(f"{server.url}healthz", timeout=60).status_code == 200
        server.command.process.send_signal(signal.SIGTERM)
        logged = server.command.wait().stderr
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "InternalError",
        "message": "expected an answer; the service has failed. Its log says where.",
    }
    assert logged.count("Traceback") == logged.count("ZeroDivisionError") == 1


POST = b"POST /predict HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * (1 << 16),
        POST + b"a: " + b"x" * 65_000 + b"\r\nb: " + b"x" * 1000 + b"\r\n\r\n",
        POST + b"a: b\r\n" * 40_000 + b"\r\n",
        POST + b"a: " + b"x" * 1_000_000,
        POST + b"transfer-encoding: chunked\r\n\r\n0\r\na: " + b"x" * 1_000_000,
        POST + b"transfer-encoding: chunked\r\n\r\n1;a=" + b"x" * 1_000_000,
    ],
    ids=["address", "two", "many", "one without an end", "behind a body", "of a chunk"],
)
def test_headers_without_an_end_are_cut_off(patient, sent):
    with socket.create_connection(patient.address, timeout=60) as one:
        told = b""
        with suppress(ConnectionError):  # it is not read to its end
            one.sendall(sent)
            told = b"".join(iter(partial(one.recv, 4096), b""))
    assert not told or told.startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{patient.url}healthz", timeout=60).status_code == 200


def test_what_is_no_http_is_told_as_json(patient):
    with socket.create_connection(patient.address, timeout=60) as one:
        one.sendall(b"nonsense\r\n\r\n")
        told = b"".join(iter(partial(one.recv, 4096), b""))
    assert told.startswith(b"HTTP/1.1 400")
    assert json.loads(told.partition(b"\r\n\r\n")[2]).keys() == {"error", "message"}


ANSWERED = 'mach_requests_total{path="/predict",status="200"}'


def ask_for_much(server: Server) -> socket.socket:
    """A connection by which 18 MB of answer or more come: no system keeps that for a client."""
    body = npy(np.zeros((40_000, *SHAPE), "u1"))
    head = f"POST /predict?top=4&exits=true HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(server.address)
    connection.sendall(f"{head}content-type: application/x-npy\r\n\r\n".encode() + body)
    return connection


def test_an_answer_that_nobody_takes_is_dropped(images, tmp_path):
    with serving(images, tmp_path, "window=1..2", "read_timeout_s=3") as server:
        with ask_for_much(server) as connection:
            metrics = f"{server.url}metrics"
            until(lambda: ANSWERED in httpx.get(metrics, timeout=60).text, 60)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        assert httpx.get(f"{server.url}healthz", timeout=60).status_code == 200


def test_an_answer_counts_until_it_is_taken(patient):
    def ask() -> int:
        answer = httpx.post(f"{patient.url}predict", json={"inputs": GOOD}, timeout=60)
        return answer.status_code

    with ask_for_much(patient) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert ask() == 503
        assert len(json.loads(answer.read())["predictions"]) == 40_000
        until(lambda: ask() == 200, 60)


@pytest.mark.parametrize(
    ("run_dir", "place"), [("images", "batch_of"), ("images", "refuse_nan"), ("text", "tokens_of")]
)
def test_others_are_answered_while_a_large_request_is(request, monkeypatch, run_dir, place):
    """As it is read, and as its answer is written."""
    begun, go_on, whole = threading.Event(), threading.Event(), getattr(app, place)

    def held(*arguments: object) -> object:
        begun.set()
        assert go_on.wait(30), "nobody else was answered"
        return whole(*arguments)

    monkeypatch.setattr(app, place, held)
    body, headers = npy(np.zeros((40_000, *SHAPE), "u1")), NPY
    if run_dir == "text":
        body, headers = json.dumps({"inputs": ["a text " * 20_000]}).encode(), JSON
    with client_of(request.getfixturevalue(run_dir)) as client, ThreadPoolExecutor(1) as thread:
        large = thread.submit(client.post, "/predict", content=body, headers=headers)
        assert begun.wait(60)
        assert client.get("/healthz").status_code == 200
        go_on.set()
        assert large.result(60).status_code == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_here_be_answered(images, tmp_path, number, code):
    with serving(images, tmp_path, "wait_ms=1000") as server:
        answers = []

        def ask() -> None:
            answers.append(httpx.post(f"{server.url}predict", json={"inputs": GOOD}, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        metrics = f"{server.url}metrics"
        deadline = time.monotonic() + 60
        while "mach_waiting_samples 1.0" not in httpx.get(metrics, timeout=60).text:
            assert time.monotonic() < deadline
        server.command.process.send_signal(number)
        done = server.command.wait()
        asking.join(60)
    assert done.code == code, done
    assert done.stderr == ""
    assert [one.status_code for one in answers] == [200]


def test_a_port_that_is_taken_is_refused(images, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.answer("serve", [str(images), f"port={port}"]) == 2
    assert f"port={port}: expected an address to listen at; Address already in use" in (
        capsys.readouterr().err
    )


def test_one_core_is_left_to_the_service():
    asked, any_number = ServeConfig("run", threads=3), ServeConfig("run")
    assert [threads_of(any_number, cores) for cores in (1, 2, 8)] == [1, 1, 7]
    assert threads_of(asked, 2) == 3


def test_an_onnx_file_computes_with_as_many_threads_as_asked(images, tmp_path, monkeypatch):
    """onnxruntime fixes their number when it opens the file."""
    words = [str(images), "window=1..2", "format=onnx", f"out={tmp_path / 'onnx'}"]
    assert cli.answer("export", words) == 0
    opened, before = [], torch.get_num_threads()
    monkeypatch.setattr(app, "create_app", lambda predictor, config: opened.append(predictor))
    monkeypatch.setattr(server_module, "_run", lambda server, listening: 0)
    try:
        for threads in (3, 2):
            config = ServeConfig(str(tmp_path / "onnx"), port=0, threads=threads)
            assert server_module.serve(config, ready=lambda line: None) == 0
    finally:
        torch.set_num_threads(before)
    options = [one.module._session.get_session_options() for one in opened]
    assert [one.intra_op_num_threads for one in options] == [3, 2]


def test_an_address_of_ipv6_can_be_followed(images, tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with serving(images, tmp_path, "host=::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(f"{server.url}healthz", timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere: expected a run folder"),
        (["{run}", "window=0..9"], r"window=0\.\.9: expected j\.\.i"),
        (["{run}", "port=99999"], "port: expected 0 to 65535"),
        (["{run}", "--threads", "0"], "threads: expected 1 or more"),
    ],
)
def test_what_cannot_be_served_is_refused(images, capsys, words, says):
    assert cli.answer("serve", [word.format(run=images) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told


# --- the page ------------------------------------------------------------------------------------


@contextmanager
def page_of(chromium, url: str) -> Iterator[tuple]:
    """The page of a service, and what the browser complains about."""
    context = chromium.new_context()
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page, said
    context.close()


def test_a_person_draws_and_sees_what_each_exit_says(server, chromium):
    with page_of(chromium, server.url) as (page, said):
        canvas = page.locator("#canvas")
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2
        page.mouse.move(middle, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(middle, box["y"] + box["height"] - 40, steps=4)
        with page.expect_response("**/predict**") as response:
            page.mouse.up()
        (inputs,) = json.loads(response.value.request.post_data)["inputs"]
        answer = response.value.json()
        page.wait_for_selector("#answers tbody tr")
        names = page.locator("#answers tbody tr td:first-child").all_inner_texts()
        labels = page.locator("#answers tbody tr td:nth-child(2)").all_inner_texts()
        page.click("#clear")
        assert page.locator("#answers").is_hidden()
    drawn = np.asarray(inputs)
    assert drawn.shape == SHAPE
    assert drawn[:, 2].max() > 200, "white where it was drawn"
    assert drawn[:, [0, 4]].max() < 50, "black beside"
    assert names == ["window 1..1", "window 1..2"]
    told = [exit["predictions"][0][0]["label"] for exit in answer["exits"]]
    assert labels == [str(label) for label in told]
    assert said == []


def test_a_person_types_and_sees_what_each_exit_says(text, tmp_path, chromium):
    with serving(text, tmp_path) as server, page_of(chromium, server.url) as (page, said):
        page.fill("#text", "The quick brown fo")
        page.wait_for_selector("#answers tbody tr")
        names = page.locator("#answers tbody tr td:first-child").all_inner_texts()
        first = page.locator("#answers tbody tr td:nth-child(2)").first.inner_text()
        page.fill("#text", "")
        page.wait_for_selector("#answers", state="hidden")
        assert said == []
        page.goto(f"{server.url}docs")
        page.wait_for_selector("text=/predict")
    assert names == ["chain 0..0", "chain 0..1"]
    assert re.fullmatch(r'".+"', first)


def test_the_page_tells_of_an_answer_that_is_no_json(server, chromium):
    with page_of(chromium, server.url) as (page, said):
        page.route("**/predict**", lambda route: route.fulfill(status=502, body="Bad Gateway"))
        page.click("#canvas")
        page.wait_for_selector("#error:text-matches('502')")
    assert not [one for one in said if "SyntaxError" in one]


def test_an_answer_to_what_is_no_longer_there_is_not_shown(text, tmp_path, chromium):
    with serving(text, tmp_path) as server, page_of(chromium, server.url) as (page, said):
        page.clock.install()
        asked = []
        page.route("**/predict**", lambda route: asked.append(route))
        with page.expect_request("**/predict**"):
            page.fill("#text", "The quick")
            page.clock.run_for(1000)
        page.fill("#text", "")
        page.clock.run_for(1000)
        with page.expect_response("**/predict**"):
            asked[0].continue_()
        page.evaluate("fetch('healthz').then(one => one.json())")  # the page has seen it by now
        assert page.locator("#answers").is_hidden()
    assert said == []


def test_a_stroke_that_is_taken_from_the_pen_ends(server, chromium):
    """A touch becomes a gesture of the browser: `pointerup` never comes."""
    with page_of(chromium, server.url) as (page, said):
        drawn = "document.getElementById('canvas').toDataURL()"
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        with page.expect_response("**/predict**"):
            page.dispatch_event("#canvas", "pointercancel")
        before = page.evaluate(drawn)
        page.mouse.move(box["x"] + 90, box["y"] + 90)
        assert page.evaluate(drawn) == before
    assert said == []
