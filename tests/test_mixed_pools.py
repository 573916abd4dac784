"""Mixed pools with real workers: which one answers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import Device, PredictorPool
from tests.pools import ONE_LOOP, POOL_TEST, doubling, until
from tests.stage import Stage

HELD = 2.0
CORES = sorted(os.sched_getaffinity(0))

pytestmark = [*POOL_TEST, pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")]


class Unequal:
    """A predictor that needs 20 ms for a row with one thread, and 100 ms for a batch with two.

    Args:
        stage: where it stays with rows of `HELD`, and says how many threads it has.
    """

    preload: tuple[str, ...] = ()
    row_wise = True
    signature = None

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def load(self, device: Device) -> None:
        self.threads = device.threads

    def predict(self, features: Any) -> Any:
        if HELD in features:
            self.stage.hold(self.threads)
        time.sleep(0.02 * len(features) if self.threads == 1 else 0.1)
        return np.full(len(features), self.threads)

    def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def unequal_pool(stage: Stage) -> AsyncIterator[PredictorPool[Any]]:
    """Have a pool that has learnt which of its workers has one row sooner, and which many."""
    devices = [f"cpu:{CORES[0]}", f"cpu:{CORES[0]},{CORES[1]}"]
    pool: PredictorPool[Any] = PredictorPool(Unequal(stage), devices=devices, max_batch_size=16)
    async with pool:
        await pool.wait_ready()
        async for _ in pool.map([[[1.0]] * rows for rows in (1, 16, 1, 1, 16, 1) * 2]):
            pass
        for rows, wanted in ((1, 1), (16, 2)):
            right = 0
            with anyio.fail_after(20):  # the machine may have disturbed what was learnt
                while right < 5:
                    right = right + 1 if await threads_for(pool, rows) == wanted else 0
        yield pool


async def threads_for(pool: PredictorPool[Any], rows: int) -> int:
    """Ask for so many rows; return how many threads the worker has that answered."""
    (threads,) = set((await pool.predict([[1.0]] * rows)).tolist())
    return int(threads)


async def test_each_request_is_answered_by_the_worker_that_has_it_sooner(stage: Stage) -> None:
    async with unequal_pool(stage) as pool:
        found = [await threads_for(pool, rows) for rows in (1, 16, 1, 16)]
        assert found == [1, 2, 1, 2]


@ONE_LOOP
async def test_what_waits_for_a_worker_that_dies_is_answered_by_the_other(stage: Stage) -> None:
    async with unequal_pool(stage) as pool:
        (pid,) = [worker.pid for worker in pool.workers() if worker.device.threads == 2]
        answers: list[int] = []

        async def ask() -> None:
            answers.append(await threads_for(pool, 16))

        async with anyio.create_task_group() as callers:
            for _ in range(2):
                callers.start_soon(ask)
            await until(lambda: pool.statistics().running == 1)
            assert pool.statistics().waiting == 1  # and a worker is idle
            os.kill(pid, signal.SIGKILL)
        assert len(answers) == 2
        assert 1 in answers


@ONE_LOOP
async def test_what_waits_for_a_worker_that_takes_longer_goes_to_the_other(stage: Stage) -> None:
    async with unequal_pool(stage) as pool, anyio.create_task_group() as callers:
        callers.start_soon(pool.predict, [[HELD]] * 16)
        assert await stage.hears() == 2
        try:
            with anyio.fail_after(10):
                assert await threads_for(pool, 16) == 1
        finally:
            stage.let_go()


@ONE_LOOP
async def test_equal_workers_are_not_routed() -> None:
    async with PredictorPool(doubling(), devices=[f"cpu:{core}" for core in CORES]) as pool:
        assert pool._scheduler.routes is None
