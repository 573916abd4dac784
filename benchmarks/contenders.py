"""The ways to ask a model for one row, each as it runs in a process of its own."""

import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import numpy as np
from numpy.typing import NDArray

from benchmarks import floor, harness, models
from benchmarks.harness import Orders
from benchmarks.models import Arrays, Model
from predictpool import Device, PredictorPool, Signature
from predictpool.predictors._estimator import Method

Kind = Literal["naive", "in process", "hop floor", "pool"]
Loop = Literal["asyncio", "uvloop", "trio"]
Ask = Callable[[Any], Arrays]
Asked = tuple[NDArray[np.int64], list[Arrays]]

LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop", "trio")
ROWS = 256


@dataclass(frozen=True)
class Way:
    """One way to ask the model.

    Attributes:
        kind: ``"naive"`` is ``estimator.predict`` for each request.
        method: of the predictor; None for the naive way, which has none.
        loop, workers: of a pool.
        clocked: whether answers say when the model began and ended; see `models.Clocked`.
    """

    kind: Kind
    method: Method | None = None
    loop: Loop | None = None
    workers: int = 0
    clocked: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.kind == "naive":
            return "estimator.predict"
        if self.kind != "pool":
            return f"{self.kind}, {self.method}"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"pool, {self.method}, {self.loop}, {workers}"


def serve(orders: Orders, way: Way, model: Model) -> None:
    """Be a contender; see `harness.Contender`.

    It understands ``(warm-up calls, calls, keep)`` and returns for each call when it began and
    ended, in ns of the clock that all processes share; and, where they are to be kept, the answers.
    """
    if way.kind == "pool":
        assert way.loop is not None
        on_loop(way.loop, _serve_pool, orders, way, model)
        return
    with _SYNCHRONOUS[way.kind](way, model) as (ask, rows):
        orders.reply(None)
        while (order := orders.next()) is not None:
            warm_up, calls, keep = order
            _ask_in_turn(ask, rows, warm_up, keep=False)
            orders.reply(_ask_in_turn(ask, rows, calls, keep))


def _ask_in_turn(ask: Ask, rows: deque[Any], calls: int, keep: bool) -> Asked:
    times = np.empty((calls, 2), np.int64)
    answers = []
    for call in range(calls):
        row = rows[0]
        rows.rotate(-1)
        began = time.monotonic_ns()
        answer = ask(row)
        times[call] = began, time.monotonic_ns()
        if keep:
            answers.append(answer)
    return times, answers


def on_loop(loop: Loop, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Call a coroutine function on an event loop of this kind, and return what it returned."""
    return anyio.run(
        function,
        *arguments,
        backend="trio" if loop == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )


# --- without a pool ----------------------------------------------------------------


@contextmanager
def _naive(_: Way, model: Model) -> Iterator[tuple[Ask, deque[Any]]]:
    """As its users run it: all cores, all of TensorFlow's threads."""
    yield functools.partial(models.predict_naively, model.build()), deque(model.rows(ROWS))


@contextmanager
def _in_process(way: Way, model: Model) -> Iterator[tuple[Ask, deque[Any]]]:
    """On one core, like a worker; the features were checked before."""
    core = harness.become_like_a_worker()
    predict, close, rows = _load(way, model, core)
    yield predict, deque(rows)
    close()


@contextmanager
def _hop_floor(way: Way, model: Model) -> Iterator[tuple[Ask, deque[Any]]]:
    """The worker on one core, the caller wherever the kernel puts it, as with a pool."""

    def load() -> floor.Loaded:
        core = harness.become_like_a_worker()
        predict, _, rows = _load(way, model, core)
        return predict, rows[0], predict(rows[0])

    client = floor.Client(load)
    yield client.ask, deque(client.encode(_text_as_bytes(row)) for row in model.rows(ROWS))
    client.close()


def _load(way: Way, model: Model, core: int) -> tuple[Ask, Callable[[], None], list[Arrays]]:
    assert way.method is not None
    predictor = model.predictor(way.method, clocked=way.clocked)
    predictor.load(Device(cores=(core,)))
    assert isinstance(predictor.signature, Signature)  # derived from the feature columns
    rows = [predictor.signature.conform(row) for row in model.rows(ROWS)]
    predictor.predict(rows[0])  # the first call builds what the others use
    return predictor.predict, predictor.close, rows


def _text_as_bytes(row: Arrays) -> Arrays:
    return {
        name: np.array([text.encode() for text in values], object)
        if values.dtype == object
        else values
        for name, values in row.items()
    }


_SYNCHRONOUS = {"naive": _naive, "in process": _in_process, "hop floor": _hop_floor}


# --- the pool ----------------------------------------------------------------------


async def _serve_pool(orders: Orders, way: Way, model: Model) -> None:
    assert way.method is not None
    rows = deque(model.rows(ROWS))
    predictor = model.predictor(way.method, clocked=way.clocked)
    async with PredictorPool(predictor, workers=way.workers) as pool:
        await pool.wait_ready()
        orders.reply(None)
        while (order := await next_order(orders)) is not None:
            warm_up, calls, keep = order
            await _ask_pool_in_turn(pool, rows, warm_up, keep=False)
            orders.reply(await _ask_pool_in_turn(pool, rows, calls, keep))


async def next_order(orders: Orders) -> Any:
    """Wait for an order without holding up the event loop; None when there will be no more."""
    await anyio.wait_readable(orders)
    return orders.next()


async def _ask_pool_in_turn(
    pool: PredictorPool[Arrays], rows: deque[Arrays], calls: int, keep: bool
) -> Asked:
    times = np.empty((calls, 2), np.int64)
    answers = []
    for call in range(calls):
        row = rows[0]
        rows.rotate(-1)
        began = time.monotonic_ns()
        answer = await pool.predict(row)
        times[call] = began, time.monotonic_ns()
        if keep:
            answers.append(answer)
    return times, answers
