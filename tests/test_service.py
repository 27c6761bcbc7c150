"""A process that serves: it stays up, whatever comes, and ends as it is told."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from kept import SHAPE
from mach import cli
from mach.config import ServeConfig
from mach.errors import ConfigError
from mach.serve import app
from mach.serve import server as server_module
from mach.serve.server import threads_of
from served import GOOD, JSON, NPY, Server, client_of, npy, serving
from spawn import run, until


@pytest.fixture(scope="module")
def server(asked_images, tmp_path_factory) -> Iterator[Server]:
    """One that loses its patience after two seconds."""
    folder = tmp_path_factory.mktemp("server")
    with serving(asked_images, folder, "window=1..2", "read_timeout_s=2") as found:
        yield found


@pytest.fixture(scope="module")
def patient(asked_images, tmp_path_factory) -> Iterator[Server]:
    """One that closes no connection for its slowness."""
    folder = tmp_path_factory.mktemp("patient")
    with serving(asked_images, folder, "read_timeout_s=600", "max_bodies_mb=8") as found:
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


@pytest.mark.parametrize("key", ["max_body_mb", "max_bodies_mb", "drain_s", "read_timeout_s"])
def test_a_limit_without_end_is_refused(key):
    with pytest.raises(ConfigError, match=f"{key}: expected 0.* to .*; got inf"):
        ServeConfig("run", **{key: float("inf")})


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


def test_a_body_without_a_length_is_cut_off_too(asked_images, tmp_path):
    began = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with serving(asked_images, tmp_path, "max_body_mb=0.01") as server:
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


def test_a_model_that_fails_is_told_as_json_and_logged_once(asked_images, tmp_path):
    program = [sys.executable, "-c", FAILING]
    with serving(asked_images, tmp_path, program=program) as server:
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


def test_an_answer_that_nobody_takes_is_dropped(asked_images, tmp_path):
    with serving(asked_images, tmp_path, "window=1..2", "read_timeout_s=3") as server:
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
    ("run_dir", "place"),
    [("asked_images", "batch_of"), ("asked_images", "refuse_nan"), ("asked_text", "tokens_of")],
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
    if run_dir == "asked_text":
        body, headers = json.dumps({"inputs": ["a text " * 20_000]}).encode(), JSON
    with client_of(request.getfixturevalue(run_dir)) as client, ThreadPoolExecutor(1) as thread:
        large = thread.submit(client.post, "/predict", content=body, headers=headers)
        assert begun.wait(60)
        assert client.get("/healthz").status_code == 200
        go_on.set()
        assert large.result(60).status_code == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_here_be_answered(asked_images, tmp_path, number, code):
    with serving(asked_images, tmp_path, "wait_ms=1000") as server:
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


def test_a_port_that_is_taken_is_refused(asked_images, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.answer("serve", [str(asked_images), f"port={port}"]) == 2
    assert f"port={port}: expected an address to listen at; Address already in use" in (
        capsys.readouterr().err
    )


def test_one_core_is_left_to_the_service():
    asked, any_number = ServeConfig("run", threads=3), ServeConfig("run")
    assert [threads_of(any_number, cores) for cores in (1, 2, 8)] == [1, 1, 7]
    assert threads_of(asked, 2) == 3


def test_an_onnx_file_computes_with_as_many_threads_as_asked(asked_images, tmp_path, monkeypatch):
    """onnxruntime fixes their number when it opens the file."""
    words = [str(asked_images), "window=1..2", "format=onnx", f"out={tmp_path / 'onnx'}"]
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


def test_an_address_of_ipv6_can_be_followed(asked_images, tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with serving(asked_images, tmp_path, "host=::1") as server:
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
def test_what_cannot_be_served_is_refused(asked_images, capsys, words, says):
    assert cli.answer("serve", [word.format(run=asked_images) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told), told
