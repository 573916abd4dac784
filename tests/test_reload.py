"""A reload puts a newer model into every slot; nothing is lost, refused or answered by the old one
afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import FunctionPredictor, PoolClosed, PredictorPool, WorkerStartError
from predictpool import _slot as slot_module
from tests.conftest import Family
from tests.pools import (
    POOL_TEST,
    adds_up,
    both_pools,
    calling,
    held,
    naming_pids,
    pids_of,
    until,
    until_waiting,
)
from tests.stage import Stage

pytestmark = [*POOL_TEST, pytest.mark.faults]


def versioned(folder: Path, **options: Any) -> FunctionPredictor[Any]:
    """A predictor that answers with the number that is in a file when it is loaded."""

    def load() -> Callable[[Any], Any]:
        version = int((folder / "version").read_text())
        return lambda x: np.full(len(x), version)

    return FunctionPredictor(load, row_wise=True, **options)


def write_version(folder: Path, version: object) -> None:
    (folder / "version").write_text(str(version))


async def test_under_load_every_answer_is_the_old_or_the_new_and_never_old_again(
    tmp_path: Path,
) -> None:
    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=2, max_batch_size=8) as pool:
        await pool.wait_ready()
        before = pids_of(pool)
        reloaded = False
        seen: set[int] = set()
        late: set[int] = set()

        async def ask() -> None:
            while True:
                begun_after = reloaded
                answer = await pool.predict([0.0, 0.0])
                assert answer[0] == answer[1]
                (late if begun_after else seen).add(int(answer[0]))
                if begun_after:
                    return

        async with anyio.create_task_group() as group:
            for _ in range(64):
                group.start_soon(ask)
            await until(lambda: pool.statistics().answered > 200)
            write_version(tmp_path, 2)
            await pool.reload()
            reloaded = True
        assert seen == {1, 2}
        assert late == {2}
        now = pool.statistics()
        assert (now.failed, now.refused, now.timed_out, now.cancelled) == (0, 0, 0, 0)
        assert (now.ready, now.restarts) == (2, 0)
        assert adds_up(pool)
        assert not set(before) & set(pids_of(pool))


async def test_another_predictor_takes_the_place_of_the_first_and_stays(stage: Stage) -> None:
    async with PredictorPool(calling(lambda x: x * 2), workers=1) as pool:
        await pool.reload(naming_pids(stage))
        worker = await stage.hears()
        await pool.reload()  # loads the same again
        again = await stage.hears()
        assert pids_of(pool) == [again]
        os.kill(again, signal.SIGKILL)  # and so does a restart
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert await stage.hears() not in (worker, again)


BROKEN = {
    "load": "could not load its predictor: ValueError: half-written",
    "warm-up": "the warm-up failed on features: .* It said: ValueError: half-written",
    "death": "exited by itself with status 3 while it started",
    "hang": r"was not ready within start_timeout=0\.3 s",
}


@pytest.mark.parametrize("fails", BROKEN)
async def test_a_new_model_that_fails_leaves_the_running_one_serving_64_callers(
    tmp_path: Path, nothing_left: Family, fails: str
) -> None:
    def load() -> Callable[[Any], Any]:
        if fails == "load":
            raise ValueError("half-written")
        if fails == "death":
            os._exit(3)
        if fails == "hang":
            time.sleep(1000)

        def predict(_: Any) -> Any:
            raise ValueError("half-written")

        return predict

    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=2, warmup=[0.0]) as pool:
        await pool.wait_ready()
        before, processes = pids_of(pool), len(nothing_left.pids())
        pool._start_timeout = 0.3 if fails == "hang" else 120.0  # of the next model alone
        reloading = True

        async def ask() -> None:
            while reloading:
                assert (await pool.predict([0.0])).tolist() == [1]

        async with anyio.create_task_group() as group:
            for _ in range(64):
                group.start_soon(ask)
            with pytest.raises(WorkerStartError, match=BROKEN[fails]):
                await pool.reload(FunctionPredictor(load))
            asked = pool.statistics().answered
            await until(lambda: pool.statistics().answered > asked + 64)
            reloading = False
        assert pids_of(pool) == before
        now = pool.statistics()
        assert (now.failed, now.refused, now.timed_out, now.cancelled) == (0, 0, 0, 0)
        assert (now.ready, now.restarts) == (2, 0)
        assert adds_up(pool)
        await until(lambda: len(nothing_left.pids()) == processes)
        write_version(tmp_path, 2)  # what was reloaded in vain is forgotten
        await pool.reload()
        assert (await pool.predict([0.0])).tolist() == [2]


async def test_a_reload_that_fails_half_way_says_so_and_can_be_made_again(tmp_path: Path) -> None:
    def load() -> Callable[[Any], Any]:
        (tmp_path / "once").mkdir()
        return lambda x: np.full(len(x), 2)

    write_version(tmp_path, 1)
    async with PredictorPool(versioned(tmp_path), workers=2) as pool:
        await pool.wait_ready()
        first, second = pids_of(pool)
        with pytest.raises(WorkerStartError, match="the worker of slot 1"):
            await pool.reload(FunctionPredictor(load))
        assert pids_of(pool)[0] != first
        assert pids_of(pool)[1] == second
        assert (await pool.predict([0.0])).tolist()[0] in (1, 2)
        write_version(tmp_path, 3)
        await pool.reload(versioned(tmp_path))
        assert (await pool.predict([0.0])).tolist() == [3]


async def test_what_runs_in_the_old_worker_is_answered_by_it_and_what_waits_by_the_new(
    stage: Stage,
) -> None:
    def answering(version: int) -> FunctionPredictor[Any]:
        def predict(x: Any) -> Any:
            stage.hold(version)
            return np.full(len(x), version)

        return calling(predict)

    async with (
        PredictorPool(answering(1), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        answers: list[int] = []
        done: list[bool] = []

        async def ask() -> None:
            answers.extend((await pool.predict([0.0])).tolist())

        async def reload() -> None:
            await pool.reload(answering(2))
            done.append(True)

        group.start_soon(ask)
        assert await stage.hears() == 1
        group.start_soon(ask)
        group.start_soon(reload)
        await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
        assert not done
        stage.let_go()
        assert await stage.hears() == 2
        await until(lambda: done)
        assert answers == [1]
        stage.let_go()
        await until(lambda: len(answers) == 2)
        assert answers == [1, 2]


@both_pools
async def test_the_old_model_lets_go_in_good_order(stage: Stage) -> None:
    class Closing(FunctionPredictor[Any]):
        def close(self) -> None:
            stage.say("closed")

    async with PredictorPool(Closing(lambda: lambda x: x), workers=1) as pool:
        await pool.reload()
        assert stage.heard() == ["closed"]


async def test_a_new_worker_that_dies_while_the_old_one_parts_is_replaced_at_once(
    stage: Stage, nothing_left: Family
) -> None:
    class Slow(FunctionPredictor[Any]):
        def close(self) -> None:
            stage.hold("parting")

    async with (
        PredictorPool(Slow(lambda: lambda x: x), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        (old,) = pids_of(pool)
        group.start_soon(pool.reload, naming_pids(stage))
        new = await stage.hears()
        assert await stage.hears() == "parting"
        os.kill(new, signal.SIGKILL)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert old in nothing_left.pids()  # nobody waited for it
        assert stage.heard() == pids_of(pool)
        assert pool.statistics().restarts == 1
        stage.let_go()


async def test_a_hung_old_worker_is_killed_and_its_request_is_answered_by_the_new(
    stage: Stage,
) -> None:
    def hang(_: Any) -> Any:
        stage.say("hangs")
        time.sleep(1000)

    async with (
        PredictorPool(calling(hang), workers=1, hang_timeout=0.5) as pool,
        anyio.create_task_group() as group,
    ):
        answers: list[float] = []

        async def ask() -> None:
            answers.extend((await pool.predict([1.0])).tolist())

        group.start_soon(ask)
        await stage.hears()
        await pool.reload(calling(lambda x: x * 2))
        await until(lambda: answers)
        assert answers == [2.0]


async def test_an_old_worker_that_dies_meanwhile_is_replaced_all_the_same(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x * 3

    async with (
        PredictorPool(calling(lambda x: x * 2), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        (old,) = pids_of(pool)
        group.start_soon(pool.reload, FunctionPredictor(load))
        await stage.hears()
        os.kill(old, signal.SIGKILL)
        await until(lambda: not pids_of(pool))
        stage.let_go()
        assert (await pool.predict([1.0])).tolist() == [3.0]


async def test_a_new_worker_that_dies_before_its_first_request_is_an_error_and_the_old_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int | None] = []
    real = slot_module.Worker.ended

    def note(worker: slot_module.Worker, end: Any) -> None:
        real(worker, end)
        ended.append(worker.pid)

    monkeypatch.setattr(slot_module.Worker, "ended", note)

    def load() -> Callable[[Any], Any]:
        stage.say(os.getpid())
        return lambda x: x * 3

    def old(x: Any) -> Any:
        stage.hold("runs")
        return x * 2

    async with (
        PredictorPool(calling(old), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        told: list[WorkerStartError] = []

        async def reload() -> None:
            with pytest.raises(WorkerStartError) as caught:
                await pool.reload(FunctionPredictor(load))
            told.append(caught.value)

        group.start_soon(pool.predict, [1.0])
        assert await stage.hears() == "runs"
        group.start_soon(reload)
        new = await stage.hears()
        await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
        os.kill(new, signal.SIGKILL)
        await until(lambda: new in ended)
        stage.let_go(2)
        await until(lambda: told)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().restarts == 0


async def test_a_cancelled_reload_changes_nothing_and_leaves_nothing(
    stage: Stage, nothing_left: Family
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x * 3

    async with PredictorPool(calling(lambda x: x * 2), workers=1) as pool:
        before, processes = pids_of(pool), len(nothing_left.pids())
        async with anyio.create_task_group() as group:
            group.start_soon(pool.reload, FunctionPredictor(load))
            await stage.hears()
            group.cancel_scope.cancel()
        assert pids_of(pool) == before
        assert (await pool.predict([1.0])).tolist() == [2.0]
        await until(lambda: len(nothing_left.pids()) == processes)


async def test_a_reload_cancelled_while_the_old_worker_is_busy_lets_it_go_on(
    stage: Stage,
) -> None:
    def old(x: Any) -> Any:
        stage.hold("runs")
        return x * 2

    async with (
        PredictorPool(calling(old), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        async with anyio.create_task_group() as inner:
            inner.start_soon(pool.reload, calling(lambda x: x * 3))
            await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
            inner.cancel_scope.cancel()
        stage.let_go(2)
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_closing_ends_a_reload_with_pool_closed(stage: Stage, nothing_left: Family) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x

    pool = PredictorPool(calling(lambda x: x), workers=1)
    async with anyio.create_task_group() as group:

        async def reload() -> None:
            with pytest.raises(PoolClosed):
                await pool.reload(FunctionPredictor(load))

        async with pool:
            group.start_soon(reload)
            await stage.hears()
    assert nothing_left.gone_within(1)


async def test_two_reloads_at_once_are_made_one_after_the_other(stage: Stage) -> None:
    def answering(version: int) -> FunctionPredictor[Any]:
        def load() -> Callable[[Any], Any]:
            stage.hold(version)
            return lambda x: x * version

        return FunctionPredictor(load)

    async with PredictorPool(calling(lambda x: x), workers=1) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.reload, answering(2))
            assert await stage.hears() == 2
            group.start_soon(pool.reload, answering(3))
            stage.let_go()
            assert await stage.hears() == 3
            assert (await pool.predict([1.0])).tolist() == [2.0]
            stage.let_go()
        assert (await pool.predict([1.0])).tolist() == [3.0]


@pytest.mark.usefixtures("impatient")
async def test_a_pool_without_slots_is_brought_back_by_a_reload(stage: Stage) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        if (folder / "gone").exists():
            raise FileNotFoundError("the model is gone")
        stage.say(os.getpid())
        return lambda x: x * 2

    async with PredictorPool(FunctionPredictor(load), workers=2, retries=9) as pool:
        workers = [await stage.hears(), await stage.hears()]
        await pool.wait_ready()
        (folder / "gone").mkdir()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerStartError, match=r"2 of 2 slots.*model is gone"):
            await pool.predict([1.0])
        with pytest.raises(WorkerStartError, match="the model is gone"):
            await pool.reload()  # in vain
        with pytest.raises(WorkerStartError, match="2 of 2 slots were given up"):
            await pool.predict([1.0])
        (folder / "gone").rmdir()
        await pool.reload()
        assert pool.statistics().ready == 2
        assert (await pool.predict([1.0])).tolist() == [2.0]
        for worker in pids_of(pool):  # and their slots are filled again as before
            os.kill(worker, signal.SIGKILL)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        await pool.wait_ready()


async def test_a_predictor_with_other_features_is_refused_and_the_running_one_goes_on() -> None:
    def predictor(dtype: Any) -> FunctionPredictor[Any]:
        return FunctionPredictor(lambda: lambda x: x * 2, signature=(dtype, (2,)))

    async with PredictorPool(predictor(np.float32), workers=1) as pool:
        before = pids_of(pool)
        with pytest.raises(ValueError, match="takes other features than this pool's"):
            await pool.reload(predictor(np.int64))
        assert pids_of(pool) == before
        assert (await pool.predict([[1, 2]])).dtype == np.float32
        await pool.reload(predictor(np.float32))
        assert pids_of(pool) != before


# --- from a model that is not row-wise to one that is, and back ---------------------


async def test_requests_are_joined_again_after_a_reload_to_a_row_wise_model(stage: Stage) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        assert await rows_of_calls(pool, stage) == [1, 1, 1, 1]
        await pool.reload(held(stage))
        assert await rows_of_calls(pool, stage) == [1, 3]


async def test_what_waits_is_not_joined_for_a_new_model_that_is_not_row_wise(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage), workers=1) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(pool.predict, [0.0])
        assert await stage.hears() == 1
        for _ in range(3):
            group.start_soon(pool.predict, [0.0])
        await until_waiting(pool, 3)
        group.start_soon(pool.reload, held(stage, row_wise=False))
        await until(lambda: pool._dispatcher._retiring)  # type: ignore[union-attr]
        stage.let_go(4)
        assert [await stage.hears() for _ in range(3)] == [1, 1, 1]


async def test_while_old_and_new_serve_side_by_side_each_gets_what_it_can_take(
    stage: Stage, tmp_path: Path
) -> None:
    old_stage, loading = further_stage(tmp_path / "old"), further_stage(tmp_path / "loading")

    def load() -> Callable[[Any], Any]:
        (tmp_path / str(os.getpid())).touch()
        if len(list(tmp_path.glob("[0-9]*"))) == 2:
            loading.hold()

        def predict(x: Any) -> Any:
            stage.hold(len(x))
            return x

        return predict

    async with (
        PredictorPool(held(old_stage), workers=2) as pool,
        anyio.create_task_group() as group,
    ):
        await pool.wait_ready()
        group.start_soon(pool.reload, FunctionPredictor(load))
        await loading.hears()  # the first new one serves, beside an old one
        group.start_soon(pool.predict, [0.0])
        group.start_soon(pool.predict, [0.0])
        assert [await stage.hears(), await old_stage.hears()] == [1, 1]
        for _ in range(4):
            group.start_soon(pool.predict, [0.0])
        await until_waiting(pool, 4)
        stage.let_go()
        assert await stage.hears() == 1
        old_stage.let_go()
        assert await old_stage.hears() == 3
        for gate in (stage, old_stage, loading):
            gate.let_go()
    for more in (old_stage, loading):
        more.close()


def further_stage(folder: Path) -> Stage:
    folder.mkdir()
    return Stage(folder)


async def test_what_was_learnt_of_a_model_is_kept_over_restarts_and_forgotten_with_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def one_number(x: Any) -> Any:
        stage.hold(len(x))
        return np.zeros(1)

    async with PredictorPool(calling(one_number, row_wise=True), workers=2) as pool:
        await pool.wait_ready()
        assert await rows_of_calls(pool, stage, busy=2) == [1, 1, 1, 1, 1, 3]
        for worker in pids_of(pool):
            os.kill(worker, signal.SIGKILL)
        await until(lambda: pool.statistics().restarts == 2)
        await pool.wait_ready()
        assert await rows_of_calls(pool, stage, busy=2) == [1, 1, 1, 1, 1]
        assert caplog.text.count("do not have the rows on their first axis") == 1
        await pool.reload(held(stage))
        assert await rows_of_calls(pool, stage, busy=2) == [1, 1, 3]


async def rows_of_calls(pool: PredictorPool[Any], stage: Stage, busy: int = 1) -> list[int]:
    """Have three requests wait for busy workers, and return the rows of all calls, sorted."""
    async with anyio.create_task_group() as group:
        for _ in range(busy):
            group.start_soon(pool.predict, [0.0])
        rows = [await stage.hears() for _ in range(busy)]
        for _ in range(3):
            group.start_soon(pool.predict, [0.0])
        await until_waiting(pool, 3)
        stage.let_go()
        while pool.statistics().running or pool.statistics().waiting:
            heard = stage.heard()
            rows += heard
            stage.let_go(busy - 1 + len(heard))
            busy = 1
            await anyio.sleep(0.001)
    return sorted(rows + stage.heard())


@both_pools
async def test_what_cannot_be_reloaded_is_an_error_at_once() -> None:
    pool = PredictorPool(calling(lambda x: x), workers=1)
    with pytest.raises(PoolClosed):
        await pool.reload()
    async with pool:
        before = pids_of(pool)
        with pytest.raises(TypeError, match="which lacks load, predict"):
            await pool.reload("model")  # type: ignore[arg-type]
        assert pids_of(pool) == before
