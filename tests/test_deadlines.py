"""Deadlines hold while workers restart, and whatever happens to the clock on the wall."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from predictpool import FunctionPredictor, PoolTimeout, PredictorPool
from tests.pools import POOL_TEST, adds_up, held, pids_of, until, until_waiting
from tests.stage import Stage

pytestmark = POOL_TEST


@pytest.mark.parametrize("jump", [-1e8, 1e8], ids=["back", "forward"])
async def test_a_clock_that_is_set_while_requests_run_changes_no_deadline(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    wall = time.time
    async with PredictorPool(
        held(stage, row_wise=False), workers=1, hang_timeout=20.0, grace_period=20.0
    ) as pool:
        answers: list[list[float]] = []

        async def ask() -> None:
            answers.append((await pool.predict([1.0], timeout=20.0)).tolist())

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await stage.hears()
            group.start_soon(ask)
            await until_waiting(pool, 1)
            monkeypatch.setattr(time, "time", lambda: wall() + jump)
            # Neither is it early for those that wait and run, nor late for this one.
            with pytest.raises(PoolTimeout) as caught:
                await pool.predict([2.0], timeout=0.05)
            assert 0.05 <= caught.value.waited < 10
            stage.let_go(2)
        assert answers == [[2.0], [2.0]]
        now = pool.statistics()
        assert (now.restarts, now.timed_out) == (0, 1)
        assert 0 < now.running_seconds < 20
        assert 0 < now.waiting_seconds < 20


@pytest.mark.faults
async def test_deadlines_pass_while_the_only_worker_restarts(stage: Stage) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.hold("loading")

        def predict(x: Any) -> Any:
            stage.hold(x.tolist())
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        told: dict[float, Any] = {}

        async def ask(value: float, timeout: float) -> None:
            try:
                told[value] = (await pool.predict([value], timeout=timeout)).tolist()
            except PoolTimeout as error:
                told[value] = error

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 1.0, 0.4)  # it runs when the worker dies
            assert await stage.hears() == [1.0]
            group.start_soon(ask, 2.0, 0.2)  # it waits
            group.start_soon(ask, 3.0, 20.0)
            await until_waiting(pool, 2)
            os.kill(pids_of(pool)[0], signal.SIGKILL)
            assert await stage.hears() == "loading"
            group.start_soon(ask, 4.0, 0.05)  # it comes when there is no worker
            await until(lambda: len(told) == 3)
            assert all(isinstance(error, PoolTimeout) for error in told.values())
            stage.let_go()
            assert await stage.hears() == [3.0]  # no other reaches the new worker
            stage.let_go()
        assert told[3.0] == [6.0]
        assert pool.statistics().timed_out == 3
        assert adds_up(pool)
        assert stage.heard() == []
