"""The life of a request: batches, deadlines, cancellation, overload, and what the model raises."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import (
    FeatureSpec,
    FunctionPredictor,
    InvalidFeatures,
    PoolTimeout,
    PredictionError,
    PredictorPool,
    TooManyRequests,
)
from predictpool._dispatcher import Dispatcher
from tests.pools import (
    ONE_LOOP,
    POOL_TEST,
    adds_up,
    both_pools,
    calling,
    doubling,
    held,
    until,
    until_waiting,
)
from tests.stage import Stage

pytestmark = POOL_TEST


class Callers:
    """Callers in tasks of their own, and what they got."""

    def __init__(self, pool: PredictorPool[Any]) -> None:
        self.pool = pool
        self.got: dict[object, Any] = {}
        self.scopes: dict[object, anyio.CancelScope] = {}

    async def ask(self, features: Any, name: object = None, timeout: float = 20.0) -> None:
        """Ask, and keep the answer or the error."""
        name = features[0] if name is None else name
        with anyio.CancelScope() as self.scopes[name]:
            try:
                self.got[name] = (await self.pool.predict(features, timeout=timeout)).tolist()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.got[name] = error


# --- batches -----------------------------------------------------------------------


async def test_requests_that_wait_share_a_batch_of_up_to_max_batch_size_rows(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, max_batch_size=8) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            assert await stage.hears() == 1
            for value in range(1, 21):
                group.start_soon(callers.ask, [float(value)])
            await until_waiting(pool, 20)
            stage.let_go(4)
        assert stage.heard() == [8, 8, 4]
        assert callers.got == {float(value): [2.0 * value] for value in range(21)}
        assert pool.statistics().batches == 4


async def test_outputs_without_any_name_are_everybodys(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> dict[str, Any]:
            stage.hold(len(x))
            return {}

        return predict

    answers = []

    async def ask() -> None:
        answers.append(await pool.predict([0.0]))

    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            assert await stage.hears() == 1
            for _ in range(3):
                group.start_soon(ask)
            await until_waiting(pool, 3)
            stage.let_go(2)
        assert stage.heard() == [3]
    assert answers == [{}] * 4


async def test_map_keeps_all_workers_busy_where_nothing_may_wait(stage: Stage) -> None:
    async def ask_for_four() -> None:
        answers = [answer.tolist() async for answer in pool.map([[1.0]] * 4)]
        assert answers == [[2.0]] * 4

    async with PredictorPool(held(stage), workers=2, max_waiting=0) as pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:
            group.start_soon(ask_for_four)
            assert [await stage.hears() for _ in range(2)] == [1, 1]
            stage.let_go(4)


@pytest.mark.parametrize("callers", [4, 33, 64])
async def test_callers_that_are_answered_together_share_the_next_batch(
    stage: Stage, callers: int
) -> None:
    async def ask_twice() -> None:
        for _ in range(2):
            await pool.predict([0.0])

    async with PredictorPool(held(stage), workers=1) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.predict, [0.0])
        assert await stage.hears() == 1
        for _ in range(callers):
            group.start_soon(ask_twice)
        await until_waiting(pool, callers)
        for _ in range(2):
            stage.let_go()
            assert await stage.hears() == callers
        stage.let_go()


async def test_the_callers_of_a_large_batch_are_not_woken_all_in_one_turn(stage: Stage) -> None:
    turns, woken_in = itertools.count(), set[int]()
    turn = next(turns)

    async def ask() -> None:
        await pool.predict([0.0])
        woken_in.add(turn)

    async with PredictorPool(held(stage), workers=1, max_batch_size=300) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [0.0])
            assert await stage.hears() == 1
            for _ in range(300):
                group.start_soon(ask)
            await until_waiting(pool, 300)
            stage.let_go(2)
            while pool.statistics().answered < 301:
                await anyio.lowlevel.checkpoint()
            while turn < 30:
                await anyio.lowlevel.checkpoint()
                turn = next(turns)
        assert len(woken_in) > 2


async def test_requests_of_one_turn_are_shared_by_the_workers_that_are_idle(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=3) as pool, anyio.create_task_group() as group:
        await pool.wait_ready()
        group.start_soon(pool.predict, [0.0])  # alone, and so at once
        assert await stage.hears() == 1
        for _ in range(6):
            group.start_soon(pool.predict, [0.0])
        assert [await stage.hears() for _ in range(2)] == [3, 3]
        stage.let_go(3)


async def test_a_request_with_more_rows_than_a_batch_runs_alone(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, max_batch_size=4) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            for name, rows in enumerate((3, 10, 1, 1)):
                group.start_soon(callers.ask, [float(name)] * rows, name)
                await until_waiting(pool, name + 1)
            stage.let_go(4)
        assert stage.heard() == [3, 10, 2]


async def test_requests_of_different_names_dtypes_or_row_shapes_do_not_share(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            values = x["a"] if isinstance(x, dict) else x
            stage.hold([str(values.dtype), list(values.shape)])
            return values

        return predict

    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [0.0])
            await stage.hears()
            waiting = [
                np.ones(2),
                np.ones(2, np.float32),
                np.ones((2, 3)),
                np.ones((2, 4)),
                {"a": np.ones(2)},
                np.ones(2),
            ]
            for number, features in enumerate(waiting):
                group.start_soon(pool.predict, features)
                await until_waiting(pool, number + 1)
            stage.let_go(10)
        assert stage.heard() == [
            ["float64", [4]],  # the first and the last
            ["float32", [2]],
            ["float64", [2, 3]],
            ["float64", [2, 4]],
            ["float64", [2]],
        ]


@both_pools
async def test_requests_to_a_predictor_that_is_not_row_wise_run_alone(stage: Stage) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(pool.predict, [float(value)])
            stage.let_go(4)
        assert stage.heard() == [1, 1, 1, 1]


async def test_outputs_without_the_rows_are_run_alone_with_a_warning_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(len(x))
            return np.array([x.sum(), x.max(), x.min()])

        return predict

    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0, 0.0])
            await stage.hears()
            for value in range(1, 5):
                group.start_soon(callers.ask, [float(value), 0.0])
            await until_waiting(pool, 4)
            stage.let_go(100)
        assert callers.got == {float(v): [float(v), float(v), 0.0] for v in range(5)}
        assert stage.heard() == [8, 2, 2, 2, 2]  # not halved: there is no guilty one to find
        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(callers.ask, [float(value)])
        assert stage.heard() == [1, 1, 1, 1]
    said = [record for record in caplog.records if "do not have the rows" in record.getMessage()]
    assert len(said) == 1


@both_pools
async def test_outputs_without_the_rows_are_found_in_the_warm_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.say(len(x))
            return np.array([x.sum()])  # one row's output looks like a row

        return predict

    predictor = FunctionPredictor(load, row_wise=True, signature=np.float64)
    async with PredictorPool(predictor, workers=1) as pool:
        assert stage.heard() == [1, 2]
        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(pool.predict, [float(value)])
        assert stage.heard() == [1, 1, 1, 1]
    assert "should say row_wise=False" in caplog.text


@both_pools
async def test_outputs_that_are_as_wide_as_the_call_are_found_in_the_warm_up(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.say(len(x))
            return np.subtract.outer(x, x)  # [n, n]: every row is compared with every other

        return predict

    predictor = FunctionPredictor(load, row_wise=True, signature=np.float64)
    async with PredictorPool(predictor, workers=1) as pool:
        assert stage.heard() == [1, 2]
        answers: list[Any] = []

        async def ask(value: float) -> None:
            answers.append(await pool.predict([value]))

        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(ask, float(value))
        assert stage.heard() == [1, 1, 1, 1]
    assert [answer.shape for answer in answers] == [(1, 1)] * 4


@both_pools
async def test_outputs_that_depend_on_other_rows_are_found_in_a_warm_up_of_several(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.say(len(x))
            return x - x.mean()

        return predict

    predictor = FunctionPredictor(load, row_wise=True, signature=np.float64)
    async with PredictorPool(predictor, workers=1, warmup=[1.0, 4.0]) as pool:
        assert stage.heard() == [2, 3]
        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(pool.predict, [float(value)])
        assert stage.heard() == [1, 1, 1, 1]
    assert "those of a row depend on the other rows" in caplog.text


async def test_a_poisoned_row_fails_alone_and_its_mates_are_answered(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(len(x))
            if (x < 0).any():
                raise ValueError(f"poisoned: {x.min()}")
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            for value in range(1, 9):
                group.start_soon(callers.ask, [-5.0 if value == 5 else float(value)])
                await until_waiting(pool, value)
            stage.let_go(100)
        error = callers.got.pop(-5.0)
        assert isinstance(error, ValueError)
        assert str(error) == "poisoned: -5.0"
        assert callers.got == {float(v): [2.0 * v] for v in range(9) if v != 5}
        assert stage.heard() == [8, 4, 4, 2, 1, 1, 2]  # halved, and nothing run for nothing
        assert pool.statistics().failed == 1
        assert adds_up(pool)


# --- deadlines ---------------------------------------------------------------------


async def test_a_deadline_passes_in_the_queue_while_every_worker_is_busy(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        with pytest.raises(PoolTimeout, match=r"within timeout=0\.05 s.*ran 0\.000 s") as caught:
            await pool.predict([2.0], timeout=0.05)
        assert caught.value.timeout == 0.05
        assert caught.value.waited >= 0.05
        assert caught.value.ran == 0.0
        stage.let_go(5)
        await until(lambda: pool.statistics().running == 0)
        assert (await pool.predict([3.0])).tolist() == [6.0]
        assert stage.heard() == [1]  # the expired one never reached the worker
        assert pool.statistics().timed_out == 1
        assert adds_up(pool)


async def test_a_deadline_passes_while_the_request_runs_and_the_worker_lives_on(
    stage: Stage,
) -> None:
    async with PredictorPool(held(stage), workers=1, timeout=0.1) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.predict([1.0])
        assert caught.value.ran > 0
        stage.let_go(2)
        assert (await pool.predict([3.0], timeout=None)).tolist() == [6.0]
        assert pool.statistics().restarts == 0
        assert adds_up(pool)


@both_pools
async def test_no_time_at_all_is_a_timeout_and_less_is_an_error() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.predict([1.0], timeout=0)
        with pytest.raises(PoolTimeout):
            await pool.predict_one(1.0, timeout=0.0)
        with pytest.raises(PoolTimeout):
            await anext(pool.map([[1.0]], timeout=0))
        with pytest.raises(ValueError, match="timeout is -1, expected 0 or more seconds"):
            await pool.predict([1.0], timeout=-1)
        with pytest.raises(TypeError, match="timeout is 'soon'"):
            await pool.predict([1.0], timeout="soon")  # type: ignore[arg-type]
        now = pool.statistics()
        assert (now.submitted, now.timed_out, now.batches) == (3, 3, 0)


async def test_the_deadline_of_one_in_a_batch_does_not_touch_the_others(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            group.start_soon(callers.ask, [1.0])
            group.start_soon(callers.ask, [2.0], 2.0, 0.1)
            await until_waiting(pool, 2)
            stage.let_go()
            assert await stage.hears() == 2
            await until(lambda: 2.0 in callers.got)
            stage.let_go()
        assert isinstance(callers.got.pop(2.0), PoolTimeout)
        assert callers.got == {0.0: [0.0], 1.0: [2.0]}


# --- cancellation ------------------------------------------------------------------


async def test_cancelling_returns_at_once_waiting_and_running(stage: Stage) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [1.0])
            await stage.hears()
            group.start_soon(callers.ask, [2.0])
            await until(lambda: pool.statistics().waiting)
            callers.scopes[2.0].cancel()
            callers.scopes[1.0].cancel()
        now = pool.statistics()
        assert (now.cancelled, now.waiting, now.running) == (2, 0, 0)
        stage.let_go(2)
        assert (await pool.predict([3.0])).tolist() == [6.0]
        assert stage.heard() == [1]  # the one that waited never ran
        assert pool.statistics().restarts == 0
        assert adds_up(pool)


@pytest.mark.parametrize("cancelled", [{2.0}, {1.0, 2.0, 3.0}], ids=["one", "all"])
async def test_cancelling_members_of_a_batch_leaves_the_others_alone(
    stage: Stage, cancelled: set[float]
) -> None:
    async with PredictorPool(held(stage), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            for value in (1.0, 2.0, 3.0):
                group.start_soon(callers.ask, [value])
            await until_waiting(pool, 3)
            stage.let_go()
            assert await stage.hears() == 3
            for value in cancelled:
                callers.scopes[value].cancel()
            await anyio.wait_all_tasks_blocked()
            stage.let_go(2)
        assert callers.got == {v: [2 * v] for v in (0.0, 1.0, 2.0, 3.0) if v not in cancelled}
        assert pool.statistics().cancelled == len(cancelled)
        assert (await pool.predict([4.0])).tolist() == [8.0]
        assert adds_up(pool)


async def test_a_cancelled_member_of_a_batch_that_fails_is_not_run_again(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(x.tolist())
            if len(x) > 1:
                raise ValueError
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            for value in (1.0, 2.0):
                group.start_soon(callers.ask, [value])
            await until_waiting(pool, 2)
            stage.let_go()
            await stage.hears()
            callers.scopes[1.0].cancel()
            await anyio.wait_all_tasks_blocked()
            stage.let_go(5)
        assert callers.got == {0.0: [0.0], 2.0: [4.0]}
        assert stage.heard() == [[2.0]]


@both_pools
async def test_a_storm_of_cancellation_leaves_every_survivor_answered() -> None:
    async with PredictorPool(doubling(), workers=2, max_batch_size=16, max_waiting=None) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            for value in range(10_000):
                group.start_soon(callers.ask, [float(value)])
            for turn in range(20):
                await anyio.lowlevel.checkpoint()
                for value in range(turn, 10_000, 40):
                    if float(value) in callers.scopes:
                        callers.scopes[float(value)].cancel()
        now = pool.statistics()
        assert all(got == [2 * value] for value, got in callers.got.items())  # type: ignore[operator]
        assert len(callers.got) >= 5000
        assert now.cancelled > 100  # it was a storm
        assert (now.submitted, now.waiting, now.running) == (10_000, 0, 0)
        assert now.answered + now.cancelled == 10_000
        assert adds_up(pool)
        assert not pool._scheduler._lines
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_timeouts_of_the_caller_stay_what_they_are(
    stage: Stage, anyio_backend_name: str
) -> None:
    async with PredictorPool(held(stage), workers=1) as pool:
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.05):
            await pool.predict([1.0])
        assert not isinstance(caught.value, PoolTimeout)
        with anyio.move_on_after(0.05) as scope:
            await pool.predict([1.0])
        assert scope.cancelled_caught
        if anyio_backend_name == "asyncio":
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await pool.predict([1.0])
            assert not isinstance(caught.value, PoolTimeout)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.predict([1.0]), 0.05)
            asking = asyncio.create_task(pool.predict([1.0]))
            await asyncio.sleep(0)
            asking.cancel("with this message")
            with pytest.raises(asyncio.CancelledError, match="with this message"):
                await asking
            assert asking.cancelled()
        assert adds_up(pool)
        stage.let_go(20)
        await until(lambda: pool.statistics().running == 0)


@pytest.mark.parametrize("when", ["before it is told", "after it was told"])
async def test_a_cancel_in_the_tick_of_the_reply_is_counted_once_and_harms_no_mate(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    hand_out = Dispatcher._hand_out

    def hand_out_and_cancel(dispatcher: Dispatcher, *answer: Any) -> None:
        if when == "before it is told":
            callers.scopes[1.0].cancel()
        hand_out(dispatcher, *answer)
        if when == "after it was told":
            callers.scopes[1.0].cancel()

    async with PredictorPool(held(stage), workers=1) as pool:
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.ask, [0.0])
            await stage.hears()
            group.start_soon(callers.ask, [1.0])
            group.start_soon(callers.ask, [2.0])
            await until_waiting(pool, 2)
            stage.let_go()
            assert await stage.hears() == 2
            await until(lambda: 0.0 in callers.got)
            with monkeypatch.context() as patch:
                patch.setattr(Dispatcher, "_hand_out", hand_out_and_cancel)
                stage.let_go()
                await until(lambda: 2.0 in callers.got)
        # Whether the answer or the cancellation comes first is for the event loop to say.
        assert callers.got.pop(1.0, [2.0]) == [2.0]
        assert callers.got == {0.0: [0.0], 2.0: [4.0]}
        now = pool.statistics()
        assert (now.answered + now.cancelled, now.running) == (3, 0)
        stage.let_go()
        assert (await pool.predict([3.0])).tolist() == [6.0]
        assert adds_up(pool)


@ONE_LOOP
@pytest.mark.parametrize("when", ["before it is told", "after it was told"])
async def test_a_native_cancel_in_the_tick_of_the_reply_is_a_cancel(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    hand_out = Dispatcher._hand_out

    def hand_out_and_cancel(dispatcher: Dispatcher, *answer: Any) -> None:
        if when == "before it is told":
            asking.cancel()
        hand_out(dispatcher, *answer)
        if when == "after it was told":
            asking.cancel()

    async with PredictorPool(held(stage), workers=1) as pool:
        asking = asyncio.create_task(pool.predict([1.0]))
        await stage.hears()
        with monkeypatch.context() as patch:
            patch.setattr(Dispatcher, "_hand_out", hand_out_and_cancel)
            stage.let_go()
            await asyncio.wait([asking])
        assert asking.cancelled()
        now = pool.statistics()
        assert (now.answered + now.cancelled, now.running) == (1, 0)
        stage.let_go()
        assert (await pool.predict([2.0])).tolist() == [4.0]
        assert adds_up(pool)


async def test_a_caller_that_was_cancelled_before_it_asked_leaves_nothing(stage: Stage) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        for _ in range(3):  # the first finds an idle worker, the others a busy one
            with anyio.CancelScope() as scope:
                scope.cancel()
                await pool.predict([1.0])
            assert scope.cancelled_caught
        now = pool.statistics()
        assert (now.cancelled, now.waiting, now.running) == (3, 0, 0)
        stage.let_go(2)
        assert (await pool.predict([2.0])).tolist() == [4.0]
        assert adds_up(pool)


# --- overload ----------------------------------------------------------------------


async def test_one_request_more_than_max_waiting_is_refused_at_once(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage, row_wise=False), workers=1, max_waiting=3) as pool,
        anyio.create_task_group() as group,
    ):
        for _ in range(4):  # one runs, three wait
            group.start_soon(pool.predict, [1.0])
        await stage.hears()
        await until_waiting(pool, 3)
        for _ in range(2):
            with pytest.raises(TooManyRequests, match="max_waiting=3") as caught:
                await pool.predict([1.0])
            assert (caught.value.waiting, caught.value.max_waiting) == (3, 3)
        assert pool.statistics().refused == 2
        stage.let_go()
        await until_waiting(pool, 2)
        group.start_soon(pool.predict, [1.0])  # there is room for exactly one again
        await until_waiting(pool, 3)
        with pytest.raises(TooManyRequests):
            await pool.predict([1.0])
        assert adds_up(pool)
        stage.let_go(10)


async def test_quick_requests_never_wait_behind_a_slow_one(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            if x[0] < 0:
                stage.hold("slow")
            return x * 2

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [-1.0])
            await stage.hears()
            for value in range(20):
                assert (await pool.predict([float(value)])).tolist() == [2.0 * value]
            stage.let_go()


# --- bad features ------------------------------------------------------------------


@both_pools
async def test_bad_features_never_reach_a_worker_and_are_counted(stage: Stage) -> None:
    predictor = held(stage, signature=np.float32)
    stage.let_go(2)  # of the warm-up
    async with PredictorPool(predictor, workers=1) as pool:
        stage.heard()
        for features in ({"b": [1.0]}, ["x"], 1.0, [[1.0], [2.0, 3.0]], [[1.0, 2.0]]):
            with pytest.raises(InvalidFeatures):
                await pool.predict(features)
        now = pool.statistics()
        assert (now.submitted, now.failed, now.batches) == (5, 5, 0)
        assert stage.heard() == []
        assert adds_up(pool)


def iter_nothing() -> Iterator[None]:
    yield


@ONE_LOOP
@both_pools
async def test_features_that_do_not_pickle_are_refused() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        with pytest.raises(InvalidFeatures, match="cannot be sent to a worker"):
            await pool.predict(np.array([gc.get_objects], dtype=[("f", object)]))
        with pytest.raises(InvalidFeatures, match=r"cannot be sent to a worker.*generator"):
            await pool.predict(np.array([iter_nothing(), None], dtype=object))
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert adds_up(pool)


# --- what the model raises ---------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NotHere(Exception):
    pass


def failing(make: Callable[[], BaseException]) -> FunctionPredictor[Any]:
    def predict(_: Any) -> Any:
        raise make()

    return calling(predict)


@ONE_LOOP
@both_pools
async def test_a_builtin_exception_comes_back_as_itself_with_the_workers_traceback() -> None:
    def model(x: Any) -> Any:
        return {"a": 1}[x[0]]

    async with PredictorPool(calling(model), workers=1) as pool:
        with pytest.raises(KeyError) as caught:
            await pool.predict(["b"])
        assert caught.value.args == ("b",)
        (note,) = caught.value.__notes__
        assert "raised in a worker (slot 0, pid" in note
        assert "in model" in note
        assert "_worker.py" not in note.split("\n")[2]  # it begins with the user's own frames


@ONE_LOOP
@both_pools
async def test_an_exception_of_an_imported_module_comes_back_as_itself() -> None:
    def model(_: Any) -> Any:
        raise np.linalg.LinAlgError("singular")

    async with PredictorPool(calling(model), workers=1) as pool:
        with pytest.raises(np.linalg.LinAlgError, match="singular"):
            await pool.predict([1.0])


@ONE_LOOP
async def test_an_exception_of_a_module_that_is_not_imported_here_does_not_import_it() -> None:
    module = "xml.sax"
    for name in [name for name in sys.modules if name.startswith(module)]:
        del sys.modules[name]

    def model(_: Any) -> Any:
        import xml.sax

        raise xml.sax.SAXException("from afar")

    async with PredictorPool(calling(model), workers=1) as pool:
        with pytest.raises(
            PredictionError, match=r"xml\.sax\._exceptions\.SAXException.*from afar"
        ) as e:
            await pool.predict([1.0])
        assert e.value.type_name == "xml.sax._exceptions.SAXException"
        assert "in model" in e.value.traceback
        assert not [name for name in sys.modules if name.startswith(module)]


def does_not_pickle() -> Exception:
    error = ValueError("with a lambda")
    error.extra = lambda: None  # type: ignore[attr-defined]
    return error


def does_not_unpickle() -> Exception:
    class Local(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    return Local(1, 2)


def has_no_text() -> Exception:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    return Silent()


@ONE_LOOP
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (does_not_pickle, "ValueError.*with a lambda"),
        (does_not_unpickle, "Local.*1 and 2"),
        (lambda: TwoArguments(1, 2), "TwoArguments.*1 and 2"),
        (has_no_text, "its message cannot be shown"),
        (StopIteration, "StopIteration"),
        (StopAsyncIteration, "StopAsyncIteration"),
    ],
    ids=["no pickle", "local", "no unpickle", "no text", "StopIteration", "StopAsyncIteration"],
)
@both_pools
async def test_an_exception_that_cannot_travel_or_be_raised_becomes_a_prediction_error(
    make: Callable[[], BaseException], text: str
) -> None:
    async with PredictorPool(failing(make), workers=1) as pool:
        with pytest.raises(PredictionError, match=text) as caught:
            await pool.predict([1.0])
        assert "in predict" in caught.value.traceback
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.type_name, str(again)) == (caught.value.type_name, str(caught.value))
        with pytest.raises(PredictionError):  # and the worker lives on
            await pool.predict([1.0])
        assert pool.statistics().restarts == 0


class Unloadable:
    """Unpickles in the worker that made it, and nowhere else."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["pid"] != os.getpid():
            raise ZeroDivisionError("not here")


@ONE_LOOP
async def test_outputs_that_cannot_travel_fail_one_request_and_harm_nobody() -> None:
    def predict(x: Any) -> Any:
        if x[0] == 1:
            return lambda: None
        if x[0] == 2:
            return Unloadable()
        if x[0] == 3:
            import fractions

            return fractions.Fraction(1, 2)
        return x

    for name in [name for name in sys.modules if name == "fractions"]:
        del sys.modules[name]
    async with PredictorPool(calling(predict), workers=1) as pool:
        with pytest.raises((PredictionError, AttributeError, pickle.PicklingError), match="pickle"):
            await pool.predict([1])
        with pytest.raises(PredictionError, match="not here"):
            await pool.predict([2])
        with pytest.raises(PredictionError, match="Fraction, whose module is not imported"):
            await pool.predict([3])
        assert "fractions" not in sys.modules
        assert (await pool.predict([4])).tolist() == [4]
        assert pool.statistics().failed == 3
        assert pool.statistics().restarts == 0


@ONE_LOOP
@both_pools
async def test_a_request_that_no_frame_can_hold_is_refused_and_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("predictpool._dispatcher.MAX_REQUEST", 80)
    async with PredictorPool(doubling(), workers=1) as pool:
        with pytest.raises(InvalidFeatures, match="are 88 bytes, and one request may have 80"):
            await pool.predict(np.zeros(11))
        assert (await pool.predict(np.ones(10))).tolist() == [2.0] * 10
        assert adds_up(pool)


# --- rows of their own length ------------------------------------------------------


@both_pools
async def test_ragged_rows_reach_the_model_and_their_requests_share_its_calls() -> None:
    def describe(features: Any) -> Any:
        rows, words = features["n"], features["w"]
        return {
            "dtype": np.array([row.dtype.str for row in rows]),
            "sum": np.array([row.sum() for row in rows]),
            "words": np.array([b" ".join(row) for row in words], object),
            "called with": np.full(len(rows), len(rows)),
        }

    signature = {
        "n": FeatureSpec(np.dtype("int32"), ragged=True),
        "w": FeatureSpec(np.dtype(object), ragged=True),
    }
    predictor = calling(describe, row_wise=True, signature=signature)
    answers: list[dict[str, Any]] = []

    async with PredictorPool(predictor, workers=1) as pool:

        async def ask(features: Any) -> None:
            answers.append(await pool.predict(features))

        async with anyio.create_task_group() as group:
            for count in range(3):
                group.start_soon(ask, {"n": [[count] * 3, []], "w": [["a", "b"], ["c"] * count]})
        one = await pool.predict_one({"n": [1, 2], "w": []})
    assert sorted(answer["sum"].tolist() for answer in answers) == [[0, 0], [3, 0], [6, 0]]
    assert {tuple(answer["dtype"]) for answer in answers} == {("<i4", "<i4")}
    assert sorted(answer["words"].tolist() for answer in answers) == [
        [b"a b", b""],
        [b"a b", b"c"],
        [b"a b", b"c c"],
    ]
    # The first one ran at once; those that came meanwhile have other lengths, and ran together.
    assert {tuple(answer["called with"]) for answer in answers} == {(2, 2), (4, 4)}
    assert (one["sum"], one["words"]) == (3, b"")
