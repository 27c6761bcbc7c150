"""What can `mach export`, `models`, `cascade`, `predict` and `serve` be asked for?"""

from __future__ import annotations

from dataclasses import dataclass

from mach.config.checks import LONGEST_S, at_least, one_of, within
from mach.config.window import name_of
from mach.errors import ConfigError

FORMATS = ("safetensors", "torch", "onnx")
_MOST_MB = 1e9
"""More than any machine has."""


@dataclass
class ExportConfig:
    """Arguments of `mach export`."""

    run: str = "???"
    """Run folder, or that of a consolidated window in it."""
    window: str | None = None
    """j..i: student j, bodies j to i, head i; 0..i is the chain; consolidated/j..i what `mach
    consolidate` has made of it. None: the whole chain."""
    format: str = "safetensors"
    """safetensors (weights, model.py and model.json: needs torch and safetensors), torch
    (torch.export, .pt2: needs torch) or onnx (needs onnxruntime)."""
    out: str | None = None
    """Folder to write. None: RUN/exports/<window>-<format>."""
    quantize: str | None = None
    """int8: the weights of matrix products in int8, their inputs rounded as they come (dynamic
    quantization by onnxruntime; format=onnx); samples are computed one by one then. None:
    float32."""
    samples: int = 1000
    """Test samples on which the exported model is compared with the run's own."""
    tolerance: float = 1e-4
    """Largest difference of a logit that is allowed, as a part of the largest logit."""
    max_drop: float = 0.02
    """With quantize: the part of the accuracy that may be lost, or of bits per byte be gained."""
    licence: str | None = None
    """Of the weights, for the model card. None: the card says that nobody has said."""
    overwrite: bool = False
    """Replace a folder that is there already. One of the same name that `mach export` has written
    into the run is replaced anyway."""

    def __post_init__(self) -> None:
        name_of(self.window)
        one_of("format", self.format, FORMATS)
        at_least("samples", self.samples, 1)
        at_least("tolerance", self.tolerance, 0)
        at_least("max_drop", self.max_drop, 0)
        if self.quantize is None:
            return
        one_of("quantize", self.quantize, ("int8",))
        if self.format != "onnx":
            raise ConfigError(
                f"quantize=int8: expected format=onnx, as onnxruntime does it; got {self.format}. "
                "Set format=onnx, or leave quantize out."
            )


COSTS = ("flops", "params", "latency")


@dataclass
class ModelsConfig:
    """Arguments of `mach models`."""

    run: str = "???"
    """Run folder."""
    cost: str = "flops"
    """What the Pareto frontier weighs quality against: flops or params (the same on every machine),
    or latency (the median of one sample with one thread)."""
    max_latency_ms: float | None = None
    """Choose among models whose median latency of one sample with one thread is at most this."""
    max_params: int | None = None
    """Choose among models with at most so many parameters."""
    max_flops: int | None = None
    """Choose among models with at most so many FLOPs for a sample."""
    min_accuracy: float | None = None
    """Choose the cheapest model of at least this accuracy, a fraction."""
    max_bits_per_byte: float | None = None
    """The same for a language model."""
    latency: bool = True
    """Measure latency. False: the table is there at once, without it."""
    format: str = "table"
    """table, or json: one object with all models and the chosen one."""

    def __post_init__(self) -> None:
        one_of("cost", self.cost, COSTS)
        one_of("format", self.format, ("table", "json"))
        for key in ("max_latency_ms", "max_params", "max_flops", "max_bits_per_byte"):
            value = getattr(self, key)
            if value is not None:
                at_least(key, value, 0)
        if self.min_accuracy is not None:
            within("min_accuracy", self.min_accuracy, 0, 1)
        if not self.latency and (self.max_latency_ms is not None or self.cost == "latency"):
            raise ConfigError(
                "latency=false: expected it to be measured, as max_latency_ms or cost=latency ask "
                "for it. Leave it out."
            )


@dataclass
class CascadeConfig:
    """Arguments of `mach cascade`."""

    run: str = "???"
    """Run folder."""
    small: str | None = None
    """j..i or consolidated/j..i: the model that is asked first. None: the one whose cascade costs
    least, of all models of the run."""
    large: str | None = None
    """The model that is asked where the small one is not sure. None: the whole chain."""
    accuracy: float | None = None
    """Wished accuracy, a fraction, for which the threshold is found on the validation split
    (data.validation). None: as accurate there as the large model."""
    threshold: float | None = None
    """Probability of the small model's answer above which the large one is not asked, in place of
    one that is found."""
    batch: int = 256
    """Samples that are computed together."""
    format: str = "table"
    """table, or json."""

    def __post_init__(self) -> None:
        name_of(self.small)
        name_of(self.large)
        one_of("format", self.format, ("table", "json"))
        at_least("batch", self.batch, 1)
        for key in ("accuracy", "threshold"):
            value = getattr(self, key)
            if value is not None:
                within(key, value, 0, 1)
        if self.threshold is None:
            return
        if self.accuracy is not None:
            raise ConfigError(
                f"threshold={self.threshold}: expected it alone, or accuracy= to find it by; got "
                "both. Leave one out."
            )
        if self.small is None:
            raise ConfigError(
                f"threshold={self.threshold}: expected small= beside it, as a threshold is of one "
                "model; got none. Say small=j..i."
            )


@dataclass
class PredictConfig:
    """Arguments of `mach predict`."""

    model: str = "???"
    """A run folder, or what `mach export` (safetensors or onnx) or `mach consolidate` has
    written."""
    input: str = "???"
    """.npz or .npy (samples along the first axis), .csv, .jsonl or .txt (a sample in each line), a
    folder of images, .npy or .txt files (each a sample, by name), or - for lines from standard
    input. A line is a JSON array or numbers with commas; of a language model, a text. Arrays have
    its tokens."""
    window: str | None = None
    """j..i or consolidated/j..i, of a run. None: the whole chain."""
    key: str | None = None
    """Array of an .npz. None: x, else x_test, else the only one."""
    format: str = "csv"
    """csv or jsonl."""
    out: str | None = None
    """File to write, which appears when it is complete. None: standard output, line by line."""
    top: int = 1
    """How many of the likeliest answers are told."""
    probabilities: bool = False
    """Tell the probability of every class."""
    batch: int = 64
    """Samples that are computed together; fewer of a large vocabulary, as it takes memory."""

    def __post_init__(self) -> None:
        name_of(self.window)
        one_of("format", self.format, ("csv", "jsonl"))
        at_least("top", self.top, 1)
        at_least("batch", self.batch, 1)


@dataclass
class ServeConfig:
    """Arguments of `mach serve`."""

    model: str = "???"
    """A run folder, or what `mach export` (safetensors or onnx) or `mach consolidate` has
    written."""
    window: str | None = None
    """j..i or consolidated/j..i, of a run. None: the whole chain."""
    host: str = "127.0.0.1"
    """Address to listen at. 127.0.0.1: only this machine reaches it. There is no log-in: put a
    proxy before it where others may come."""
    port: int = 8000
    """0: one that is free; it is printed."""
    threads: int | None = None
    """Threads that compute. None: one for each core but one, which the service itself needs."""
    max_batch: int = 256
    """Samples that are computed together at most, fewer of a large vocabulary; a larger request is
    computed in parts."""
    wait_ms: float = 0.0
    """How long the first request of a batch waits for others. 0: those that come while the model
    is busy are the next batch."""
    max_queue: int = 65536
    """Samples that may wait; what comes then is told to come again (503)."""
    max_body_mb: float = 16.0
    """Largest request."""
    max_bodies_mb: float = 512.0
    """All requests that are being read or answered, and answers over 64 KiB that are not yet taken,
    together."""
    read_timeout_s: float = 10.0
    """Longest a request may take to arrive, and a client to take a piece of its answer."""
    answer_timeout_s: float = 30.0
    """Longest it may wait for its answer."""
    drain_s: float = 10.0
    """After Ctrl-C or SIGTERM: how long requests that are here already may take to be answered."""

    def __post_init__(self) -> None:
        name_of(self.window)
        within("port", self.port, 0, 65535)
        for key in ("max_batch", "max_queue"):
            at_least(key, getattr(self, key), 1)
        if self.threads is not None:
            at_least("threads", self.threads, 1)
        for key in ("max_body_mb", "max_bodies_mb"):
            within(key, getattr(self, key), 0.001, _MOST_MB)
        for key in ("read_timeout_s", "answer_timeout_s"):
            within(key, getattr(self, key), 0.001, LONGEST_S)
        within("drain_s", self.drain_s, 0, LONGEST_S)
        within("wait_ms", self.wait_ms, 0, 1e3 * LONGEST_S)
