"""A model behind HTTP, in this process: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from kept import SHAPE, keep
from mach.config import ServeConfig
from mach.inference import Run
from mach.predictor import open_predictor
from mach.serve.app import create_app
from mach.serve.batching import Batcher, BusyError, TooManyError
from mach.serve.npy import read, written
from served import GOOD, JSON, NPY, client_of, npy, probabilities, x_of
from spawn import until
from texts import make as make_text
from texts import write_text


@pytest.fixture(scope="module")
def client(asked_images) -> Iterator[TestClient]:
    """Of window 1..2 of the pictures, in this process."""
    with client_of(asked_images, window="1..2", max_body_mb=0.1) as found:
        yield found


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


def test_json_and_npy_get_the_same_answer(asked_images, client):
    x = x_of(asked_images)
    as_json = client.post("/predict?top=2", json={"inputs": x.tolist()})
    as_npy = client.post("/predict?top=2", content=npy(x), headers=NPY)
    assert as_json.status_code == as_npy.status_code == 200
    assert as_json.json() == as_npy.json()
    expected = probabilities(asked_images, 1, 2)
    found = as_json.json()
    assert found["model"] == "window 1..2"
    for answers, row in zip(found["predictions"], expected, strict=True):
        assert [a["label"] for a in answers] == row.topk(2).indices.tolist()
        assert answers[0]["probability"] == pytest.approx(float(row.max()), rel=1e-4)


def test_an_array_of_all_probabilities_comes_back_where_it_is_asked_for(asked_images, client):
    headers = {**NPY, "accept": "application/x-npy"}
    answer = client.post("/predict", content=npy(x_of(asked_images).astype("u1")), headers=headers)
    assert answer.headers["content-type"] == "application/x-npy"
    found = torch.from_numpy(np.load(io.BytesIO(answer.content)))
    torch.testing.assert_close(found, probabilities(asked_images, 1, 2))


def test_every_exit_of_the_window_answers(asked_images, client):
    answer = client.post("/predict?exits=true", json={"inputs": x_of(asked_images).tolist()}).json()
    assert [one["name"] for one in answer["exits"]] == ["window 1..1", "window 1..2"]
    for last, one in enumerate(answer["exits"], start=1):
        labels = [answers[0]["label"] for answers in one["predictions"]]
        assert labels == probabilities(asked_images, 1, last).argmax(-1).tolist()
    assert answer["exits"][-1]["predictions"] == answer["predictions"]


def test_texts_of_several_lengths_are_answered_in_their_order(asked_text):
    inputs = ["The quick", "T", "brown fox jumps over the lazy dog", "The slow."]
    with client_of(asked_text) as client:
        answer = client.post("/predict?exits=true", json={"inputs": inputs}).json()
    model, context = Run(asked_text).window(), Run(asked_text).config.data.context
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


def test_what_is_refused_early_is_counted_by_its_address(asked_images):
    with client_of(asked_images, max_body_mb=0.001) as client:
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


class Held:
    """A model that answers nothing before it is released."""

    def __init__(self) -> None:
        self.computing, self.release = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __call__(self, kind: bool, x: torch.Tensor) -> list[torch.Tensor]:
        self.sizes.append(len(x))
        self.computing.set()
        self.release.wait(10)
        return [x]


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


def test_a_request_that_has_waited_for_the_model_waits_no_longer_for_others():
    """wait_ms began anew when the model was free."""
    model, now_s = Held(), [0.0]

    async def ask():
        batcher = Batcher(model, max_batch=4, wait_s=600, max_queue=100, clock=lambda: now_s[0])
        batcher.start()
        first = asyncio.create_task(ask_one(batcher, False, torch.zeros(4, 1)))
        await asyncio.to_thread(model.computing.wait, 10)
        second = asyncio.create_task(ask_one(batcher, False, torch.ones(1, 1)))
        await asyncio.sleep(0)
        now_s[0] = 600.0
        model.release.set()
        try:
            return await asyncio.wait_for(asyncio.gather(first, second), 10)
        finally:
            await batcher.stop()

    (_, (found,)) = run_alone(ask())
    assert found.item() == 1
    assert model.sizes == [4, 1]


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


def test_what_is_left_of_a_request_that_was_given_up_is_not_computed():
    """It was computed to its end, and all others waited behind it."""
    model = Held()

    async def ask():
        batcher = Batcher(model, max_batch=4, wait_s=0, max_queue=100)
        batcher.start()
        large = asyncio.create_task(ask_one(batcher, False, torch.zeros(40, 1)))
        await asyncio.to_thread(model.computing.wait, 10)
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        model.release.set()
        (found,) = await ask_one(batcher, False, torch.ones(1, 1))
        await batcher.stop()
        return found

    assert run_alone(ask()).item() == 1
    assert model.sizes == [4, 1]


# --- what is refused -----------------------------------------------------------------------------


def headed(head: bytes) -> bytes:
    """An .npy that says this of its array."""
    return b"\x93NUMPY\x01\x00" + (len(head) + 1).to_bytes(2, "little") + head + b"\n"


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
def test_what_is_no_text_is_refused(asked_text, inputs):
    with client_of(asked_text) as client:
        assert client.post("/predict", json={"inputs": inputs}).status_code == 422


def test_a_text_is_described_by_its_tokens_not_by_its_characters(tmp_path):
    """Six characters are twelve bytes, as many as the model takes; they were said to be too few."""
    config = make_text(write_text(tmp_path), model={"name": "mlp", "heads": None}, steps=1)
    with client_of(keep(config, tmp_path / "run")) as client:
        assert client.post("/predict", json={"inputs": ["\u00e9" * 6]}).status_code == 200
        assert client.post("/predict", json={"inputs": ["e" * 6]}).status_code == 422
        body = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
    text = body["content"][JSON["content-type"]]["schema"]["properties"]["inputs"]["items"]
    assert text == {"type": "string", "minLength": 1, "description": "At least 12 tokens."}


def test_too_many_samples_at_once_are_told_to_be_fewer(asked_images, asked_text):
    with client_of(asked_images, max_queue=2) as client:
        answer = client.post("/predict", json={"inputs": GOOD * 3})
    assert answer.status_code == 413
    assert "retry-after" not in answer.headers, "they would be too many for ever"
    assert answer.json()["message"].startswith("expected at most 2 samples at once; got 3")
    with client_of(asked_text, max_queue=2) as client:
        assert client.post("/predict", json={"inputs": ["a", "bc", "d"]}).status_code == 413


def test_samples_for_which_there_is_no_room_now_are_told_to_come_again(asked_images):
    computing, release = threading.Event(), threading.Event()
    predictor = open_predictor(asked_images)

    def module(x: torch.Tensor) -> torch.Tensor:
        computing.set()
        release.wait(60)
        return predictor.module(x)

    def ask(samples: int) -> httpx.Response:
        return client.post("/predict", json={"inputs": GOOD * samples})

    held = create_app(
        replace(predictor, module=module), ServeConfig(str(asked_images), max_queue=2)
    )
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
