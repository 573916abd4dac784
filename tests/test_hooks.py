"""What hooks are told, and that they cannot break anything."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
from collections import Counter
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import (
    BatchEnded,
    BatchStarted,
    FunctionPredictor,
    Hooks,
    InvalidFeatures,
    PoolClosed,
    PoolOpened,
    PoolStatistics,
    PoolTimeout,
    PredictorPool,
    RequestEnded,
    RequestSubmitted,
    TooManyRequests,
    WorkerLost,
    WorkerReady,
    WorkerStartError,
)
from predictpool._hooks import OUTCOMES
from tests.pools import (
    ONE_LOOP,
    POOL_TEST,
    TWO_LOOPS,
    both_pools,
    calling,
    doubling,
    held,
    pids_of,
    until,
    until_waiting,
)
from tests.stage import Stage

pytestmark = POOL_TEST

EVENTS = [name for name in vars(Hooks) if not name.startswith("_")]


class Notebook(Hooks):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, Any]] = []

    def of(self, event: str) -> list[Any]:
        return [fact for name, fact in self.facts if name == event]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(fact.outcome for fact in self.of("request_ended"))

    def pool_opened(self, fact: PoolOpened) -> None:
        self.facts.append(("pool_opened", fact))

    def pool_closed(self, fact: PoolOpened) -> None:
        self.facts.append(("pool_closed", fact))

    def worker_ready(self, fact: WorkerReady) -> None:
        self.facts.append(("worker_ready", fact))

    def worker_lost(self, fact: WorkerLost) -> None:
        self.facts.append(("worker_lost", fact))

    def request_submitted(self, fact: RequestSubmitted) -> None:
        self.facts.append(("request_submitted", fact))

    def request_ended(self, fact: RequestEnded) -> None:
        self.facts.append(("request_ended", fact))

    def batch_started(self, fact: BatchStarted) -> None:
        self.facts.append(("batch_started", fact))

    def batch_ended(self, fact: BatchEnded) -> None:
        self.facts.append(("batch_ended", fact))


class Broken(Hooks):
    """Raises whatever it is told."""

    def __init__(self) -> None:
        def fail(_: object) -> None:
            raise ValueError("this hook is broken")

        for event in EVENTS:
            setattr(self, event, fail)


def agrees(notebook: Notebook, now: PoolStatistics) -> None:
    """Check that each request and batch was told once, and that all add up."""
    submitted = [fact.id for fact in notebook.of("request_submitted")]
    ended = [fact.request.id for fact in notebook.of("request_ended")]
    assert len(submitted) == len(set(submitted)) == now.submitted
    assert len(ended) == len(set(ended)) == now.submitted - now.waiting - now.running
    assert set(ended) <= set(submitted)
    outcomes = notebook.outcomes
    assert outcomes["answered"] == now.answered
    assert outcomes["failed"] + outcomes["invalid"] == now.failed
    assert outcomes["cancelled"] == now.cancelled
    assert outcomes["timed_out"] == now.timed_out
    assert outcomes["refused"] == now.refused
    answered = [fact for fact in notebook.of("request_ended") if fact.outcome == "answered"]
    assert sum(fact.request.rows for fact in answered) == now.rows
    assert sum(fact.waited for fact in answered) == pytest.approx(now.waiting_seconds)
    assert len(notebook.of("batch_started")) == now.batches


async def gathered(pool: PredictorPool[Any], *requests: Any) -> None:
    """Make requests at the same time, whatever comes of them."""

    async def ask(features: Any) -> None:
        with contextlib.suppress(Exception):
            await pool.predict(features)

    async with anyio.create_task_group() as group:
        for features in requests:
            group.start_soon(ask, features)


# --- what is told ------------------------------------------------------------------


@both_pools
async def test_a_request_is_told_from_its_start_to_its_answer() -> None:
    notebook = Notebook()
    async with PredictorPool(doubling(), workers=1, name="two", hooks=[notebook]) as pool:
        await pool.predict(np.ones((3, 1)))
        (worker,) = pool.workers()
    assert [name for name, _ in notebook.facts] == [
        "pool_opened",
        "worker_ready",
        "request_submitted",
        "batch_started",
        "batch_ended",
        "request_ended",
        "pool_closed",
    ]
    opened, ready, submitted, started, batch, ended, closed = [f for _, f in notebook.facts]
    assert opened is closed
    assert opened.pool == ready.pool == submitted.pool == started.pool == "two"
    assert ready.worker == worker
    assert submitted.rows == started.rows == 3
    assert (started.slot, started.requests) == (0, (submitted.id,))
    assert (batch.batch, batch.outcome) == (started, "answered")
    assert (ended.request, ended.batch, ended.error) == (submitted, started, None)
    assert 0 <= ended.waited < ended.waited + ended.ran
    assert 0 < batch.seconds <= ended.ran


async def test_every_outcome_is_told_once(stage: Stage) -> None:
    notebook = Notebook()
    row = np.ones((1, 1))
    async with (
        PredictorPool(
            held(stage), workers=1, max_batch_size=1, max_waiting=2, hooks=[notebook]
        ) as pool,
        anyio.create_task_group() as group,
    ):
        running, waiting = anyio.CancelScope(), anyio.CancelScope()

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                await pool.predict(row)

        group.start_soon(ask, running)
        await stage.hears()
        group.start_soon(ask, waiting)
        await until_waiting(pool, 1)
        with pytest.raises(PoolTimeout):
            await pool.predict(row, timeout=0.001)
        group.start_soon(ask, anyio.CancelScope())
        await until_waiting(pool, 2)
        with pytest.raises(TooManyRequests):
            await pool.predict(row)
        waiting.cancel()
        await until_waiting(pool, 1)
        with pytest.raises(InvalidFeatures):
            await pool.predict({})
        running.cancel()
        await until(lambda: pool.statistics().cancelled == 2)
        stage.let_go(2)
    agrees(notebook, pool.statistics())
    ends = {fact.outcome: fact for fact in notebook.of("request_ended")}
    assert notebook.outcomes == {
        "answered": 1,
        "invalid": 1,
        "cancelled": 2,
        "timed_out": 1,
        "refused": 1,
    }
    assert ends["timed_out"].waited >= ends["timed_out"].error.waited > 0
    assert ends["timed_out"].ran == 0.0
    assert isinstance(ends["refused"].error, TooManyRequests)
    assert isinstance(ends["invalid"].error, InvalidFeatures)
    assert ends["refused"].request.rows is ends["invalid"].request.rows is None
    waited, ran = [f for f in notebook.of("request_ended") if f.outcome == "cancelled"]
    assert (waited.batch, waited.ran) == (None, 0.0)
    assert ran.batch.slot == 0
    assert ran.ran > 0


@both_pools
async def test_what_the_model_raises_is_told_with_each_batch_that_it_took() -> None:
    def picky(x: Any) -> Any:
        if (x < 0).any():
            raise ArithmeticError("negative")
        return x

    notebook = Notebook()
    async with PredictorPool(calling(picky, row_wise=True), workers=1, hooks=[notebook]) as pool:
        await gathered(pool, [-1.0], [1.0], [2.0])  # the later ones may share a batch
        await gathered(pool, [1.0], [-2.0], [2.0])
        agrees(notebook, pool.statistics())
    assert notebook.outcomes == {"answered": 4, "failed": 2}
    failed = [fact for fact in notebook.of("request_ended") if fact.outcome == "failed"]
    assert all(isinstance(fact.error, ArithmeticError) for fact in failed)
    batches = notebook.of("batch_ended")
    assert [fact.batch for fact in batches] == notebook.of("batch_started")
    assert all(
        any(fact.batch == end.batch and fact.outcome == "failed" for fact in batches)
        for end in failed
    )


async def test_a_timeout_that_the_model_raises_is_a_failure() -> None:
    def impatient(_: Any) -> Any:
        raise PoolTimeout("mine", timeout=1.0, waited=1.0, ran=0.0)

    notebook = Notebook()
    async with PredictorPool(calling(impatient), workers=1, hooks=[notebook]) as pool:
        with pytest.raises(PoolTimeout, match="mine"):
            await pool.predict([1.0])
        agrees(notebook, pool.statistics())
    assert notebook.outcomes == {"failed": 1}


async def test_outputs_that_predict_one_cannot_divide_are_a_failure() -> None:
    notebook = Notebook()
    async with PredictorPool(calling(lambda _: "text"), workers=1, hooks=[notebook]) as pool:
        with pytest.raises(TypeError, match="predict_one needs outputs with a row axis"):
            await pool.predict_one([1.0])
        now = pool.statistics()
        agrees(notebook, now)
    assert (now.answered, now.failed) == (0, 1)
    (ended,) = notebook.of("request_ended")
    assert (ended.outcome, type(ended.error)) == ("failed", TypeError)
    (batch,) = notebook.of("batch_ended")
    assert batch.outcome == "answered"  # the model has done its part


async def test_a_request_whose_worker_died_is_told_of_once(stage: Stage) -> None:
    notebook = Notebook()
    async with PredictorPool(held(stage), workers=1, hooks=[notebook]) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [1.0])
            await stage.hears()
            (pid,) = pids_of(pool)
            os.kill(pid, signal.SIGKILL)
            await stage.hears()
            stage.let_go()
        agrees(notebook, pool.statistics())
    (lost,) = notebook.of("worker_lost")
    assert (lost.slot, lost.pid, lost.cause) == (0, pid, "SIGKILL")
    assert "was ended by SIGKILL" in lost.description
    first, second = notebook.of("batch_started")
    assert [fact.outcome for fact in notebook.of("batch_ended")] == ["lost", "answered"]
    (ended,) = notebook.of("request_ended")
    assert first.requests == second.requests == (ended.request.id,)
    assert ended.batch == second
    assert [fact.worker.slot for fact in notebook.of("worker_ready")] == [0, 0]


@ONE_LOOP
@pytest.mark.parametrize(
    ("die", "cause"),
    [
        (lambda: os._exit(3), "exit"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (signal.pause, "killed by the pool"),
    ],
    ids=["exit", "SIGSEGV", "hangs"],
)
async def test_the_cause_of_a_death_is_told(die: Any, cause: str) -> None:
    notebook = Notebook()
    predictor = calling(lambda _: die())
    async with PredictorPool(
        predictor, workers=1, retries=0, hang_timeout=0.2, hooks=[notebook]
    ) as pool:
        await gathered(pool, [1.0])
    (lost,) = notebook.of("worker_lost")
    assert lost.cause == cause


@ONE_LOOP
@pytest.mark.parametrize("grace", [10.0, 0.0])
async def test_workers_that_end_with_their_pool_or_are_replaced_are_not_lost(
    stage: Stage, grace: float
) -> None:
    notebook = Notebook()
    async with PredictorPool(held(stage), workers=2, grace_period=grace, hooks=[notebook]) as pool:
        await pool.wait_ready()
        await pool.reload()
        await pool.resize(1)
        async with anyio.create_task_group() as group:
            group.start_soon(gathered, pool, [1.0], [2.0])
            await stage.hears()
            group.start_soon(pool.aclose)
            if grace:
                stage.let_go(2)
    agrees(notebook, pool.statistics())
    assert notebook.outcomes == ({"answered": 2} if grace else {"failed": 2})
    assert not notebook.of("worker_lost")
    assert len(notebook.of("worker_ready")) == 4
    assert len(notebook.of("batch_ended")) == len(notebook.of("batch_started"))
    assert notebook.facts[-1][0] == "pool_closed"


@both_pools
async def test_a_pool_that_cannot_be_opened_is_closed_again() -> None:
    def load() -> Any:
        raise FileNotFoundError("no model")

    notebook = Notebook()
    with pytest.raises(WorkerStartError):
        await PredictorPool(FunctionPredictor(load), workers=1, hooks=[notebook]).open()
    assert [name for name, _ in notebook.facts] == ["pool_opened", "pool_closed"]


async def test_a_start_is_told_in_its_callers_context() -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen = []

    class Asking(Hooks):
        def request_submitted(self, fact: RequestSubmitted) -> None:
            seen.append(caller.get())

    async def ask(name: str) -> None:
        caller.set(name)
        await pool.predict([1.0])

    async with (
        PredictorPool(doubling(), workers=1, hooks=[Asking()]) as pool,
        anyio.create_task_group() as group,
    ):
        for name in "abc":
            group.start_soon(ask, name)
    assert sorted(seen) == ["a", "b", "c"]


async def test_statistics_are_those_of_the_pool_and_do_not_keep_it() -> None:
    notebook = Notebook()
    pool = PredictorPool(doubling(), workers=1, hooks=[notebook])
    async with pool:
        (opened,) = notebook.of("pool_opened")
        await pool.predict([1.0])
        assert opened.statistics() == pool.statistics()
        assert opened.statistics().answered == 1
    del pool

    def is_gone() -> bool:
        gc.collect()
        return opened.statistics() is None

    await until(is_gone)  # trio keeps the stack of who cancelled a task until that has ended


# --- all of it at once -------------------------------------------------------------


def unreliable() -> FunctionPredictor[Any]:
    """A predictor that raises for 7, and dies of 8."""

    def load() -> Any:
        def predict(x: Any) -> Any:
            if (x == 7).any():
                raise ArithmeticError("seven")
            if (x == 8).any():
                os._exit(1)
            return x * 2

        return predict

    return FunctionPredictor(load, row_wise=True, signature=(np.float64, (1,)))


async def call(pool: PredictorPool[Any], chance: random.Random, rounds: int) -> None:
    """Make requests of every kind, some of which are late or given up."""
    for _ in range(rounds):
        value = chance.choices([1, 7, 8, "x"], [100, 5, 0.4, 5])[0]
        features = np.full((chance.randint(1, 3), 1), value)
        timeout = chance.choice([0.0005, 0.003, 5, None])
        with anyio.move_on_after(chance.choice([0.001, 0.005, 1])):
            with contextlib.suppress(Exception):
                await pool.predict(features, timeout=timeout)


async def disturb(pool: PredictorPool[Any]) -> None:
    """Kill workers and reload the pool, a few times."""
    for _ in range(6):
        await anyio.sleep(0.05)
        for pid in pids_of(pool)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await pool.reload()


@TWO_LOOPS
@pytest.mark.faults
async def test_what_is_told_agrees_with_the_statistics_whatever_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "predictpool")
    notebook, chance = Notebook(), random.Random(6)
    pool: PredictorPool[Any] = PredictorPool(
        unreliable(),
        workers=2,
        max_batch_size=8,
        max_waiting=20,
        grace_period=0.0,
        hooks=[notebook],
    )
    async with pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(call, pool, chance, 40)
            await disturb(pool)
        agrees(notebook, pool.statistics())
        async with anyio.create_task_group() as group:  # these end with the pool
            group.start_soon(gathered, pool, *([np.ones((1, 1))] * 30))
            await until(lambda: pool.statistics().submitted > len(notebook.of("request_ended")))
            await pool.aclose()
    now = pool.statistics()
    agrees(notebook, now)
    assert now.waiting == now.running == 0
    assert set(notebook.outcomes) == set(OUTCOMES)
    started, ended = notebook.of("batch_started"), notebook.of("batch_ended")
    assert Counter(fact.batch for fact in ended) == Counter(started)
    assert {fact.outcome for fact in ended} == {"answered", "failed", "lost"}
    assert notebook.of("worker_lost")


# --- hooks that are wrong ----------------------------------------------------------


async def test_a_hook_that_raises_breaks_nothing_and_is_logged_once_for_each_method(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notebook = Notebook()
    async with PredictorPool(
        doubling(signature=(np.float64, ())), workers=1, hooks=[Broken(), notebook]
    ) as pool:
        for value in range(3):
            assert (await pool.predict([float(value)])).tolist() == [2.0 * value]
            with pytest.raises(InvalidFeatures):
                await pool.predict(["x"])
        (pid,) = pids_of(pool)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: notebook.of("worker_lost"))
        assert (await pool.predict([1.0])).tolist() == [2.0]
    agrees(notebook, pool.statistics())
    logged = [record for record in caplog.records if "Broken object" in record.getMessage()]
    assert sorted(record.getMessage().split()[0] for record in logged) == sorted(EVENTS)
    assert all(record.levelno == logging.ERROR for record in logged)
    assert all("this hook is broken" in str(record.exc_info) for record in logged)


@ONE_LOOP
async def test_two_broken_hooks_are_both_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with PredictorPool(doubling(), workers=1, hooks=[Broken(), Broken()]):
        pass
    logged = [record for record in caplog.records if "pool_opened" in record.getMessage()]
    assert len(logged) == 2


class Async(Hooks):
    async def request_ended(self, fact: RequestEnded) -> None:  # type: ignore[override]
        pass


class Partial:
    def request_ended(self, fact: RequestEnded) -> None:
        pass


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([Partial()], r"hooks has <.*Partial.*>, expected an object with all methods of Hooks"),
        (None, r"hooks is None, expected a list of Hooks: hooks=\[...\]"),
        (Notebook(), r"hooks is <.*>, expected a list of Hooks"),
        (
            [Notebook],
            r"hooks has <class '.*Notebook'>, expected an object with all methods of Hooks",
        ),
        (
            [print],
            "hooks has <built-in function print>, expected an object with all methods of Hooks",
        ),
        ([Async()], "request_ended of <.*> is an `async def`, .*: make it a `def`"),
    ],
    ids=["a part", "None", "no list", "class", "no hooks", "async"],
)
@ONE_LOOP
async def test_what_is_no_list_of_hooks_is_refused(hooks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PredictorPool(doubling(), hooks=hooks)


@ONE_LOOP
async def test_a_pool_without_hooks_tells_nobody() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        await pool.predict([1.0])
        assert pool._dispatcher is not None
        assert pool._dispatcher.teller is None


@ONE_LOOP
@pytest.mark.parametrize("cancelled", [False, True])
async def test_requests_that_end_with_the_pool_are_told_before_its_end(
    stage: Stage, cancelled: bool
) -> None:
    notebook = Notebook()
    async with (
        PredictorPool(
            held(stage), workers=1, max_batch_size=1, grace_period=0.0, hooks=[notebook]
        ) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(gathered, pool, [1.0], [2.0])
        await stage.hears()
        await until_waiting(pool, 1)
        with anyio.CancelScope() as scope:
            if cancelled:  # then nobody waits for the ends of the workers
                scope.cancel()
            await pool.aclose()
    assert notebook.outcomes == {"failed": 2}
    assert all(isinstance(f.error, PoolClosed) for f in notebook.of("request_ended"))
    assert [fact.outcome for fact in notebook.of("batch_ended")] == ["lost"]
    assert notebook.facts[-1][0] == "pool_closed"


@ONE_LOOP
async def test_any_object_with_all_methods_is_a_hook() -> None:
    told: list[object] = []
    duck = SimpleNamespace(**{event: told.append for event in dir(Hooks) if event[0] != "_"})
    async with PredictorPool(doubling(), workers=1, hooks=[duck]) as pool:
        await pool.predict(np.ones((3, 1)))
    assert {type(fact) for fact in told} >= {PoolOpened, WorkerReady, RequestEnded, BatchEnded}
