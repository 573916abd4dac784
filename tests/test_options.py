"""Every option does what it says, and says what is wrong with its value."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import (
    BrokenWorkerError,
    FunctionPredictor,
    LocalLauncher,
    PoolTimeout,
    PredictorPool,
    TooManyRequests,
    WorkerStartError,
    _devices,
)
from tests.conftest import Family
from tests.pools import POOL_TEST, both_pools, calling, doubling, held, until, until_waiting
from tests.stage import Stage

pytestmark = POOL_TEST


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: options are read before there is any."""
    return "asyncio"


# --- what each does; a test fails when the option is ignored ------------------------


@pytest.mark.parametrize("workers", [1, 3])
async def test_workers_is_how_many_there_are(workers: int, nothing_left: Family) -> None:
    async with PredictorPool(doubling(), workers=workers) as pool:
        await pool.wait_ready()
        assert pool.statistics().workers == pool.statistics().ready == workers
        assert len(nothing_left.pids()) == workers + 1  # and the template


async def test_without_workers_there_is_one_for_each_core_of_this_process() -> None:
    cores = sorted(os.sched_getaffinity(0))
    count = _devices.worth(tuple(cores))
    async with PredictorPool(calling(lambda _: sorted(os.sched_getaffinity(0)))) as pool:
        assert pool.statistics().workers == count
        # Each is pinned to its own; under a quota nobody is.
        assert len(await pool.predict([1.0])) == (1 if count == len(cores) else len(cores))
    os.sched_setaffinity(0, cores[:1])
    try:
        async with PredictorPool(doubling()) as pool:
            assert pool.statistics().workers == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("platform", "win32", "predictpool runs on Linux .*; this is win32"),
        ("executable", "", "sys.executable is empty"),
    ],
)
async def test_a_system_that_cannot_run_it_is_one_clear_error(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PredictorPool(doubling())
    monkeypatch.setattr(sys, name, value)
    with pytest.raises(OSError, match=message):
        await pool.open()


@pytest.mark.parametrize(("size", "expected"), [(2, [2, 2]), (64, [4])])
async def test_max_batch_size_limits_the_rows_of_a_call(
    stage: Stage, size: int, expected: list[int]
) -> None:
    async with PredictorPool(held(stage), workers=1, max_batch_size=size) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [0.0])
            await stage.hears()
            for _ in range(4):
                group.start_soon(pool.predict, [0.0])
            await until(lambda: pool.statistics().waiting == 4)
            stage.let_go(10)
        assert stage.heard() == expected


async def test_batch_timeout_holds_a_batch_until_it_is_full(stage: Stage) -> None:
    async with (
        PredictorPool(
            held(stage), workers=2, max_batch_size=3, batch_timeout=60.0, timeout=None
        ) as pool,
        anyio.create_task_group() as group,
    ):
        for waiting in range(1, 3):
            group.start_soon(pool.predict, [0.0])
            await until_waiting(pool, waiting)
            await anyio.wait_all_tasks_blocked()
            assert pool.statistics().running == 0  # though both workers are idle
        group.start_soon(pool.predict, [0.0])
        assert await stage.hears() == 3
        stage.let_go()


@both_pools
async def test_batch_timeout_ends_for_a_batch_that_does_not_fill(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, max_batch_size=3, batch_timeout=0.05) as pool:
        stage.let_go()
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().waiting_seconds >= 0.05


async def test_batch_timeout_ends_for_what_is_held_when_its_worker_comes_free(
    stage: Stage,
) -> None:
    async with (
        PredictorPool(
            held(stage), workers=1, batch_timeout=0.2, timeout=None, hang_timeout=None
        ) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [0.0])
        assert await stage.hears() == 1
        group.start_soon(pool.predict, [0.0])
        await until_waiting(pool, 1)
        stage.let_go(2)
        assert await stage.hears() == 1


@both_pools
async def test_a_closing_pool_holds_nothing_any_more(stage: Stage) -> None:
    pool = PredictorPool(held(stage), workers=1, batch_timeout=60.0, timeout=None)
    await pool.open()
    stage.let_go()
    answers = []

    async def ask() -> None:
        answers.append((await pool.predict([1.0])).tolist())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await until_waiting(pool, 1)
        await pool.aclose()
    assert answers == [[2.0]]


async def test_timeout_is_the_default_of_every_call_and_none_is_no_limit(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, timeout=0.05) as pool:
        with pytest.raises(PoolTimeout, match=r"timeout=0\.05"):
            await pool.predict([1.0])
        with pytest.raises(PoolTimeout):
            await pool.predict_one(1.0)
        with pytest.raises(PoolTimeout):
            await anext(pool.map([[1.0]]))
        stage.let_go(10)
        assert (await pool.predict([1.0], timeout=None)).tolist() == [2.0]
        assert (await pool.predict([1.0], timeout=20)).tolist() == [2.0]


async def test_max_waiting_is_how_many_may_wait(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage), workers=1, max_waiting=0) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [1.0])  # an idle worker takes it at once
        await stage.hears()
        with pytest.raises(TooManyRequests):
            await pool.predict([1.0])
        stage.let_go()
    async with (
        PredictorPool(held(stage), workers=1, max_waiting=None) as pool,
        anyio.create_task_group() as group,
    ):
        for _ in range(2000):
            group.start_soon(pool.predict, [1.0])
        stage.let_go(2000)


async def test_retries_is_how_often_a_request_runs_again(stage: Stage) -> None:
    def predict(_: Any) -> Any:
        stage.say("run")
        os._exit(1)

    for retries in (0, 1, 2):
        async with PredictorPool(calling(predict), workers=1, retries=retries) as pool:
            with pytest.raises(BrokenWorkerError):
                await pool.predict([1.0])
        assert len(stage.heard()) == retries + 1


async def test_start_timeout_limits_a_start(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold()
        return lambda x: x

    with pytest.raises(WorkerStartError, match=r"start_timeout=0\.2 s"):
        await PredictorPool(FunctionPredictor(load), workers=1, start_timeout=0.2).open()
    async with anyio.create_task_group() as group:
        pool = PredictorPool(FunctionPredictor(load), workers=1, start_timeout=None)
        group.start_soon(pool.open)
        await stage.hears()
        stage.let_go(2)
    await pool.aclose()


async def test_hang_timeout_limits_a_batch(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, hang_timeout=0.1, retries=0) as pool:
        with pytest.raises(BrokenWorkerError, match=r"ran longer than hang_timeout=0\.1 s"):
            await pool.predict([1.0])
    async with (
        PredictorPool(held(stage), workers=1, hang_timeout=None) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        assert pool._scheduler._hang_timeout == float("inf")
        stage.let_go(2)


async def test_grace_period_limits_aclose(stage: Stage, nothing_left: Family) -> None:
    for grace_period, answered in ((0, 0), (20, 1), (None, 1)):
        pool = PredictorPool(held(stage), workers=1, grace_period=grace_period, retries=0)
        await pool.open()
        async with anyio.create_task_group() as group:
            group.start_soon(_ask_and_forget, pool)
            await stage.hears()
            group.start_soon(pool.aclose)
            await until(partial(_is_closing, pool))
            if answered:
                stage.let_go()
        assert pool.statistics().answered == answered
        assert nothing_left.gone_within(1)


def _is_closing(pool: PredictorPool[Any]) -> bool:
    return "clos" in repr(pool)


async def _ask_and_forget(pool: PredictorPool[Any]) -> None:
    from predictpool import PoolClosed

    try:
        await pool.predict([1.0])
    except PoolClosed:
        return


@both_pools
async def test_warmup_runs_in_every_worker_before_it_is_ready(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.say(x["a"].tolist())
            return x["a"]

        return predict

    pool = PredictorPool(FunctionPredictor(load), workers=2, warmup={"a": [1.5, 2.5]})
    async with pool:
        await pool.wait_ready()
        assert stage.heard() == [[1.5, 2.5], [1.5, 2.5]]


async def test_launcher_starts_the_workers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    async with PredictorPool(doubling(), workers=1, launcher=LocalLauncher(fork=False)):
        pass
    assert "the launcher says so" in caplog.text


async def test_name_is_in_the_repr() -> None:
    assert repr(PredictorPool(doubling(), name="income")) == "<PredictorPool 'income' not opened>"


@both_pools
async def test_the_defaults_are_those_of_the_documentation() -> None:
    pool = PredictorPool(doubling())
    scheduler = pool._scheduler
    assert scheduler._max_batch_size == 64
    assert scheduler._batch_timeout == 0.0
    assert scheduler.max_waiting == 1024
    assert scheduler._retries == 1
    assert scheduler._hang_timeout == 60.0
    assert (pool._timeout, pool._start_timeout, pool._grace_period) == (30.0, 120.0, 10.0)
    assert pool._watch is None


# --- wrong values ------------------------------------------------------------------

WRONG = [
    ("workers", 0, ValueError, "workers is 0, expected at least 1"),
    ("workers", -1, ValueError, "workers is -1, expected at least 1"),
    ("workers", 1.5, TypeError, "workers is 1.5, expected a whole number or None"),
    ("workers", True, TypeError, "workers is True, expected a whole number or None"),
    ("workers", "2", TypeError, "workers is '2', expected a whole number or None"),
    ("max_batch_size", 0, ValueError, "max_batch_size is 0, expected at least 1"),
    ("max_batch_size", None, TypeError, "max_batch_size is None, expected a whole number"),
    ("batch_timeout", -0.1, ValueError, "batch_timeout is -0.1, expected 0 or more seconds"),
    ("batch_timeout", None, TypeError, "batch_timeout is None, expected seconds"),
    ("batch_timeout", 30.0, ValueError, "batch_timeout is 30.0 and timeout is 30.0: a batch can"),
    ("max_waiting", -1, ValueError, "max_waiting is -1, expected at least 0"),
    ("max_waiting", 1.0, TypeError, "max_waiting is 1.0, expected a whole number or None"),
    ("retries", -1, ValueError, "retries is -1, expected at least 0"),
    ("retries", None, TypeError, "retries is None, expected a whole number"),
    *(
        wrong
        for option in ("timeout", "start_timeout", "hang_timeout", "grace_period", "watch")
        for wrong in (
            (option, -0.1, ValueError, f"{option} is -0.1, expected 0 or more seconds, or None"),
            (option, float("nan"), ValueError, f"{option} is nan, expected 0 or more seconds"),
            (option, "1", TypeError, f"{option} is '1', expected seconds or None"),
            (option, False, TypeError, f"{option} is False, expected seconds or None"),
        )
    ),
    ("predictor", len, TypeError, "which lacks load, predict, close, preload, row_wise"),
    ("watch", 0, ValueError, "watch is 0, expected more than 0 seconds, or None"),
    (
        "predictor",
        FunctionPredictor,
        TypeError,
        "is the class FunctionPredictor, expected one made",
    ),
    ("launcher", "local", TypeError, "launcher is 'local'"),
    ("name", 3, TypeError, "name is 3, expected"),
]


@pytest.mark.parametrize(
    ("option", "value", "kind", "text"), WRONG, ids=[f"{w[0]}={w[1]!r}"[:40] for w in WRONG]
)
@both_pools
def test_a_wrong_value_is_an_error_that_names_option_value_and_expectation(
    option: str, value: Any, kind: type[Exception], text: str
) -> None:
    options = {"predictor": doubling(), option: value}
    with pytest.raises(kind, match=re.escape(text)):
        PredictorPool(**options)


@both_pools
def test_a_signature_that_is_none_is_an_error() -> None:
    class Odd(FunctionPredictor[Any]):
        def __init__(self) -> None:
            super().__init__(lambda: lambda x: x)
            self.signature = {"a": np.float32}  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"signature is .*, expected a Signature, 'infer' or None"):
        PredictorPool(Odd())


def test_a_launcher_that_is_told_maybe_is_an_error() -> None:
    with pytest.raises(TypeError, match="fork is 'maybe', expected True or False"):
        LocalLauncher(fork="maybe")  # type: ignore[arg-type]


@both_pools
def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_batchsize'"):
        PredictorPool(doubling(), max_batchsize=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("load", [None, 3, np.float32(1)])
def test_a_load_that_cannot_be_called_is_an_error(load: Any) -> None:
    with pytest.raises(TypeError, match="expected a function that returns the predicting one"):
        FunctionPredictor(load)
