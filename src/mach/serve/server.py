"""How is the service started, and how does it end?"""

from __future__ import annotations

import gc
import resource
import signal
import socket
from collections.abc import Callable

import torch

from mach.config import ServeConfig
from mach.errors import ConfigError
from mach.extras import missing
from mach.predictor import open_predictor
from mach.rank import available_cores

_PACKAGES = ("fastapi", "fastapi_offline", "httptools", "prometheus_client", "uvicorn")

_BACKLOG = 2048


def _say(line: str) -> None:
    print(line, flush=True)


def serve(config: ServeConfig, ready: Callable[[str], None] = _say) -> int:
    """Answer requests until SIGINT or SIGTERM; those that are here then are still answered.

    Args:
        ready: is told in one line where the service listens, when it does.

    Returns:
        The exit code: 130 or 143, by the signal.

    Raises:
        MachError: there is no such model, a package is missing, or the address cannot be had.
    """
    if lacking := missing(*_PACKAGES):
        raise ConfigError(
            f"mach serve: expected the packages {', '.join(_PACKAGES)}; {lacking[0]} is not "
            "installed. Install them: pip install 'mach[serve]'"
        )
    import uvicorn

    from mach.serve.app import create_app
    from mach.serve.connection import ImpatientProtocol

    torch.set_num_threads(threads_of(config, len(available_cores())))
    predictor = open_predictor(
        config.model, config.window
    )  # onnxruntime's threads stay as they are
    _allow_many_connections()
    listening = _listen(config)

    class Protocol(ImpatientProtocol):
        timeout_s = config.read_timeout_s

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(predictor, config),
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(config.drain_s),
        )
    )
    with listening:
        ready(f"{predictor.title} of {predictor.source} at {_url_of(listening)} (Ctrl-C ends it)")
        return _run(server, listening)


def threads_of(config: ServeConfig, cores: int) -> int:
    """How many compute: two that share a core with the service wait for each other."""
    return config.threads or max(1, cores - 1)


def _run(server: object, listening: socket.socket) -> int:
    """Until a signal, which uvicorn raises again when it has ended: it is the exit code."""
    import uvicorn

    assert isinstance(server, uvicorn.Server)
    gc.freeze()  # to look through all that is loaded would take each full collection 0.1 s
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + caught[0] if caught else 0


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named. Without that the body of
    # an answer waits 40 ms for the client to have acknowledged the head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
        listening.listen(_BACKLOG)  # who comes from now on is answered, if not at once
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"host={config.host} port={config.port}: expected an address to listen at; "
            f"{error.strerror or error}. Choose another port, or 0 for one that is free."
        ) from error
    return listening


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _allow_many_connections() -> None:
    """A connection is an open file, of which few are allowed by default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
