"""``python -m benchmarks overload``: three times as many requests as the workers can answer.

The model costs 5 ms and takes one row at a time. What two workers can do is measured in a closed
loop; then requests come in an open loop at three times that rate, whether or not any are answered.
Their latency counts from when each was *due*, so a late sender flatters nobody. A quarter have a
deadline that passes while they wait, most often; the model notes which requests reach it.
"""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from benchmarks import contenders, figures, ledger
from benchmarks.contenders import Loop
from benchmarks.figures import Goal
from benchmarks.ledger import Ledger
from predictpool import FunctionPredictor, PoolTimeout, PredictorPool, TooManyRequests

MINUTES = 1.0
COST = 0.005
WORKERS = 2
CLOSED_CALLERS = 4 * WORKERS
MAX_WAITING = 40
OVERLOAD = 3.0
HURRIED = 0.25

SERVED_GOAL = 0.95
LATENCY_GOAL = 1.25
REFUSAL_GOAL = 50e-6

Note = Callable[[str], None]

SERVED, REFUSED, EXPIRED_WAITING, EXPIRED_RUNNING, SENT_TOO_LATE = range(1, 6)


@dataclass(frozen=True)
class Size:
    """How many seconds the closed and the open loop take."""

    closed: float
    open: float


def full(seconds: float) -> Size:
    """Return the size of a run that counts."""
    return Size(closed=10.0, open=seconds)


QUICK = Size(closed=0.5, open=1.5)


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found; rates are requests per second, times seconds.

    Attributes:
        capacity: answers per second in the closed loop.
        offered: requests per second in the open one.
        served: of these, answered within its time, per second.
        refused: the same for those refused.
        refusal_p50, refusal_p99: from the call to its `TooManyRequests`.
        latency_p50, latency_p99, latency_worst: of served requests, from when each was due.
        bound: how long a queue of ``max_waiting`` takes at this capacity, and one call.
        late_p99: from when a request was due to when it was sent.
        expired: requests whose deadline passed while they waited, and while they ran.
        expired_reached_worker: of those that expired while they waited, or were sent when
            their deadline had passed.
        refused_reached_worker: of those refused.
        not_once: of those served, for which a worker was asked never or twice.
    """

    loop: str
    cost: float
    workers: int
    max_waiting: int
    seconds: float
    capacity: float
    offered: float
    served: float
    refused: float
    refusal_p50: float
    refusal_p99: float
    latency_p50: float
    latency_p99: float
    latency_worst: float
    bound: float
    late_p99: float
    expired: dict[str, int]
    expired_reached_worker: int
    refused_reached_worker: int
    not_once: int


class Requests:
    """What became of each request of the open loop, by its number; 0 is nobody's."""

    def __init__(self, count: int, rate: float, began: float) -> None:
        self.numbers = np.arange(count + 1)
        self.due = began + np.arange(-1, count) / rate
        self.sent = np.zeros(count + 1)
        self.ended = np.zeros(count + 1)
        self.became = np.zeros(count + 1, np.uint8)

    async def ask(self, pool: PredictorPool[Any], number: int, timeout: float | None) -> None:
        """Send one and note what became of it."""
        features = {"number": self.numbers[number : number + 1]}
        self.sent[number] = time.monotonic()
        try:
            await pool.predict(features, timeout=timeout)
            became = SERVED
        except TooManyRequests:
            became = REFUSED
        except PoolTimeout as error:
            became = EXPIRED_RUNNING if error.ran else EXPIRED_WAITING
            if error.ran and error.waited > error.timeout:
                became = SENT_TOO_LATE
        self.ended[number] = time.monotonic()
        self.became[number] = became

    def which(self, *became: int) -> NDArray[np.int64]:
        """Return the numbers of those that became one of these."""
        return np.flatnonzero(np.isin(self.became, became))


def run(*, seconds: float, loop: Loop, quick: bool, note: Note) -> Outcome:
    """Measure the capacity, then offer three times as much."""
    size = QUICK if quick else full(seconds)
    outcome: Outcome = contenders.on_loop(loop, _run, size, loop, note)
    return outcome


async def _run(size: Size, loop: Loop, note: Note) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as directory:
        most = int(OVERLOAD * WORKERS / COST * size.open) + 1
        book = Ledger.make(Path(directory, "ledger"), most + 1)
        async with _pool(book) as pool:
            await pool.wait_ready()
            note(f"the capacity: {size.closed:g} s")
            capacity = await _closed_loop(pool, size.closed)
            note(f"the overload: {size.open:g} s")
            requests = await _open_loop(pool, capacity, size.open)
        return _sum_up(size, loop, capacity, requests, book.asked())


def _pool(book: Ledger) -> PredictorPool[Any]:
    predictor = FunctionPredictor(
        book.model(COST), row_wise=True, signature=ledger.SIGNATURE, preload=("benchmarks.ledger",)
    )
    return PredictorPool(
        predictor, workers=WORKERS, max_batch_size=1, max_waiting=MAX_WAITING, timeout=None
    )


async def _closed_loop(pool: PredictorPool[Any], seconds: float) -> float:
    """Return the answers per second to callers that ask again when they are answered."""
    answered = 0
    began = time.monotonic()

    async def call() -> None:
        nonlocal answered
        while time.monotonic() < began + seconds:
            await pool.predict({"number": [0]})
            answered += 1

    async with anyio.create_task_group() as group:
        for _ in range(CLOSED_CALLERS):
            group.start_soon(call)
    return answered / (time.monotonic() - began)


async def _open_loop(pool: PredictorPool[Any], capacity: float, seconds: float) -> Requests:
    """Send requests when they are due, whatever has become of those before."""
    rate = OVERLOAD * capacity
    count = int(rate * seconds)
    chance = random.Random(1994)
    requests = Requests(count, rate, time.monotonic())
    async with anyio.create_task_group() as group:
        for number in range(1, count + 1):
            hurried = chance.random() < HURRIED
            timeout = chance.uniform(0, _bound(capacity)) if hurried else None
            await anyio.sleep(max(0.0, requests.due[number] - time.monotonic()))
            group.start_soon(requests.ask, pool, number, timeout)
    return requests


def _bound(capacity: float) -> float:
    return MAX_WAITING / capacity + COST


def _sum_up(
    size: Size, loop: Loop, capacity: float, requests: Requests, asked: NDArray[np.uint8]
) -> Outcome:
    served, refused = requests.which(SERVED), requests.which(REFUSED)
    end = requests.due[1] + size.open
    latency = requests.ended[served] - requests.due[served]
    refusal = requests.ended[refused] - requests.sent[refused]
    reached = np.count_nonzero(asked[requests.which(EXPIRED_WAITING)])
    return Outcome(
        loop=loop,
        cost=COST,
        workers=WORKERS,
        max_waiting=MAX_WAITING,
        seconds=size.open,
        capacity=capacity,
        offered=(len(requests.numbers) - 1) / size.open,
        served=np.count_nonzero(requests.ended[served] <= end) / size.open,
        refused=len(refused) / size.open,
        refusal_p50=figures.percentile(refusal, 50),
        refusal_p99=figures.percentile(refusal, 99),
        latency_p50=figures.percentile(latency, 50),
        latency_p99=figures.percentile(latency, 99),
        latency_worst=float(latency.max()),
        bound=_bound(capacity),
        late_p99=figures.percentile(requests.sent[1:] - requests.due[1:], 99),
        expired={
            "waiting": len(requests.which(EXPIRED_WAITING)),
            "running": len(requests.which(EXPIRED_RUNNING, SENT_TOO_LATE)),
        },
        expired_reached_worker=int(reached) + len(requests.which(SENT_TOO_LATE)),
        refused_reached_worker=int(np.count_nonzero(asked[refused])),
        not_once=int(np.count_nonzero(asked[served] != 1)),
    )


def correctness(found: Outcome) -> list[Goal]:
    """Return what must hold in every run, however short and wherever."""
    return [
        Goal("expired requests that reached a worker", found.expired_reached_worker, 0),
        Goal("refused requests that reached a worker", found.refused_reached_worker, 0),
        Goal("served requests that did not run exactly once", found.not_once, 0),
    ]


def goals(found: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    return [
        *correctness(found),
        Goal("served / capacity", found.served / found.capacity, SERVED_GOAL, at_least=True),
        Goal(
            "latency of served requests: p99 / bound", found.latency_p99 / found.bound, LATENCY_GOAL
        ),
        Goal("a refusal: p50 in µs", found.refusal_p50 * 1e6, REFUSAL_GOAL * 1e6),
    ]
