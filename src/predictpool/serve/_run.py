"""What ``predictpool serve`` does: a pool, a server around it, and their end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from predictpool import Predictor, PredictorPool, WorkerStartError
from predictpool._check import example, find_predictor, predict, start_failure
from predictpool._command import CommandError
from predictpool._worker import one_line
from predictpool.prometheus import PrometheusHooks
from predictpool.serve._app import Application
from predictpool.serve._http import Refusal
from predictpool.serve._model import Model
from predictpool.serve._tensors import described, inputs_of, named_arrays, rows_are_alike

_BACKLOG = 2048
# Longer than load balancers keep a connection that nobody uses, so that they close it first.
_KEEP_ALIVE_SECONDS = 75
# For the refusals of the last requests to be written.
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True)
class Serving:
    """What is served, and where.

    Attributes:
        name: of the model.
        version: of the model.
        url: of the server, without a path.
        workers: of the pool.
        pid: the server's process id.
    """

    name: str
    version: str
    url: str
    workers: int
    pid: int

    def to_json(self) -> str:
        """Return one JSON object that has these attributes, in one line."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.name}, version {self.version}, is served at {self.url} by {workers}"


def run(
    target: str,
    *,
    name: str | None,
    host: str,
    port: int,
    max_body_bytes: int,
    grace_period: float,
    features: str | None,
    announce: Callable[[Serving], None],
    **options: Any,
) -> None:
    """Serve a predictor until SIGINT or SIGTERM.

    Args:
        target: ``MODULE:PREDICTOR``.
        name: of the model; None for that of the attribute.
        host, port: where to listen; port 0 for one that is free.
        max_body_bytes: the largest body of a request.
        grace_period: seconds that requests get to finish after the signal.
        features: ``MODULE:FEATURES``, what to warm up with; None for one row of zeros and
            empty text, where the signature is known.
        announce: called when requests can come.
        options: of `PredictorPool`.

    Raises:
        CommandError: any mistake of the user's.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    predictor, given = find_predictor(target, features)
    name = _checked_name(name or target.rpartition(":")[2].rpartition(".")[2])
    metrics = CollectorRegistry()
    options |= {"grace_period": grace_period, "hooks": [PrometheusHooks(metrics)]}
    pool = _pool(predictor, name=name, warmup=given, **options)
    with _bound(host, port) as listener:
        server = _Server(
            name=name,
            pool=pool,
            metrics=metrics,
            features=given,
            listener=listener,
            max_body_bytes=max_body_bytes,
            grace_period=grace_period,
            announce=announce,
        )
        anyio.run(server.run, backend_options={"loop_factory": uvloop.new_event_loop})


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise CommandError(
            f"--name is {name!r}, which is part of addresses: expected letters, digits, '_', '.' "
            "and '-'",
            exit_code=2,
        )
    return name


def _pool(predictor: Predictor[Any], **options: Any) -> PredictorPool[Any]:
    try:
        return PredictorPool(predictor, **options)
    except (TypeError, ValueError) as error:
        raise CommandError(one_line(str(error)), exit_code=2) from error


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens only later: nobody shall wait for the model to load."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _no_place(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_place(host, port, error) from error
    return listener


def _listen(listener: socket.socket) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # somebody else does, since we have bound it
        host, port, *_ = listener.getsockname()
        raise _no_place(host, port, error) from error


def _no_place(host: str, port: int, error: OSError) -> CommandError:
    return CommandError(
        f"cannot listen on {host} port {port} ({error.strerror}): name another --host or --port; "
        "--port 0 takes one that is free",
        exit_code=2,
    )


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Keep the errors of a start out of the log: they are raised, and told in one line."""
    logger = logging.getLogger("predictpool")

    def is_told_here(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    logger.addFilter(is_told_here)
    try:
        yield
    finally:
        logger.removeFilter(is_told_here)


class _Uvicorn(uvicorn.Server):
    """A server whose signals come to us: its own way to end would kill us before the pool ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them alone."""
        yield


@dataclass
class _Server:
    """One run of the server; see `run` for what it is given."""

    name: str
    pool: PredictorPool[Any]
    metrics: CollectorRegistry
    features: Any
    listener: socket.socket
    max_body_bytes: int
    grace_period: float
    announce: Callable[[Serving], None]
    _http: uvicorn.Server | None = None
    _told: anyio.Event = field(default_factory=anyio.Event)
    _at_once: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """Open the pool, serve until a signal comes, and close it."""
        loop = asyncio.get_running_loop()
        closing = anyio.CancelScope()
        try:
            with anyio.CancelScope() as opening:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, self._end, opening, closing)
                model = await self._opened()
            if not opening.cancel_called:
                await self._serve(model)
        finally:
            with closing:
                await self.pool.aclose()

    def _end(self, opening: anyio.CancelScope, closing: anyio.CancelScope) -> None:
        """Do what a signal says; the second one is impatient."""
        if self._told.is_set():
            self._at_once.set()
            closing.cancel()
            return
        self._told.set()
        if self._http is None:
            opening.cancel()
        else:
            self._http.should_exit = True

    async def _opened(self) -> Model:
        """Return the model when its first worker is ready."""
        pool = self.pool
        try:
            with _told_once():
                await pool.open()
        except WorkerStartError as error:
            raise start_failure(error, self.features is None) from error
        except (TypeError, ValueError, OSError) as error:
            raise CommandError(one_line(str(error))) from error
        signature = pool.signature
        features = example(signature) if self.features is None else self.features
        if features is None:
            return Model(self.name, pool)
        try:
            if signature is not None:
                inputs_of(signature)
            outputs = named_arrays(await predict(pool, features))
            fixed = rows_are_alike(signature) and all(one.row_wise for one in pool.workers())
            return Model(self.name, pool, described(outputs, fixed=fixed))
        except Refusal as refusal:
            raise CommandError(str(refusal)) from refusal

    async def _serve(self, model: Model) -> None:
        """Answer requests until somebody sends a signal, and then those that are under way."""
        config = uvicorn.Config(
            Application(model, self.metrics, max_body_bytes=self.max_body_bytes),
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._http = _Uvicorn(config)
        _listen(self.listener)
        workers = self.pool.statistics().workers
        self.announce(Serving(model.name, model.VERSION, self._url(), workers, os.getpid()))
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_in_time, group.cancel_scope)
            await self._http.serve(sockets=[self.listener])
            group.cancel_scope.cancel()

    async def _end_in_time(self, serving: anyio.CancelScope) -> None:
        """Refuse what is still under way after the grace period, or at the second signal."""
        await self._told.wait()
        with anyio.move_on_after(self.grace_period):
            await self._at_once.wait()
        with anyio.CancelScope() as at_once:
            at_once.cancel()
            await self.pool.aclose()
        await anyio.sleep(_LAST_WORDS_SECONDS)
        serving.cancel()

    def _url(self) -> str:
        host, port, *_ = self.listener.getsockname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
