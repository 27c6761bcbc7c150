"""Who sends requests: users of locust, each waiting for its answer before it asks again.

The file with the body of every request is in SERVE_BODY; SERVE_RATE is how many requests a second
each user sends at most (0: as many as are answered).
"""

from __future__ import annotations

import os
from pathlib import Path

from locust import FastHttpUser, constant, constant_throughput, task

BODY = Path(os.environ["SERVE_BODY"]).read_bytes()
RATE = float(os.environ["SERVE_RATE"])
HEADERS = {"content-type": "application/x-npy", "accept": "application/x-npy"}


class Client(FastHttpUser):
    """Sends the same batch again and again."""

    wait_time = constant_throughput(RATE) if RATE else constant(0)

    @task
    def predict(self) -> None:
        self.client.post("/predict", data=BODY, headers=HEADERS)
