"""What a `RayLauncher` does beside what local workers do; see `tests.on_ray`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import (
    BrokenWorkerError,
    FunctionPredictor,
    PoolClosed,
    PredictorPool,
    RayLauncher,
    WorkerStartError,
    _ray_launcher,
)
from tests.misbehaviour import Parting, raise_an_error
from tests.on_ray import actors, gone_within
from tests.pools import ONE_LOOP, calling, doubling, held, until
from tests.stage import Stage

pytestmark = [pytest.mark.anyio, ONE_LOOP, pytest.mark.usefixtures("mistakes")]

# Not what the fixture puts in its place: these say how their launchers are made.
Pool: Any = PredictorPool


def on(launcher: RayLauncher, predictor: Any, **options: Any) -> PredictorPool[Any]:
    """Return a pool of a launcher's workers."""
    options.setdefault("workers", 1)
    pool: PredictorPool[Any] = Pool(predictor, launcher=launcher, **options)
    return pool


def cpus(number: float = 0, **options: Any) -> RayLauncher:
    return RayLauncher(num_cpus=number, **options)


# --- where workers are -------------------------------------------------------------


def read_environment(_: Any) -> Any:
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "CUDA_VISIBLE_DEVICES", "COLOUR")
    main = threading.current_thread() is threading.main_thread()
    return {**{name: os.environ.get(name) for name in names}, "main": main}


async def test_a_worker_has_what_its_launcher_asked_ray_for() -> None:
    launcher = cpus(2, runtime_env={"env_vars": {"COLOUR": "green"}})
    async with on(launcher, calling(read_environment, row_wise=False)) as pool:
        assert await pool.predict([1.0]) == {
            "OMP_NUM_THREADS": "2",
            "TF_NUM_INTRAOP_THREADS": "2",
            "CUDA_VISIBLE_DEVICES": "",
            "COLOUR": "green",
            "main": False,
        }
        (worker,) = pool.workers()
        assert [worker.pid] == actors()
        assert str(worker.device) == "cpu (2 threads)"


@pytest.mark.parametrize(("number", "workers"), [(1, 4), (0.5, 8), (3, 1), (9, 1)])
async def test_without_workers_there_are_as_many_as_the_cluster_has_room_for(
    number: float, workers: int
) -> None:
    pool = Pool(doubling(), launcher=cpus(number))
    await until(lambda: len(pool.plan()) == workers)  # others give back theirs in time


async def test_what_ray_has_no_place_for_is_an_error_that_says_what_there_is() -> None:
    launcher = cpus(1, num_gpus=1, resources={"pony": 2})
    with pytest.raises(WorkerStartError) as caught:
        await on(launcher, doubling(), start_timeout=4.0).open()
    said = str(caught.value)
    assert "was not ready within start_timeout=4 s: it waits for Ray to find a place for" in said
    assert "1 CPU and 1 GPU and 2 pony; the cluster has 4 CPU (" in said


async def test_a_runtime_env_that_cannot_be_made_is_a_start_error() -> None:
    launcher = cpus(runtime_env={"working_dir": "/nowhere/at/all"})
    with pytest.raises(WorkerStartError, match=r"(?s)could not be started: .*/nowhere/at/all"):
        await on(launcher, doubling()).open()


async def test_a_load_that_takes_too_long_is_ended(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold()
        return lambda x: x

    with pytest.raises(WorkerStartError, match="not ready within start_timeout=3 s"):
        await on(cpus(), FunctionPredictor(load), start_timeout=3.0).open()


# --- how they end ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("die", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "Ray says: The actor"),
        (lambda: sys.exit(3), "exited by itself with status 3"),
    ],
    ids=["killed", "exit"],
)
async def test_the_death_of_an_actor_is_told_in_words(die: Any, said: str) -> None:
    async with on(cpus(), calling(lambda _: die()), retries=0) as pool:
        with pytest.raises(BrokenWorkerError) as caught:
            await pool.predict([1.0])
    assert said in str(caught.value)
    assert (caught.value.cause == "") == (caught.value.exitcode == 3)


async def test_the_death_of_an_idle_actor_is_told_though_nobody_asks_for_it() -> None:
    async with on(cpus(), doubling(), retries=0) as pool:
        (worker,) = pool.workers()
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: pool.statistics().restarts)
        await pool.wait_ready()
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_a_cancelled_error_of_the_model_cancels_no_caller() -> None:
    def predict(_: Any) -> Any:
        raise asyncio.CancelledError

    async with on(cpus(), calling(predict), retries=0) as pool:
        with pytest.raises(BrokenWorkerError, match="status 1") as caught:
            await pool.predict([1.0])
        assert "CancelledError" in caught.value.crash_report


async def test_a_predictor_that_fails_to_close_ends_all_the_same(stage: Stage) -> None:
    async with on(cpus(), Parting(stage, raise_an_error)) as pool:
        stage.let_go()
        assert (await pool.predict([1.0])).tolist() == [2.0]
    assert gone_within(5)


async def test_after_the_grace_period_workers_are_killed(stage: Stage) -> None:
    pool = on(cpus(), held(stage), grace_period=0.05, retries=0)
    await pool.open()

    async def ask() -> None:
        with pytest.raises(PoolClosed):
            await pool.predict([1.0])

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await stage.hears()
        await pool.aclose()
    assert gone_within(5)


async def test_arrays_of_any_size_come_back_and_are_their_callers() -> None:
    def same(rows: Any) -> Any:
        assert not rows.flags.writeable
        return rows

    async with on(cpus(), calling(same, row_wise=True)) as pool:
        for size in (1_000, 100_000, 3_000_000):
            rows = np.random.default_rng(size).normal(size=(2, size // 16))
            answers = [await pool.predict(rows) for _ in range(2)]
            for answer in answers:
                assert np.array_equal(answer, rows)
                answer[0, 0] = -1.0


async def test_an_actor_that_is_being_placed_ends_with_its_pool(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold()
        return lambda x: x

    launcher = cpus()
    pool = on(launcher, doubling())
    await pool.open()

    async def reload() -> None:
        with pytest.raises(PoolClosed):
            await pool.reload(FunctionPredictor(load))

    async with anyio.create_task_group() as group:
        group.start_soon(reload)
        await until(lambda: launcher._starting)
        await pool.aclose()
    assert gone_within(5)


async def test_a_large_batch_needs_none_of_the_applications_threads() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    rows = np.zeros((2, 100_000))
    try:
        async with on(cpus(), doubling(), timeout=20.0) as pool:
            ask = partial(anyio.from_thread.run, pool.predict, rows)
            answer: Any = await anyio.to_thread.run_sync(ask)
            assert np.array_equal(answer, rows)
    finally:
        limiter.total_tokens = before


# --- the connection ----------------------------------------------------------------


async def test_an_address_of_another_cluster_is_refused() -> None:
    launcher = RayLauncher(address="127.0.0.1:1", num_cpus=0)
    with pytest.raises(WorkerStartError, match="this program is connected to the Ray cluster at"):
        await on(launcher, doubling()).open()


async def test_ray_keeps_one_class_of_a_launcher_however_many_workers_start() -> None:
    launcher = cpus()
    async with on(launcher, doubling()) as pool:
        first = launcher._actor_class
        await pool.reload()
        assert launcher._actor_class is first


async def test_ray_that_the_program_has_begun_is_left_alone() -> None:
    import ray

    launcher = cpus()
    async with on(launcher, doubling()):
        assert launcher in _ray_launcher._users
    assert launcher not in _ray_launcher._users
    assert ray.is_initialized()
    assert _ray_launcher._begun is None


async def test_what_ray_does_not_like_at_the_start_is_an_error_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with another")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(WorkerStartError, match="could not be started: Ray cannot be used: Version"):
        await on(cpus(), doubling()).open()


async def test_a_pool_that_does_not_wait_for_a_connection_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connecting, connected, left = threading.Event(), threading.Event(), threading.Event()
    join, leave = _ray_launcher._join, _ray_launcher._leave

    def slowly(launcher: RayLauncher, address: str | None) -> None:
        connecting.set()
        assert connected.wait(15)
        join(launcher, address)

    def leave_and_say_so(launcher: RayLauncher | None) -> None:
        leave(launcher)
        left.set()

    monkeypatch.setattr(_ray_launcher, "_join", slowly)
    monkeypatch.setattr(_ray_launcher, "_leave", leave_and_say_so)
    launcher = cpus()
    pool = on(launcher, doubling(), start_timeout=0.05)
    with pytest.raises(WorkerStartError, match="it waits for a connection to Ray"):
        await pool.open()
    await until(connecting.is_set)
    connected.set()
    await until(left.is_set)
    assert launcher not in _ray_launcher._users


async def test_devices_are_not_for_actors() -> None:
    with pytest.raises(ValueError, match=r"give the launcher num_cpus=, num_gpus= or resources="):
        await on(cpus(), doubling(), devices="cpu:0").open()


async def test_a_launcher_belongs_to_one_pool() -> None:
    launcher = cpus()
    async with on(launcher, doubling()):
        with pytest.raises(RuntimeError, match="belongs to another pool"):
            await on(launcher, doubling()).open()


async def test_a_worker_that_is_asked_for_when_the_pool_is_closed_is_not_started() -> None:
    async with on(cpus(), doubling()) as pool:
        pass
    nobody: Any = None
    with pytest.raises(ChildProcessError, match="the launcher is closed"):
        await pool._launcher.start(nobody, nobody)
