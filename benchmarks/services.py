"""What many callers can ask at once: each as it runs in a process of its own.

A service is anything that yields something to await for a request. It takes three orders: to
answer some rows at once, so that its answers can be compared; a closed loop, see `load`; and to
listen for an open loop, see `open_loop`.
"""

import asyncio
import functools
import gc
import multiprocessing
import os
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.to_process

from benchmarks import by_hand, contenders, figures, harness, load, open_loop
from benchmarks.contenders import Loop
from benchmarks.harness import Contender, Orders
from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from predictpool import Device, PredictorPool, Signature
from predictpool.predictors._estimator import Method

# All levels rotate over as many rows, however many a request has.
ROWS = 4096

Kind = Literal["in process", "process pool", "by hand", "pool", "peer", "nothing"]


@dataclass(frozen=True)
class Level:
    """How many callers ask, each for so many rows at a time."""

    callers: int
    rows: int

    @property
    def name(self) -> str:
        """What tables call it."""
        callers = "1 caller" if self.callers == 1 else f"{self.callers} callers"
        return f"{callers}, {'1 row' if self.rows == 1 else f'{self.rows} rows'} each"


@dataclass(frozen=True)
class Service:
    """One thing to ask.

    Attributes:
        name: what tables call it.
        kind: what it is compared as.
        opened: starts it; in the process of the contender, on an event loop. It has to be
            importable there.
        loop: which event loop that is.
    """

    name: str
    kind: Kind
    opened: Callable[[Model], AbstractAsyncContextManager[Ask]]
    loop: Loop = "asyncio"

    def start(self, model: Model) -> Contender:
        """Start it in a process of its own."""
        return Contender(self.name, serve, self, model)


def serve(orders: Orders, service: Service, model: Model) -> None:
    """Be a contender that is one; see `harness.Contender`."""
    contenders.on_loop(service.loop, _serve, orders, service, model)


async def _serve(orders: Orders, service: Service, model: Model) -> None:
    async with service.opened(model) as ask:
        orders.reply(None)
        await take_orders(orders, ask, model)


async def take_orders(orders: Orders, ask: Ask, model: Model) -> None:
    """Take orders until there are no more.

    They are ``("answer", count)``, for a list of answers to rows that are asked at once;
    ``("load", level, seconds, warm-up seconds)``, for a `load.Outcome`; and ``("listen", path)``,
    for None when it listens there: it does so until it is ordered to ``("close",)``.
    """
    requests = functools.cache(functools.partial(_requests, model))
    while (order := await contenders.next_order(orders)) is not None:
        match order:
            case "answer", int(count):
                orders.reply(await _answers(ask, model.requests(count, 1)))
            case "load", Level() as level, seconds, warm_up:
                outcome = await load.closed_loop(
                    ask,
                    requests(level.rows),
                    callers=level.callers,
                    seconds=seconds,
                    warm_up_seconds=warm_up,
                )
                orders.reply(outcome)
            case "listen", path:
                async with open_loop.listening(ask, requests(1), path):
                    orders.reply(None)
                    await contenders.next_order(orders)
                orders.reply(None)
            case _:
                raise ValueError(f"no such order: {order}")


def _requests(model: Model, rows: int) -> list[Arrays]:
    requests = model.requests(ROWS // rows, rows)
    # No application keeps 50,000 arrays; the garbage collector took 25 ms to walk them.
    gc.collect()
    gc.freeze()
    return requests


async def _answers(ask: Ask, rows: list[Arrays]) -> list[Arrays]:
    answers: list[Arrays] = [{}] * len(rows)

    async def call(number: int) -> None:
        answers[number] = await ask(rows[number])

    async with anyio.create_task_group() as group:
        for number in range(len(rows)):
            group.start_soon(call, number)
    return answers


# --- in process --------------------------------------------------------------------


def serve_in_process(orders: Orders, method: Method, model: Model, *, pinned: bool = True) -> None:
    """Be the predictor that is called in a loop, without an event loop, set up like a worker.

    It takes the orders of `take_orders` but for ``listen``; at a level it has one caller. The
    features were checked, and text turned into bytes, before.

    Args:
        pinned: to one core, as workers of a pool are; those of the peers are not.
    """
    cores = tuple(os.sched_getaffinity(0))
    core = harness.become_like_a_worker()
    if not pinned:
        os.sched_setaffinity(0, cores)
    predictor = model.predictor(method)
    predictor.load(Device(cores=(core,)))
    assert isinstance(predictor.signature, Signature)  # derived from the feature columns
    conform = predictor.signature.conform
    requests = functools.cache(lambda rows: [conform(each) for each in _requests(model, rows)])
    predictor.predict(requests(1)[0])  # the first call builds what the others use
    orders.reply(None)
    while (order := orders.next()) is not None:
        match order:
            case "answer", int(count):
                orders.reply([predictor.predict(row) for row in requests(1)[:count]])
            case "load", Level(1, rows), seconds, warm_up:
                _in_turn(predictor.predict, requests(rows), warm_up)
                orders.reply(_in_turn(predictor.predict, requests(rows), seconds))
            case _:
                raise ValueError(f"no such order: {order}")
    predictor.close()


def _in_turn(
    predict: Callable[[Arrays], Arrays], requests: list[Arrays], seconds: float
) -> load.Outcome:
    spans, spent = array("d"), time.process_time()
    first = now = time.perf_counter()
    while now < first + seconds or not spans:
        began = now
        predict(requests[len(spans) % len(requests)])
        now = time.perf_counter()
        spans.append(now - began)
    return load.Outcome(
        calls=len(spans),
        seconds=now - first,
        p50_seconds=figures.percentile(spans, 50),
        p99_seconds=figures.percentile(spans, 99),
        lag_p99_seconds=None,
        cpu_seconds=(taken := time.process_time() - spent),
        own_cpu_seconds=taken,
    )


# --- process pools -----------------------------------------------------------------


@asynccontextmanager
async def process_pool(model: Model, *, method: Method, workers: int) -> AsyncIterator[Ask]:
    """Use ``ProcessPoolExecutor`` as it is."""
    loop = asyncio.get_running_loop()
    with _executor(model, method, workers, pinned=False) as executor:
        yield lambda row: loop.run_in_executor(executor, by_hand.predict, row)


@asynccontextmanager
async def micro_batcher(
    model: Model, *, method: Method, workers: int, pinned: bool = False
) -> AsyncIterator[Ask]:
    """Use it with the forty lines of `by_hand`."""
    with _executor(model, method, workers, pinned=pinned) as executor:
        yield by_hand.MicroBatcher(executor, workers, by_hand.predict).ask


@contextmanager
def _executor(
    model: Model, method: Method, workers: int, *, pinned: bool
) -> Iterator[ProcessPoolExecutor]:
    os.environ.update(harness.WORKER_ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(workers)
    cores = None
    if pinned:
        cores = context.Queue()
        available = sorted(os.sched_getaffinity(0))
        for worker in range(workers):
            cores.put(available[worker % len(available)])
    how = (model, method, cores, together)
    with ProcessPoolExecutor(workers, context, by_hand.load, how) as executor:
        # A process is started only when one is missed, and loads for seconds.
        wait([executor.submit(os.getpid) for _ in range(workers)])
        yield executor


@asynccontextmanager
async def to_process(model: Model, *, method: Method, workers: int) -> AsyncIterator[Ask]:
    """Use ``anyio.to_process``."""
    os.environ.update(harness.WORKER_ENVIRONMENT)
    limiter = anyio.CapacityLimiter(workers)

    async def ask(row: Arrays) -> Any:
        return await anyio.to_process.run_sync(
            by_hand.load_and_predict, model, method, row, limiter=limiter
        )

    yield ask


# --- the pool, and nothing at all --------------------------------------------------


@asynccontextmanager
async def pool(model: Model, *, method: Method, workers: int) -> AsyncIterator[Ask]:
    """Use a pool with its default options."""
    async with PredictorPool(model.predictor(method), workers=workers) as opened:
        await opened.wait_ready()
        yield opened.predict


@asynccontextmanager
async def echo(_: Model) -> AsyncIterator[Ask]:
    """Answer at once: what is measured with it is the measuring."""

    async def ask(row: Arrays) -> Arrays:
        return row

    yield ask
