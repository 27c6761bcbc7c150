"""Which addresses does the service have, and what does each answer?

GET  /          a page where a person draws, or types, and sees what each exit says
POST /predict   samples as JSON or .npy to labels, or to the tokens that follow
GET  /model     what the model takes
GET  /healthz   whether it answers
GET  /metrics   for Prometheus
GET  /docs      OpenAPI; its description is at /openapi.json
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route
from torch import Tensor

from mach.asking.answers import last_rows, refuse_nan
from mach.asking.samples import batch_of, tokens_of
from mach.config import ServeConfig
from mach.errors import InputError
from mach.predictor import Predictor
from mach.serve import answers, aside, npy
from mach.serve.answers import Predictions
from mach.serve.aside import Aside
from mach.serve.batching import Batcher, BusyError, TooManyError
from mach.serve.limits import Limits, error_body
from mach.serve.schema import NPY, request_schema, takes_text
from mach.serve.telemetry import Counting, Telemetry

_MEBI = 1 << 20

_PROBABILITIES, _ANSWERS = 1 << 24, 1 << 19
"""Most that one request may ask for. Probabilities are kept, in float32, until all of its samples
have theirs; an answer is some 50 bytes of JSON. Of a large vocabulary few samples have so many."""


class Error(BaseModel):
    """Every answer that is no success."""

    error: str
    message: str


class Health(BaseModel):
    """The service answers."""

    status: str
    model: str


class Model(BaseModel):
    """What the model is, takes and answers."""

    model: str
    exits: list[str]
    shape: list[int]
    classes: int
    kind: str
    """features, text or tokens."""
    low: float
    high: float


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "The body is no JSON or no .npy.",
        408: "The body came too slowly.",
        413: "The body is too large or has too many samples, or the answer would be: more than "
        f"{_PROBABILITIES:,} of samples x exits x classes or, as JSON, {_ANSWERS:,} of samples x "
        "exits x top.",
        415: "Neither application/json nor application/x-npy.",
        422: "Not what the model takes.",
        500: "The service has failed.",
        503: "Too many samples wait; come again in a moment.",
    }.items()
}


def create_app(predictor: Predictor, config: ServeConfig) -> FastAPI:
    """The service of one model, as an ASGI application.

    Raises:
        DataError: its tokenizer cannot be had.
    """
    service = _Service(predictor, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.stop()
        service.aside.stop()

    app = FastAPIOffline(
        title=predictor.title,
        version=version("mach"),
        description=f"A model trained by mach: {predictor.title} of "
        f"{predictor.source.resolve().name}.",
        lifespan=lifespan,
        redoc_url=None,
    )
    service.add_to(app)
    app.add_middleware(
        Limits,
        max_body=int(config.max_body_mb * _MEBI),
        max_bodies=int(config.max_bodies_mb * _MEBI),
        timeout_s=config.read_timeout_s,
    )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    # The outermost: it sees refusals.
    app.add_middleware(Counting, telemetry=service.telemetry, paths=paths)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_exception_handler(StarletteHTTPException, _refuse)
    app.add_exception_handler(Exception, _fail)
    return app


class _Service:
    def __init__(self, predictor: Predictor, config: ServeConfig) -> None:
        self._predictor, self._signature = predictor, predictor.signature
        self._tokenizer = predictor.signature.restore_tokenizer()
        if self._tokenizer is not None:
            self._tokenizer.encode("")  # now: tiktoken may have to download, and may not be there
        self._timeout_s = config.answer_timeout_s
        self.batcher = Batcher(
            self._compute,
            max_batch=config.max_batch,
            logits=self._logits,
            wait_s=1e-3 * config.wait_ms,
            max_queue=config.max_queue,
            observe=lambda samples, seconds: self.telemetry.batched(samples, seconds),
        )
        self.aside = Aside()
        self.telemetry = Telemetry(lambda: self.batcher.waiting)

    def add_to(self, app: FastAPI) -> None:
        """Give the application its addresses."""
        signature, predictor = self._signature, self._predictor
        how_many = Query(1, ge=1, le=signature.classes)
        page = files("mach.serve").joinpath("page.html").read_text()

        @app.post(
            "/predict",
            response_model=Predictions,
            responses={
                200: {"content": {NPY: {"schema": {"type": "string", "format": "binary"}}}},
                **_REFUSALS,
            },
            openapi_extra={"requestBody": request_schema(signature)},
        )
        async def predict(
            request: Request,
            top: int = how_many,
            exits: bool = False,
        ) -> Response:
            """What the model says of each sample.

            With `Accept: application/x-npy` the answer is an array of the probabilities of all
            classes, float32 [samples, classes].
            """
            return await self.predict(request, top, exits)

        @app.get("/model")
        async def model() -> Model:
            """What the model takes."""
            text = "text" if takes_text(signature) else "tokens"
            return Model(
                model=predictor.title,
                exits=list(predictor.exits),
                shape=list(signature.shape),
                classes=signature.classes,
                kind=text if signature.text else "features",
                low=signature.low,
                high=signature.high,
            )

        @app.get("/healthz")
        async def healthz() -> Health:
            """Whether the service answers."""
            return Health(status="ok", model=predictor.title)

        @app.get(
            "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
        )
        async def metrics() -> Response:
            """Counters in Prometheus' text format."""
            return Response(self.telemetry.text(), media_type="text/plain; version=0.0.4")

        @app.get("/", include_in_schema=False)
        async def index() -> HTMLResponse:
            return HTMLResponse(page)

    async def predict(self, request: Request, top: int, exits: bool) -> Response:
        body = await request.body()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._predict(request.headers, body, top, exits)
        except TimeoutError as error:
            raise HTTPException(503, f"expected an answer within {self._timeout_s:g} s") from error
        except TooManyError as error:
            raise HTTPException(413, str(error)) from error
        except BusyError as error:
            raise HTTPException(503, str(error), {"retry-after": "1"}) from error
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    async def _predict(self, headers: Headers, body: bytes, top: int, exits: bool) -> Response:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        numbers = len(body) * (1 if kind == NPY else aside.JSON_BYTE)
        groups = await self.aside.do(numbers, lambda: _by_shape(self._samples(kind, body)))
        places = [place for _, its in groups for place in its]
        as_npy = NPY in headers.get("accept", "")
        self._refuse_much(len(places), 0 if as_npy else top, exits)
        found = await self.batcher.ask(exits, [x for x, _ in groups])
        numbers = sum(one.numel() for of_group in found for one in of_group)
        if as_npy:
            return await self.aside.do(numbers, lambda: _as_npy(_by_exit(found, places)))
        numbers += len(places) * len(found[0]) * top * aside.JSON_ANSWER
        names = self._predictor.exits if exits else None
        return await self.aside.do(
            numbers, lambda: self._as_json(_by_exit(found, places), names, top)
        )

    def _refuse_much(self, samples: int, top: int, exits: bool) -> None:
        """Refuse a request that would take the memory of all others.

        Args:
            top: answers as JSON for each sample.

        Raises:
            TooManyError: it would.
        """
        rows = samples * self._exits(exits)
        for what, each, most in (
            ("classes", self._signature.classes, _PROBABILITIES),
            ("top", top, _ANSWERS),
        ):
            if rows * each > most:
                raise TooManyError(
                    f"expected at most {most:,} of samples x exits x {what} at once; got "
                    f"{rows * each:,}. Send fewer samples, or ask for less of each."
                )

    def _as_json(self, by_exit: list[Tensor], names: Sequence[str] | None, top: int) -> Response:
        told = answers.written(self._predictor.title, by_exit, names, top, self._tokenizer)
        return Response(told, media_type="application/json")

    def _samples(self, kind: str, body: bytes) -> list[Tensor]:
        """Samples of the request, in one batch or, where they are texts, one by one."""
        if kind == NPY:
            return [batch_of(_read_npy(body), self._signature)]
        if kind != "application/json":
            raise HTTPException(
                415, f"expected content-type application/json or {NPY}; got {kind or 'none'}"
            )
        inputs = _inputs_of(body)
        if takes_text(self._signature):
            return self._texts(inputs)
        return [batch_of(inputs, self._signature)]

    def _texts(self, inputs: list[Any]) -> list[Tensor]:
        if not inputs or not all(isinstance(one, str) for one in inputs):
            raise InputError("inputs: expected texts, one or more; got something else")
        return [self._last_tokens(one, f"inputs[{i}]") for i, one in enumerate(inputs)]

    def _last_tokens(self, text: str, who: str) -> Tensor:
        """As many as the model sees, [1, T]."""
        tokens_T = tokens_of(text, self._signature, self._tokenizer, who)
        # A copy: a view would keep all that are before them.
        return tokens_T[None, -self._signature.shape[0] :].clone()

    def _logits(self, exits: Hashable, shape: torch.Size) -> int:
        """Of a sample of this shape, by every exit or by the last alone."""
        positions = shape[0] if self._signature.per_position else 1
        return positions * self._signature.classes * self._exits(exits)

    def _exits(self, asked: Hashable) -> int:
        """How many answer."""
        return len(self._predictor.exits) if asked else 1

    def _compute(self, exits: Hashable, x: Tensor) -> list[Tensor]:
        """Probabilities [B, C] by every exit, or by the last alone."""
        predictor = self._predictor
        logits = predictor.every(x) if exits else [predictor.module(x)]
        return [last_rows(one, len(x)).float().softmax(-1) for one in logits]


def _inputs_of(body: bytes) -> list[Any]:
    try:
        values = from_json(body)
    except ValueError as error:
        raise HTTPException(400, f"expected JSON; {error}") from error
    if not isinstance(values, dict) or values.keys() != {"inputs"}:
        raise InputError('expected {"inputs": [..]} and nothing else')
    inputs = values["inputs"]
    if not isinstance(inputs, list):
        raise InputError(f"inputs: expected a list of samples; got {type(inputs).__name__}")
    return inputs


def _read_npy(body: bytes) -> Any:
    try:
        found = npy.read(body)
    except Exception as error:  # numpy's parser, given anything, raises anything
        raise HTTPException(400, f"expected what numpy.save writes; {error}") from error
    if not isinstance(found, np.ndarray):
        raise HTTPException(400, "expected one array, .npy; got an .npz")
    if found.ndim == 0:
        raise InputError("inputs: expected an array of samples; got one number")
    return found


def _by_shape(samples: list[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Samples of one shape together, with their places in the request."""
    if len(samples) == 1:
        return [(samples[0], list(range(len(samples[0]))))]
    groups: dict[Any, list[int]] = {}
    for place, one in enumerate(samples):
        groups.setdefault(one.shape, []).append(place)
    return [(torch.cat([samples[i] for i in its]), its) for its in groups.values()]


def _by_exit(found: list[list[Tensor]], places: list[int]) -> list[Tensor]:
    """Probabilities [B, C] by each exit, of parts of the samples that have these places.

    Raises:
        InputError: the model has none to such samples.
    """
    whole = [_in_order(parts, places) for parts in zip(*found, strict=True)]
    for one in whole:
        refuse_nan(one)
    return whole


def _in_order(parts: tuple[Tensor, ...], places: list[int]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.tensor(places).argsort()]


def _as_npy(by_exit: list[Tensor]) -> Response:
    return Response(npy.written(by_exit[-1].numpy()), media_type=NPY)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    kind = "InputError" if error.status_code == 422 else "HTTPError"
    return JSONResponse(
        error_body(kind, str(error.detail)), error.status_code, dict(error.headers or {})
    )


async def _refuse_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return JSONResponse(error_body("InputError", f"{where}: {first['msg']}"), 422)


async def _fail(request: Request, error: Exception) -> Response:
    """Answer for what nobody foresaw; it is raised on to the server, which logs its traceback."""
    message = "expected an answer; the service has failed. Its log says where."
    # The server closes the connection after that: the client is told not to use it again.
    return JSONResponse(error_body("InternalError", message), 500, {"connection": "close"})
