"""Predictors and small tools that several tests of the pool use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from predictpool import FunctionPredictor, PredictorPool
from tests.stage import Stage

# Of every test that opens a pool.
POOL_TEST = [
    pytest.mark.anyio,
    pytest.mark.timeout(30),
    pytest.mark.usefixtures("never_blocking", "nothing_left", "mistakes"),
]

# Of a test that is about processes, where the event loop does not matter.
ONE_LOOP = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"]
)

# Of a test that takes long, where uvloop does nothing that asyncio does not.
TWO_LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("trio", {})],
    ids=["asyncio", "trio"],
)


def both_pools(test: Any) -> Any:
    """Mark a test of what an `InlinePool` promises as well: it runs with either kind."""
    kinds = pytest.mark.parametrize("either_pool", ["processes", "inline"], indirect=True)
    return pytest.mark.usefixtures("either_pool")(kinds(test))


def doubling(**options: Any) -> FunctionPredictor[Any]:
    """A predictor that doubles its rows."""
    options.setdefault("row_wise", True)
    return FunctionPredictor(lambda: lambda x: x * 2, **options)


def held(stage: Stage, **options: Any) -> FunctionPredictor[Any]:
    """A predictor that doubles its rows when the test lets it; it tells how many there are."""
    options.setdefault("row_wise", True)

    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(len(x))
            return x * 2

        return predict

    return FunctionPredictor(load, **options)


def calling(function: Callable[[Any], Any], **options: Any) -> FunctionPredictor[Any]:
    """A predictor that calls a function of a test."""
    return FunctionPredictor(lambda: function, **options)


def naming_pids(stage: Stage) -> FunctionPredictor[Any]:
    """A predictor whose workers tell their process ids when they load; it doubles its rows."""

    def load() -> Callable[[Any], Any]:
        stage.say(os.getpid())
        return lambda x: x * 2

    return FunctionPredictor(load)


def pids_of(pool: PredictorPool[Any]) -> list[int]:
    """Return the process ids of the workers that have the slots now, in their order."""
    assert pool._supervisor is not None
    workers = [slot.worker for slot in pool._supervisor.slots]
    return [worker.pid for worker in workers if worker is not None and worker.pid is not None]


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until something is true that has no event of its own."""
    with anyio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - what has an event is awaited itself
            await anyio.sleep(0.001)


async def until_replaced(pool: PredictorPool[Any], workers: list[int]) -> None:
    """Wait until none of these has its slot any more, as long as TensorFlow takes for it."""
    with anyio.fail_after(60):
        while set(workers) & set(pids_of(pool)):  # noqa: ASYNC110 - nobody tells of a reload
            await anyio.sleep(0.01)


async def until_waiting(pool: PredictorPool[Any], requests: int) -> None:
    """Let the event loop turn until so many requests are in the queue."""
    await until(lambda: pool.statistics().waiting == requests)


def adds_up(pool: PredictorPool[Any]) -> bool:
    """Whether every request is in exactly one place."""
    now = pool.statistics()
    return now.submitted == (
        now.answered
        + now.failed
        + now.cancelled
        + now.timed_out
        + now.refused
        + now.waiting
        + now.running
    )
