"""The ways to ask a model for one row, each as it runs in a process of its own."""

import functools
import time
from collections.abc import Callable, Iterator
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

LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop", "trio")
ROWS = 256
CHECKED_ROWS = 8


@dataclass(frozen=True)
class Way:
    """One way to ask the model.

    Attributes:
        kind: ``"naive"`` is ``estimator.predict`` for each request.
        method: of the predictor; None for the naive way, which has none.
        loop, workers: of a pool.
    """

    kind: Kind
    method: Method | None = None
    loop: Loop | None = None
    workers: int = 0

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.kind == "naive":
            return "estimator.predict for each request"
        if self.kind != "pool":
            return f"{self.kind}, {self.method}"
        return f"pool, {self.method}, {self.loop}, workers={self.workers}"


def serve(orders: Orders, way: Way, model: Model) -> None:
    """Be a contender; see `harness.Contender`.

    It understands ``("check",)``, which returns the answers to the first `CHECKED_ROWS` rows, one
    by one, and ``("round", warm-up calls, timed calls)``, which returns seconds for each call.
    """
    if way.kind == "pool":
        uvloop = {"use_uvloop": True} if way.loop == "uvloop" else {}
        anyio.run(
            functools.partial(_serve_pool, orders, way, model),
            backend="trio" if way.loop == "trio" else "asyncio",
            backend_options=uvloop,
        )
        return
    with _SYNCHRONOUS[way.kind](way, model) as (ask, rows):
        turn = 0
        orders.reply(None)
        while (order := orders.next()) is not None:
            if order[0] == "check":
                orders.reply([ask(row) for row in rows[:CHECKED_ROWS]])
                continue
            _, warm_up, calls = order
            for call in range(warm_up):
                ask(rows[call % len(rows)])
            orders.reply(_timed(ask, rows, turn, calls))
            turn += calls


def _timed(ask: Ask, rows: list[Any], turn: int, calls: int) -> NDArray[np.float64]:
    seconds = np.empty(calls)
    for call in range(calls):
        row = rows[(turn + call) % len(rows)]
        began = time.perf_counter()
        ask(row)
        seconds[call] = time.perf_counter() - began
    return seconds


# --- without a pool ----------------------------------------------------------------


@contextmanager
def _naive(way: Way, model: Model) -> Iterator[tuple[Ask, list[Any]]]:
    """As its users run it: all cores, all of TensorFlow's threads."""
    yield functools.partial(models.predict_naively, model.build()), model.rows(ROWS)


@contextmanager
def _in_process(way: Way, model: Model) -> Iterator[tuple[Ask, list[Any]]]:
    """On one core, like a worker; the features were checked before."""
    core = harness.become_like_a_worker()
    predict, close, rows = _load(way, model, core)
    yield predict, rows
    close()


@contextmanager
def _hop_floor(way: Way, model: Model) -> Iterator[tuple[Ask, list[Any]]]:
    """The worker on one core, the caller wherever the kernel puts it, as with a pool."""

    def load() -> tuple[Ask, Arrays]:
        core = harness.become_like_a_worker()
        predict, _, rows = _load(way, model, core)
        return predict, predict(rows[0])

    # Known to the caller without TensorFlow: text is UTF-8 bytes, numbers stay as they are.
    rows = [_as_model_takes_it(row) for row in model.rows(ROWS)]
    client = floor.Client(rows[0], load)
    yield client.ask, [client.encode(row) for row in rows]
    client.close()


def _load(way: Way, model: Model, core: int) -> tuple[Ask, Callable[[], None], list[Arrays]]:
    assert way.method is not None
    predictor = model.predictor(way.method)
    predictor.load(Device(cores=(core,)))
    assert isinstance(predictor.signature, Signature)  # derived from the feature columns
    rows = [predictor.signature.conform(row) for row in model.rows(ROWS)]
    predictor.predict(rows[0])  # the first call builds what the others use
    return predictor.predict, predictor.close, rows


def _as_model_takes_it(row: Arrays) -> Arrays:
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
    rows = model.rows(ROWS)
    turn = 0
    async with PredictorPool(model.predictor(way.method), workers=way.workers) as pool:
        await pool.wait_ready()
        orders.reply(None)
        while (order := await _next(orders)) is not None:
            if order[0] == "check":
                orders.reply([await pool.predict(row) for row in rows[:CHECKED_ROWS]])
                continue
            _, warm_up, calls = order
            for call in range(warm_up):
                await pool.predict(rows[call % len(rows)])
            orders.reply(await _timed_pool(pool, rows, turn, calls))
            turn += calls


async def _next(orders: Orders) -> Any:
    await anyio.wait_readable(orders)
    return orders.next()


async def _timed_pool(
    pool: PredictorPool[Arrays], rows: list[Arrays], turn: int, calls: int
) -> NDArray[np.float64]:
    seconds = np.empty(calls)
    for call in range(calls):
        row = rows[(turn + call) % len(rows)]
        began = time.perf_counter()
        await pool.predict(row)
        seconds[call] = time.perf_counter() - began
    return seconds
