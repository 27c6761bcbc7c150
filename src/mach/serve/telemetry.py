"""What is counted of a service, for Prometheus to read at /metrics?"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mach.serve.limits import App, Message, Receive, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Telemetry:
    """Counters of one service; each has a registry of its own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        """
        Args:
            waiting: how many samples wait now.
        """
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "mach_requests", "Requests answered", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mach_request_seconds",
            "From a request's headers to the end of its answer, /predict alone",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "mach_batch_samples", "Samples computed together", buckets=_SAMPLES, registry=registry
        )
        self.compute = Histogram(
            "mach_compute_seconds", "A batch in the model", buckets=_SECONDS, registry=registry
        )
        queue = Gauge("mach_waiting_samples", "Samples that wait", registry=registry)
        queue.set_function(waiting)

    def batched(self, samples: int, seconds: float) -> None:
        """A batch has been computed."""
        self.batch.observe(samples)
        self.compute.observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class Counting:
    """ASGI middleware that counts requests by address and status."""

    def __init__(self, app: App, telemetry: Telemetry, paths: Collection[str]) -> None:
        """
        Args:
            paths: addresses of the service. Any other makes no counter of its own, as it can be
                anything.
        """
        self._app, self._telemetry, self._paths = app, telemetry, paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            # By the request's own address: one that is refused early never comes to a route.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._telemetry.requests.labels(path, status).inc()
            if path == "/predict":
                self._telemetry.seconds.observe(time.perf_counter() - began)
