"""A pool becomes larger and smaller while it serves; nothing is lost or refused for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from predictpool import FunctionPredictor, PoolClosed, PredictorPool, WorkerStartError, _devices
from tests.conftest import Family
from tests.misbehaviour import Parting, hang_in_c
from tests.pools import (
    POOL_TEST,
    adds_up,
    both_pools,
    calling,
    doubling,
    held,
    naming_pids,
    pids_of,
    until,
    until_waiting,
)
from tests.stage import Stage

pytestmark = [*POOL_TEST, pytest.mark.faults]


def holding_loads(stage: Stage) -> FunctionPredictor[Any]:
    """A predictor whose workers hold while they load, but for the first."""
    first = stage.door.folder / "first"

    def load() -> Callable[[Any], Any]:
        if first.exists():
            stage.hold(os.getpid())
        first.touch()
        return lambda x: x * 2

    return FunctionPredictor(load)


def sizes(pool: PredictorPool[Any]) -> tuple[int, int]:
    """How many workers there are meant to be, and how many there are."""
    now = pool.statistics()
    return now.workers, now.ready


# --- more --------------------------------------------------------------------------


async def test_a_larger_pool_has_more_workers_and_keeps_those_it_has() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        before = pids_of(pool)
        await pool.resize(3)
        assert sizes(pool) == (3, 3)
        assert pids_of(pool)[:1] == before
        assert [worker.slot for worker in pool.workers()] == [0, 1, 2]
        await pool.wait_ready(3)
        with pytest.raises(ValueError, match="workers is 4, but the pool has 3"):
            await pool.wait_ready(4)


async def test_new_workers_take_the_next_cores_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = (*_devices.available_cores(), 4096)  # one that nobody can be pinned to
    monkeypatch.setattr("predictpool._local_launcher.available_cores", lambda: cores)
    monkeypatch.setattr("predictpool._local_launcher.worth", len)
    plan = [(core,) for core in cores[:-1]]
    async with PredictorPool(doubling(), workers=1) as pool:
        await pool.resize(len(plan))
        assert [worker.device.cores for worker in pool.workers()] == plan
        with pytest.raises(WorkerStartError):  # the device really is the next one
            await pool.resize(len(plan) + 1)
        assert sizes(pool) == (len(plan), len(plan))


async def test_new_workers_are_given_requests_that_wait_and_are_kept_filled(
    stage: Stage, nothing_left: Family
) -> None:
    async with (
        PredictorPool(held(stage, row_wise=False), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        group.start_soon(pool.predict, [1.0])
        await until_waiting(pool, 1)
        await pool.resize(2)
        await stage.hears()
        assert pool.statistics().running == 2
        stage.let_go(2)
        await until(lambda: not pool.statistics().running)
        second = pids_of(pool)[1]
        os.kill(second, signal.SIGKILL)
        assert nothing_left.gone_within(5, {second})
        await until(lambda: pool.statistics().restarts == 1)
        await pool.wait_ready()
        assert sizes(pool) == (2, 2)


async def test_new_workers_load_what_was_reloaded_last(stage: Stage) -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        await pool.reload(naming_pids(stage))
        await pool.resize(3)
        assert sorted(stage.heard()) == sorted(pids_of(pool))


async def test_a_new_worker_that_fails_is_an_error_and_those_that_are_ready_stay(
    tmp_path: Path, nothing_left: Family
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).touch()

    def load() -> Callable[[Any], Any]:
        for place in ("a", "b"):
            try:
                (tmp_path / place).unlink()
            except FileNotFoundError:
                continue
            return lambda x: x * 2
        raise ValueError("no place left")

    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        with pytest.raises(WorkerStartError, match="no place left"):
            await pool.resize(3)
        assert sizes(pool) == (2, 2)
        await until(lambda: len(nothing_left.pids()) == 3)  # the template is the third
        (tmp_path / "a").touch()
        await pool.resize(3)
        assert sizes(pool) == (3, 3)
        assert [worker.slot for worker in pool.workers()] == [0, 1, 2]


async def test_a_cancelled_resize_leaves_the_pool_as_large_as_it_is(
    stage: Stage, nothing_left: Family
) -> None:
    async with PredictorPool(holding_loads(stage), workers=1) as pool:
        processes = len(nothing_left.pids())
        async with anyio.create_task_group() as group:
            group.start_soon(pool.resize, 3)
            await stage.hears()
            await stage.hears()
            assert sizes(pool) == (1, 1)
            group.cancel_scope.cancel()
        assert sizes(pool) == (1, 1)
        await until(lambda: len(nothing_left.pids()) == processes)
        assert (await pool.predict([1.0])).tolist() == [2.0]


# --- fewer -------------------------------------------------------------------------


async def test_the_highest_slots_finish_what_they_run_and_get_nothing_more(
    stage: Stage, nothing_left: Family
) -> None:
    def naming_itself() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(os.getpid())
            return x * 2

        return predict

    async with (
        PredictorPool(FunctionPredictor(naming_itself), workers=3) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        first, *others = pids_of(pool)
        for _ in range(5):
            group.start_soon(pool.predict, [1.0])
        assert {await stage.hears() for _ in range(3)} == {first, *others}
        group.start_soon(pool.resize, 1)
        await until(lambda: len(pool._dispatcher._retiring) == 2)  # type: ignore[union-attr]
        assert pool.statistics().running == 3
        # Whoever is let go first takes what it likes of this: only one may come for more.
        stage.let_go(5)
        await until(lambda: not set(others) & set(nothing_left.pids()))
        assert sizes(pool) == (1, 1)
        assert pids_of(pool) == [first]
        assert [await stage.hears() for _ in range(2)] == [first, first]
        await until(lambda: pool.statistics().answered == 5)
        assert pool.statistics().restarts == 0
        assert adds_up(pool)


@both_pools
async def test_workers_that_are_too_many_let_go_of_their_models(stage: Stage) -> None:
    class Closing(FunctionPredictor[Any]):
        def close(self) -> None:
            stage.say("closed")

    async with PredictorPool(Closing(lambda: lambda x: x), workers=3) as pool:
        await pool.wait_ready()
        await pool.resize(1)
        assert stage.heard() == ["closed", "closed"]


async def test_a_worker_that_is_too_many_and_does_not_end_is_killed(
    stage: Stage, nothing_left: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictpool._supervisor._PARTING_SECONDS", 0.1)
    async with (
        PredictorPool(Parting(stage, hang_in_c), workers=2, grace_period=0.1) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        second = pids_of(pool)[1]
        group.start_soon(pool.resize, 1)
        assert await stage.hears() == second
        stage.let_go()
        await until(lambda: second not in nothing_left.pids())
        stage.let_go()  # the first, when the pool closes


async def test_what_a_worker_ran_that_died_while_it_was_awaited_runs_again(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage, row_wise=False), workers=2) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        group.start_soon(pool.predict, [1.0])
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        await stage.hears()
        group.start_soon(pool.resize, 1)
        await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
        os.kill(pids_of(pool)[1], signal.SIGKILL)
        await until(lambda: sizes(pool) == (1, 1))
        await until_waiting(pool, 1)
        stage.let_go()
        await stage.hears()
        stage.let_go()
        await until(lambda: pool.statistics().answered == 2)
        assert pool.statistics().restarts == 0


async def test_a_worker_that_is_too_many_and_hangs_is_killed_as_any_other(stage: Stage) -> None:
    once = stage.door.folder / "once"

    def hang_once(x: Any) -> Any:
        if not once.exists():
            once.touch()
            stage.say("hangs")
            time.sleep(1000)
        return x * 2

    async with (
        PredictorPool(calling(hang_once), workers=2, hang_timeout=0.5) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        await pool.resize(1)
        assert sizes(pool) == (1, 1)
        await until(lambda: pool.statistics().answered == 1)


async def test_a_slot_that_is_being_filled_is_done_away_with_all_the_same(
    stage: Stage, nothing_left: Family
) -> None:
    async with PredictorPool(holding_loads(stage), workers=3) as pool:
        loading = {await stage.hears(), await stage.hears()}
        await pool.resize(1)
        assert sizes(pool) == (1, 1)
        assert nothing_left.gone_within(5, loading)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert not stage.heard()


@pytest.mark.usefixtures("impatient")
async def test_slots_that_were_given_up_go_first_and_are_free_for_others(stage: Stage) -> None:
    gone = stage.door.folder / "gone"

    def load() -> Callable[[Any], Any]:
        if gone.exists():
            raise FileNotFoundError("the model is gone")
        return lambda x: x * 2

    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:
        await pool.wait_ready()
        first, second = pids_of(pool)
        gone.touch()
        os.kill(first, signal.SIGKILL)
        await until(lambda: pool._supervisor.filling == 1)  # type: ignore[union-attr]
        await pool.resize(1)
        assert pids_of(pool) == [second]
        assert (await pool.predict([1.0])).tolist() == [2.0]
        gone.unlink()
        await pool.resize(2)
        assert [worker.slot for worker in pool.workers()] == [0, 1]


async def test_a_resize_cancelled_while_a_worker_is_busy_lets_it_go_on(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage, row_wise=False), workers=2) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        before = pids_of(pool)
        group.start_soon(pool.predict, [1.0])
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        await stage.hears()
        async with anyio.create_task_group() as inner:
            inner.start_soon(pool.resize, 1)
            await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
            inner.cancel_scope.cancel()
        assert pids_of(pool) == before
        group.start_soon(pool.predict, [1.0])
        group.start_soon(pool.predict, [1.0])
        stage.let_go(2)
        await stage.hears()
        await stage.hears()  # both have got another one
        stage.let_go(2)
        await until(lambda: pool.statistics().answered == 4)
        os.kill(before[1], signal.SIGKILL)  # and it is kept filled as before
        await until(lambda: pool.statistics().restarts == 1)
        await pool.wait_ready()
        assert sizes(pool) == (2, 2)


# --- under load, and with what else goes on ----------------------------------------


@both_pools
async def test_64_callers_notice_nothing_of_a_pool_that_grows_shrinks_and_reloads() -> None:
    async with PredictorPool(doubling(), workers=1, max_batch_size=8) as pool:
        resizing, answered = True, [0]

        async def ask(number: float) -> None:
            while resizing:
                assert (await pool.predict([number, -number])).tolist() == [2 * number, -2 * number]

        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(ask, number)
            for workers in (3, 1, 2, 4, 1):
                await pool.resize(workers)
                assert sizes(pool) == (workers, workers)
                answered.append(pool.statistics().answered)
                await until(lambda: pool.statistics().answered > answered[-1] + 64)
            async with anyio.create_task_group() as changes:
                for workers in (3, 1, 2):
                    changes.start_soon(pool.resize, workers)
                    changes.start_soon(pool.reload)
            assert sizes(pool) in ((3, 3), (2, 2), (1, 1))  # trio begins them in any order
            resizing = False
        now = pool.statistics()
        assert (now.failed, now.refused, now.timed_out, now.cancelled) == (0, 0, 0, 0)
        assert now.restarts == 0
        assert adds_up(pool)


async def test_changes_at_once_are_made_one_after_the_other(stage: Stage) -> None:
    async with PredictorPool(holding_loads(stage), workers=1) as pool:
        changing = pool._supervisor._changing  # type: ignore[union-attr]
        async with anyio.create_task_group() as group:
            group.start_soon(pool.resize, 2)
            await stage.hears()
            group.start_soon(pool.resize, 1)
            await until(lambda: changing.statistics().tasks_waiting == 1)
            group.start_soon(pool.reload)
            await until(lambda: changing.statistics().tasks_waiting == 2)
            stage.let_go()
            await stage.hears()  # the reload, last
            assert sizes(pool) == (1, 1)
            stage.let_go()
        assert not stage.heard()
        assert sizes(pool) == (1, 1)


@pytest.mark.parametrize("workers", [3, 1])
async def test_closing_ends_a_resize_with_pool_closed(
    stage: Stage, nothing_left: Family, workers: int
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loads")

        def predict(x: Any) -> Any:
            stage.hold("runs")
            return x

        return predict

    pool = PredictorPool(FunctionPredictor(load), workers=2, grace_period=0)
    stage.let_go(2)
    async with anyio.create_task_group() as group:

        async def resize() -> None:
            with pytest.raises(PoolClosed):
                await pool.resize(workers)

        async def ask() -> None:
            with pytest.raises(PoolClosed):
                await pool.predict([1.0])

        async with pool:
            await pool.wait_ready()
            group.start_soon(ask)
            group.start_soon(ask)
            for _ in range(4):
                await stage.hears()
            group.start_soon(resize)
            if workers == 3:
                await stage.hears()
            else:
                await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
            group.start_soon(resize)  # waits for the other
    assert nothing_left.gone_within(1)


async def test_who_waits_for_workers_is_told_of_the_new_number(stage: Stage) -> None:
    async with PredictorPool(holding_loads(stage), workers=3) as pool:
        await stage.hears()
        await stage.hears()
        told: list[str] = []

        async def wait_for_three() -> None:
            with pytest.raises(ValueError, match=r"workers is 3, but the pool has \d: "):
                await pool.wait_ready(3)
            told.append("three")

        async def wait_for_all() -> None:
            await pool.wait_ready()
            told.append("all")

        async with anyio.create_task_group() as group:
            group.start_soon(wait_for_three)
            group.start_soon(wait_for_all)
            await pool.resize(1)
        assert sorted(told) == ["all", "three"]


@both_pools
async def test_a_wrong_size_is_an_error_at_once() -> None:
    pool = PredictorPool(doubling(), workers=1)
    with pytest.raises(PoolClosed):
        await pool.resize(2)
    async with pool:
        with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
            await pool.resize(0)
        with pytest.raises(TypeError, match="workers is None, expected a whole number"):
            await pool.resize(None)  # type: ignore[arg-type]
        await pool.resize(1)
        assert sizes(pool) == (1, 1)
    with pytest.raises(PoolClosed):
        await pool.resize(2)
