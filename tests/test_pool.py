"""What a pool promises to who opens it, calls it and closes it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest
import trio

from predictpool import (
    FunctionPredictor,
    InvalidFeatures,
    LocalLauncher,
    PoolClosed,
    PredictorPool,
)
from tests.conftest import Family, descriptors
from tests.pools import POOL_TEST, adds_up, both_pools, calling, doubling, held, naming_pids, until
from tests.stage import Stage

pytestmark = POOL_TEST


# --- construction ------------------------------------------------------------------


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_constructing_does_nothing_and_needs_no_event_loop(
    run: Callable[..., Any], nothing_left: Family
) -> None:
    before = descriptors()
    pool = PredictorPool(doubling(), workers=1, launcher=LocalLauncher())
    assert descriptors() == before
    assert not nothing_left.pids()
    assert repr(pool) == "<PredictorPool not opened>"

    async def main() -> None:
        async with pool:
            assert (await pool.predict([1.0, 2.0])).tolist() == [2.0, 4.0]

    run(main if run is trio.run else main())


@both_pools
def test_a_pool_that_was_never_opened_is_collected_in_silence() -> None:
    pool = PredictorPool(doubling())
    del pool
    gc.collect()  # a ResourceWarning here would be an error


# --- opening and closing -----------------------------------------------------------


@both_pools
async def test_a_pool_answers_between_open_and_aclose() -> None:
    pool = PredictorPool(doubling(), workers=1)
    await pool.open()
    assert (await pool.predict([1.0, 2.0])).tolist() == [2.0, 4.0]
    await pool.aclose()


async def test_repr_and_statistics_tell_the_phase_and_the_work(stage: Stage) -> None:
    pool = PredictorPool(held(stage, row_wise=False), workers=1, name="income")
    assert repr(pool) == "<PredictorPool 'income' not opened>"
    async with pool, anyio.create_task_group() as group:
        assert (
            repr(pool) == "<PredictorPool 'income' open, 1/1 workers ready, 0 waiting, 0 running>"
        )
        group.start_soon(pool.predict, [1.0])
        group.start_soon(pool.predict, [1.0, 2.0])
        await stage.hears()
        await until(lambda: pool.statistics().waiting)
        assert (
            repr(pool) == "<PredictorPool 'income' open, 1/1 workers ready, 1 waiting, 1 running>"
        )
        assert adds_up(pool)
        group.start_soon(pool.aclose)
        await until(lambda: "closing" in repr(pool))
        stage.let_go(2)
    assert repr(pool) == "<PredictorPool 'income' closed>"
    now = pool.statistics()
    assert (now.submitted, now.answered, now.rows, now.batches) == (2, 2, 3, 2)
    assert now.running_seconds > 0
    assert now.waiting_seconds > 0
    assert adds_up(pool)


@both_pools
async def test_a_pool_that_is_not_open_says_whether_it_was_not_opened_yet_or_is_closed() -> None:
    pool = PredictorPool(doubling(), workers=1)
    with pytest.raises(PoolClosed, match="not opened: use `async with"):
        await pool.predict([1.0])
    with pytest.raises(PoolClosed, match="not opened"):
        await pool.wait_ready()
    with pytest.raises(PoolClosed, match="not opened"):
        await anext(pool.map([[1.0]]))
    async with pool:
        pass
    with pytest.raises(PoolClosed, match="closed, and a pool does not reopen"):
        await pool.predict_one(1.0)
    with pytest.raises(RuntimeError, match="is closed; a pool is opened once"):
        await pool.open()
    await pool.aclose()


@both_pools
async def test_opening_twice_is_an_error_and_harms_nobody() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        with pytest.raises(RuntimeError, match="is open; a pool is opened once"):
            await pool.open()
        assert (await pool.predict([1.0])).tolist() == [2.0]


@both_pools
async def test_closing_before_opening_is_allowed_and_final() -> None:
    pool = PredictorPool(doubling())
    await pool.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await pool.open()


async def test_a_launcher_belongs_to_one_pool() -> None:
    launcher = LocalLauncher()
    async with PredictorPool(doubling(), workers=1, launcher=launcher):
        with pytest.raises(RuntimeError, match="one for each pool"):
            await PredictorPool(doubling(), workers=1, launcher=launcher).open()


async def test_closing_lets_requests_finish_and_refuses_new_ones(stage: Stage) -> None:
    pool = PredictorPool(held(stage, row_wise=False), workers=1)
    await pool.open()
    answers: list[Any] = []

    async def ask(value: float) -> None:
        answers.append((await pool.predict([value])).tolist())

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 1.0)
        group.start_soon(ask, 2.0)
        await stage.hears()
        group.start_soon(pool.aclose)  # from another task than the one that opened
        await until(lambda: "closing" in repr(pool))
        with pytest.raises(PoolClosed, match="closing"):
            await pool.predict([3.0])
        stage.let_go(2)
    assert sorted(answers) == [[2.0], [4.0]]
    assert adds_up(pool)


@both_pools
async def test_closing_lets_the_predictor_close(stage: Stage) -> None:
    class Closing(FunctionPredictor[Any]):
        def close(self) -> None:
            stage.say("closed")

    async with PredictorPool(Closing(lambda: lambda x: x), workers=2) as pool:
        await pool.wait_ready()
    assert stage.heard() == ["closed", "closed"]


async def test_all_who_close_at_once_wait_for_the_same_end(
    stage: Stage, nothing_left: Family
) -> None:
    pool = PredictorPool(held(stage), workers=1)
    await pool.open()
    ended = 0

    async def close() -> None:
        nonlocal ended
        await pool.aclose()
        assert nothing_left.gone_within(1)
        ended += 1

    async with anyio.create_task_group() as group:
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        for _ in range(3):
            group.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert ended == 0
        stage.let_go()
    assert ended == 3
    await pool.aclose()


async def test_after_the_grace_period_waiters_get_pool_closed_and_workers_are_killed(
    stage: Stage, nothing_left: Family
) -> None:
    pool = PredictorPool(held(stage, row_wise=False), workers=1, grace_period=0.05, retries=0)
    await pool.open()

    async def ask() -> None:
        with pytest.raises(PoolClosed, match="closed before this request was answered"):
            await pool.predict([1.0])

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await stage.hears()
        await pool.aclose()
    assert nothing_left.gone_within(1)
    assert adds_up(pool)


@pytest.mark.parametrize("when", ["draining", "stopping"])
async def test_a_cancelled_aclose_kills_and_tells_every_caller(
    stage: Stage, nothing_left: Family, when: str
) -> None:
    pool = PredictorPool(held(stage), workers=1, retries=0)
    await pool.open()
    asked = anyio.CancelScope()

    async def ask() -> None:
        with asked, pytest.raises(PoolClosed):
            await pool.predict([1.0])

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await stage.hears()
        if when == "stopping":
            asked.cancel()  # nothing to drain, but the worker is held all the same
            await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            group.start_soon(_cancel_when_blocked, scope)
            await pool.aclose()
        assert scope.cancelled_caught
    assert nothing_left.gone_within(1)
    assert repr(pool) == "<PredictorPool closed>"
    assert adds_up(pool)


async def _cancel_when_blocked(scope: anyio.CancelScope) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("how", ["scope", "native"])
async def test_a_cancelled_open_leaves_nothing(
    stage: Stage, nothing_left: Family, how: str, anyio_backend_name: str
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x

    pool = PredictorPool(FunctionPredictor(load), workers=2)
    if how == "native":
        if anyio_backend_name == "trio":
            pytest.skip("trio cancels by scopes only")
        opening = asyncio.create_task(pool.open())
        await stage.hears()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.open)
            await stage.hears()
            group.cancel_scope.cancel()
    assert nothing_left.gone_within(1)
    assert repr(pool) == "<PredictorPool closed>"


async def test_an_open_cancelled_while_the_template_starts_leaves_nothing(
    nothing_left: Family,
) -> None:
    launcher = LocalLauncher()
    pool = PredictorPool(doubling(), workers=2, launcher=launcher)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        await until(lambda: launcher._templates)
        group.cancel_scope.cancel()
    assert nothing_left.gone_within(1)
    await until(lambda: not launcher._lock.statistics().locked)  # the start in it has ended, too


async def test_an_open_cancelled_at_once_leaves_nothing(nothing_left: Family) -> None:
    pool = PredictorPool(doubling(), workers=2)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.open()
    assert nothing_left.gone_within(1)
    assert repr(pool) == "<PredictorPool closed>"


async def test_closing_a_pool_that_is_opening_ends_it_and_open_says_so(
    stage: Stage, nothing_left: Family
) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x

    pool = PredictorPool(FunctionPredictor(load), workers=1)

    async def open_it() -> None:
        with pytest.raises(PoolClosed):
            await pool.open()

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        await stage.hears()
        with pytest.raises(RuntimeError, match="opening; a pool is opened once"):
            await pool.open()
        with pytest.raises(PoolClosed, match="opening"):
            await pool.predict([1.0])
        await pool.aclose()
    assert nothing_left.gone_within(1)
    assert repr(pool) == "<PredictorPool closed>"


async def test_closing_while_further_workers_start_does_not_wait_for_them(
    stage: Stage, nothing_left: Family
) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.hold("loading")
        return lambda x: x

    async with PredictorPool(FunctionPredictor(load), workers=2):
        await stage.hears()
    assert nothing_left.gone_within(1)


@both_pools
async def test_a_pool_is_opened_in_one_task_and_closed_in_another() -> None:
    async def fixture(run: AsyncIterator[Any]) -> Any:
        return await anext(run, None)

    async def pools() -> AsyncIterator[Any]:
        async with PredictorPool(doubling(), workers=1) as pool:
            yield pool

    run = pools()
    if asyncio_is_running():  # as pytest-asyncio does it
        pool = await asyncio.create_task(fixture(run))
        assert (await asyncio.create_task(pool.predict([1.0]))).tolist() == [2.0]
        await asyncio.create_task(fixture(run))
    else:
        async with trio.open_nursery() as nursery:
            found: list[Any] = []

            async def step() -> None:
                found.append(await fixture(run))

            nursery.start_soon(step)
            await until(lambda: found)
            assert (await found[0].predict([1.0])).tolist() == [2.0]
            nursery.start_soon(step)


def asyncio_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- whose loop --------------------------------------------------------------------


@both_pools
async def test_use_from_another_thread_or_loop_is_an_error_at_once() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:

        async def call(name: str) -> None:
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "predict": lambda: pool.predict([1.0]),
                "map": lambda: anext(pool.map([[1.0]])),
                "wait_ready": pool.wait_ready,
                "aclose": pool.aclose,
            }
            with pytest.raises(RuntimeError, match="another loop or thread"):
                await calls[name]()

        def without_loop() -> None:
            with pytest.raises(RuntimeError, match="another loop or thread"):
                pool.predict([1.0]).send(None)

        for name in ("predict", "map", "wait_ready", "aclose"):
            await in_thread(partial(asyncio.run, call(name)))
            await in_thread(partial(trio.run, call, name))
        await in_thread(without_loop)
        assert (await pool.predict([1.0])).tolist() == [2.0]


async def in_thread(function: Callable[[], object]) -> None:
    """Run in a new thread that is joined: the loops' own pools keep theirs."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await until(lambda: not thread.is_alive())
    thread.join()
    for error in errors:
        raise error


# --- predict -----------------------------------------------------------------------


@both_pools
async def test_predict_takes_mappings_and_arrays_and_keeps_dtypes_and_shapes() -> None:
    async with PredictorPool(calling(lambda x: x), workers=1) as pool:
        array = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
        answer = await pool.predict(array)
        assert answer.dtype == np.int16
        assert answer.tolist() == array.tolist()
        answer = await pool.predict({"a": [1.5, 2.5], "b": np.array(["x", "yz"])})
        assert {name: values.tolist() for name, values in answer.items()} == {
            "a": [1.5, 2.5],
            "b": ["x", "yz"],
        }
        answer = await pool.predict(np.empty((0, 3)))
        assert answer.shape == (0, 3)
        large = np.random.default_rng(1).random((300_000,))  # larger than any socket buffer
        assert np.array_equal(await pool.predict(large), large)


@both_pools
async def test_predict_one_takes_and_returns_a_row_without_its_axis() -> None:
    async with PredictorPool(
        calling(lambda x: {"sum": x["a"].sum(axis=1), "b": x["b"]}), workers=1
    ) as pool:
        answer = await pool.predict_one({"a": [1.0, 2.0], "b": 3.0})
        assert answer["sum"].shape == ()
        assert (answer["sum"], answer["b"]) == (3.0, 3.0)
    async with PredictorPool(calling(lambda x: [len(x)]), workers=1) as pool:
        assert await pool.predict_one([1.0, 2.0]) == 1
    async with PredictorPool(calling(lambda x: "text"), workers=1) as pool:  # noqa: ARG005
        with pytest.raises(TypeError, match="predict_one needs outputs with a row axis"):
            await pool.predict_one([1.0])


@both_pools
async def test_an_answer_belongs_to_its_caller() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        first = await pool.predict([1.0, 2.0])
        first[:] = 99  # writable, and nobody else's
        assert (await pool.predict([1.0, 2.0])).tolist() == [2.0, 4.0]


async def test_features_may_be_changed_as_soon_as_predict_waits(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1) as pool, anyio.create_task_group() as group:
        features = np.array([1.0, 2.0])
        answers: list[Any] = []

        async def ask() -> None:
            answers.append((await pool.predict(features)).tolist())

        group.start_soon(pool.predict, [0.0])
        await stage.hears()
        group.start_soon(ask)
        await until(lambda: pool.statistics().waiting)
        features[:] = -1
        stage.let_go(2)
    assert answers == [[2.0, 4.0]]


@both_pools
async def test_outputs_that_are_no_arrays_come_as_they_are() -> None:
    async with PredictorPool(calling(lambda x: [("row", n) for n in x]), workers=1) as pool:
        assert await pool.predict([1.0, 2.0]) == [("row", 1.0), ("row", 2.0)]


@both_pools
async def test_hundreds_of_callers_each_get_their_own_rows() -> None:
    async with PredictorPool(doubling(), workers=2, max_batch_size=16) as pool:
        answered = 0

        async def ask(caller: int) -> None:
            nonlocal answered
            for turn in range(10):
                rows = caller * 1000.0 + turn * 10 + np.arange(1 + (caller + turn) % 5)
                assert np.array_equal(await pool.predict(rows), rows * 2)
                answered += len(rows)

        async with anyio.create_task_group() as group:
            for caller in range(300):
                group.start_soon(ask, caller)
        now = pool.statistics()
        assert now.answered == 3000
        assert now.rows == answered
        assert now.batches < 3000
        assert adds_up(pool)


# --- map ---------------------------------------------------------------------------


@both_pools
async def test_map_keeps_the_order_of_sync_and_async_iterables() -> None:
    async def batches() -> AsyncIterator[list[float]]:
        for number in range(50):
            await anyio.lowlevel.checkpoint()
            yield [float(number)]

    async with PredictorPool(doubling(), workers=2) as pool:
        expected = [[2.0 * n] for n in range(50)]
        assert [rows.tolist() async for rows in pool.map(batches())] == expected
        of_list = pool.map([float(n)] for n in range(50))
        assert [rows.tolist() async for rows in of_list] == expected
        assert [rows async for rows in pool.map([])] == []


async def test_map_looks_ahead_two_requests_for_each_worker_and_no_further(stage: Stage) -> None:
    taken = 0

    def endless() -> Iterator[list[float]]:
        nonlocal taken
        while True:
            taken += 1
            yield [float(taken)]

    async with (
        PredictorPool(held(stage, row_wise=False), workers=1) as pool,
        aclosing(pool.map(endless())) as answers,
    ):
        stage.let_go()
        assert (await anext(answers)).tolist() == [2.0]
        now = pool.statistics()
        assert now.waiting + now.running == 1  # the two under way, less the one answered
        assert taken == 3  # and one in hand, for when there is room
        stage.let_go(2)
        assert (await anext(answers)).tolist() == [4.0]
        assert taken == 4
        stage.let_go(10)


@both_pools
async def test_map_waits_where_the_queue_is_full_instead_of_being_refused() -> None:
    async with PredictorPool(doubling(), workers=1, max_waiting=0) as pool:
        answers = [rows.tolist() async for rows in pool.map([[1.0], [2.0], [3.0]])]
        assert answers == [[2.0], [4.0], [6.0]]
        assert pool.statistics().refused == 0


class Sourness(Exception):
    pass


def broken_source() -> Iterator[list[float]]:
    yield [1.0]
    yield [2.0]
    raise Sourness


async def broken_async_source() -> AsyncIterator[list[float]]:
    for rows in broken_source():
        yield rows


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda: [[1.0], [2.0], [-1.0], [4.0]], ValueError),
        (lambda: [[1.0], [2.0], 5.0, [4.0]], InvalidFeatures),
        (broken_source, Sourness),
        (broken_async_source, Sourness),
    ],
    ids=["model", "features", "iterable", "async iterable"],
)
@both_pools
async def test_map_raises_the_first_error_in_its_place(
    source: Callable[[], Any], expected: type[Exception]
) -> None:
    def predict(x: Any) -> Any:
        if x[0] < 0:
            raise ValueError(x[0])
        return x * 2

    async with PredictorPool(calling(predict), workers=1) as pool:
        answers = []
        with pytest.raises(expected):  # noqa: PT012 - what came before it counts, too
            async for rows in pool.map(source()):
                answers.append(rows.tolist())  # noqa: PERF401 - those before the error stay
        assert answers == [[2.0], [4.0]]
        await until(lambda: pool.statistics().running == 0)
        assert adds_up(pool)


async def test_closing_map_early_cancels_what_is_under_way(stage: Stage) -> None:
    async with PredictorPool(held(stage, row_wise=False), workers=1) as pool:
        async with aclosing(pool.map([[1.0], [2.0], [3.0]])) as answers:
            stage.let_go()
            await anext(answers)
        now = pool.statistics()
        assert (now.answered, now.waiting, now.running) == (1, 0, 0)
        assert now.cancelled == now.submitted - 1
        stage.let_go(2)


# --- wait_ready --------------------------------------------------------------------


async def test_wait_ready_waits_for_as_many_as_it_is_told(stage: Stage) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.hold("loading")
        return lambda x: x

    async with PredictorPool(FunctionPredictor(load), workers=3) as pool:
        await pool.wait_ready(0)
        await pool.wait_ready(1)
        assert pool.statistics().ready == 1
        stage.let_go()
        await pool.wait_ready(2)
        assert pool.statistics().ready == 2
        stage.let_go()
        await pool.wait_ready()
        assert pool.statistics().ready == pool.statistics().workers == 3
        with pytest.raises(ValueError, match="workers is 4, but the pool has 3"):
            await pool.wait_ready(4)
        with pytest.raises(TypeError, match=r"workers is 1\.5"):
            await pool.wait_ready(1.5)  # type: ignore[arg-type]


async def test_wait_ready_ends_when_the_pool_is_closed(stage: Stage) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            stage.hold("loading")
        return lambda x: x

    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:

        async def wait() -> None:
            with pytest.raises(PoolClosed):
                await pool.wait_ready()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await stage.hears()
            await pool.aclose()


# --- workers -----------------------------------------------------------------------


async def test_further_workers_start_only_after_the_first_is_ready(stage: Stage) -> None:
    def load() -> Callable[[Any], Any]:
        stage.hold("loading")
        return lambda x: x

    pool = PredictorPool(FunctionPredictor(load), workers=3)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        await stage.hears()
        await anyio.wait_all_tasks_blocked()
        assert stage.heard() == []
        stage.let_go()
        await stage.hears()
        await stage.hears()
        assert "open" in repr(pool)
        stage.let_go(2)
        await pool.wait_ready()
        await pool.aclose()


async def test_each_worker_is_a_process_of_its_own(stage: Stage, nothing_left: Family) -> None:
    async with PredictorPool(naming_pids(stage), workers=3) as pool:
        await pool.wait_ready()
        pids = set(stage.heard())
        assert len(pids) == 3
        template = set(nothing_left.pids()) - pids
        assert len(template) == 1
