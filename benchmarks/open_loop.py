"""An open loop: requests come when they are due, whether or not those before were answered.

The generator is a process of its own. It sends numbers over a Unix socket to the application, which
awaits the answer to the request of that number and writes the number back, marked
if the pool had no room for it. Latency counts from when a request was due, so neither end
can flatter the application by falling behind.
"""

import asyncio
import select
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import figures
from benchmarks.harness import Orders
from benchmarks.load import Ask
from benchmarks.models import Arrays
from predictpool import TooManyRequests

PATIENCE = 30.0  # seconds without an answer that end a run

_NUMBER = np.dtype("<u4")
_REFUSED = 1 << 31  # added to the number of a request
_BUFFER = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """What came of one run; the warm-up does not count.

    Attributes:
        rate: requests per second that were offered.
        sent, refused: how many, and how many of these the application had no room for.
        p50_seconds, p99_seconds: from when a request was due to when its answer arrived; of those
            that were answered.
        late_p99_seconds: from when it was due to when it was sent.
        generator_cores: how much of a core the generator took.
    """

    rate: float
    sent: int
    refused: int
    p50_seconds: float
    p99_seconds: float
    late_p99_seconds: float
    generator_cores: float


# --- the application ---------------------------------------------------------------


@asynccontextmanager
async def listening(ask: Ask, requests: Sequence[Arrays], path: str) -> AsyncIterator[None]:
    """Serve a generator on a Unix socket; on asyncio.

    Raises:
        Exception: what ``ask`` has raised first; the generator was cut off then.
    """
    failed: list[BaseException] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: _Application(ask, requests, failed), path)
    try:
        yield
    finally:
        server.close()
    if failed:
        raise failed[0]


class _Application(asyncio.Protocol):
    """One connection of the generator: a task for each request, as a server has them."""

    def __init__(self, ask: Ask, requests: Sequence[Arrays], failed: list[BaseException]) -> None:
        self._ask, self._requests, self._failed = ask, requests, failed
        self._loop = asyncio.get_running_loop()
        self._begun: set[asyncio.Task[None]] = set()
        self._rest = b""
        self._answered: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % _NUMBER.itemsize
        self._rest = data[whole:]
        for number in np.frombuffer(data[:whole], _NUMBER).tolist():
            begun = self._loop.create_task(self._answer(number))
            self._begun.add(begun)  # the loop itself keeps only weak references
            begun.add_done_callback(self._begun.discard)

    async def _answer(self, number: int) -> None:
        try:
            await self._ask(self._requests[number % len(self._requests)])
        except TooManyRequests:
            number += _REFUSED
        except Exception as error:  # noqa: BLE001 - `listening` raises it
            self._failed.append(error)
            self._transport.abort()
            return
        if not self._answered:  # one write for all that are answered in this turn
            self._loop.call_soon(self._flush)
        self._answered.append(number)

    def _flush(self) -> None:
        self._transport.write(np.array(self._answered, _NUMBER).tobytes())
        self._answered.clear()


# --- the generator -----------------------------------------------------------------


def serve_generator(orders: Orders) -> None:
    """Be the generator; see `harness.Contender`.

    It understands ``(path, rate, seconds, warm-up seconds, seed)`` and returns an `Outcome`.
    """
    orders.reply(None)
    while (order := orders.next()) is not None:
        orders.reply(generate(*order))


def generate(path: str, rate: float, seconds: float, warm_up: float, seed: int) -> Outcome:
    """Send requests whose gaps are exponential, and wait for all answers.

    Raises:
        ConnectionError: the application has cut us off.
        TimeoutError: nothing was answered for `PATIENCE` seconds.
    """
    count = int(rate * (warm_up + seconds))
    due = np.random.default_rng(seed).exponential(1 / rate, count).cumsum()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        began, spent = time.perf_counter(), time.process_time()
        sent, arrived = _exchange(connection, due)
        cores = (time.process_time() - spent) / (time.perf_counter() - began)
    counted, refused = due > warm_up, np.isinf(arrived)
    latency = (arrived - due)[counted & ~refused]
    return Outcome(
        rate=rate,
        sent=int(np.count_nonzero(counted)),
        refused=int(np.count_nonzero(counted & refused)),
        p50_seconds=figures.percentile(latency, 50),
        p99_seconds=figures.percentile(latency, 99),
        late_p99_seconds=figures.percentile((sent - due)[counted], 99),
        generator_cores=cores,
    )


def _exchange(
    connection: socket.socket, due: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return when each request was sent, and when its answer arrived; seconds from the start.

    That of a refused one never does: it is infinite.
    """
    numbers = np.arange(len(due), dtype=_NUMBER)
    sent, arrived = np.zeros(len(due)), np.zeros(len(due))
    schedule = [*due.tolist(), np.inf]
    first = last = time.perf_counter()
    following = outstanding = 0
    while following < len(due) or outstanding:
        now = time.perf_counter() - first
        begin = following
        while schedule[following] <= now:
            following += 1
        if following > begin:
            connection.sendall(numbers[begin:following].tobytes())
            sent[begin:following] = now
            outstanding += following - begin
        wait = min(schedule[following] - (time.perf_counter() - first), PATIENCE)
        if select.select([connection], [], [], max(0.0, wait))[0]:
            answers = _receive(connection)
            last = time.perf_counter()
            arrived[answers[answers < _REFUSED]] = last - first
            arrived[answers[answers >= _REFUSED] - _REFUSED] = np.inf
            outstanding -= len(answers)
        elif outstanding and time.perf_counter() - last > PATIENCE:
            raise TimeoutError(f"no answer for {PATIENCE:g} s, {outstanding} outstanding")
    return sent, arrived


def _receive(connection: socket.socket) -> NDArray[np.uint32]:
    data = connection.recv(_BUFFER)
    if not data:
        raise ConnectionError("the application has closed the connection")
    while short := len(data) % _NUMBER.itemsize:
        data += connection.recv(_NUMBER.itemsize - short)
    return np.frombuffer(data, _NUMBER)
