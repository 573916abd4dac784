"""What a pool tells of what it takes, and of its workers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from predictpool import Device, FunctionPredictor, LocalLauncher, PredictorPool, Signature
from tests.pools import POOL_TEST, both_pools, calling, doubling, pids_of, until
from tests.stage import Stage

pytestmark = POOL_TEST


class Learning(FunctionPredictor[Any]):
    """A predictor that knows what it takes when it has been loaded."""

    method: str | None = None

    def load(self, device: Device) -> None:
        super().load(device)
        self.signature = Signature.declared({"x": (np.float32, (2,))})
        self.method = "table"  # of several ways that it might have


# --- the signature -----------------------------------------------------------------


@both_pools
async def test_a_declared_signature_is_known_before_and_after_everything() -> None:
    pool = PredictorPool(doubling(signature=(np.float32, (3,))), workers=1)
    declared = Signature.declared((np.float32, (3,)))
    assert pool.signature == declared
    async with pool:
        assert pool.signature == declared
    assert pool.signature == declared


@both_pools
async def test_the_signature_of_a_loaded_predictor_is_known_when_a_worker_is_ready() -> None:
    predictor = Learning(lambda: lambda features: features["x"] * 2)
    pool = PredictorPool(predictor, workers=1)
    assert pool.signature is None
    async with pool:
        assert pool.signature == Signature.declared({"x": (np.float32, (2,))})
        assert [worker.method for worker in pool.workers()] == ["table"]


@both_pools
async def test_an_inferred_signature_is_known_when_the_first_request_is_answered() -> None:
    predictor = doubling()
    predictor.signature = "infer"
    async with PredictorPool(predictor, workers=1) as pool:
        assert pool.signature is None
        await pool.predict([[1.0, 2.0]])
        assert pool.signature == Signature.declared((np.float32, (2,)))


@both_pools
async def test_a_predictor_that_takes_anything_has_no_signature() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        await pool.predict([1.0])
        assert pool.signature is None


# --- the workers -------------------------------------------------------------------


async def test_workers_tells_of_each_ready_worker_in_the_order_of_the_slots() -> None:
    pool = PredictorPool(
        calling(lambda _: (os.getpid(), sorted(os.sched_getaffinity(0)))), workers=2
    )
    assert pool.workers() == ()
    async with pool:
        await pool.wait_ready()
        first, second = pool.workers()
        assert [first.slot, second.slot] == [0, 1]
        assert [first.pid, second.pid] == pids_of(pool)
        assert first.load_seconds > 0
        assert not first.row_wise
        assert first.warning == ""
        pid, cores = await pool.predict([1.0])
        (answering,) = [worker for worker in pool.workers() if worker.pid == pid]
        assert answering.device == Device(cores=tuple(cores))
    assert pool.workers() == ()


@pytest.mark.parametrize("fork", [True, False])
async def test_workers_do_not_interrupt_the_event_loop(fork: bool) -> None:
    predictor = calling(lambda _: (os.sched_getscheduler(0), os.nice(0)))
    async with PredictorPool(predictor, workers=1, launcher=LocalLauncher(fork=fork)) as pool:
        policy, niceness = await pool.predict([1.0])
        assert policy == os.SCHED_BATCH  # they may share a core with it
        assert niceness == min(os.nice(0) + 5, 19)


async def test_a_worker_is_told_of_only_while_it_is_ready(stage: Stage) -> None:
    def load() -> Any:
        stage.hold("loading")
        return lambda x: x * 2

    stage.let_go()
    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        (old,) = pool.workers()
        os.kill(old.pid, 9)
        await until(lambda: not pool.workers())
        stage.let_go()
        await pool.wait_ready()
        (new,) = pool.workers()
        assert new.slot == old.slot
        assert new.pid != old.pid


async def test_after_a_reload_the_new_worker_is_told_of() -> None:
    async with PredictorPool(doubling(), workers=1) as pool:
        (old,) = pool.workers()
        await pool.reload(calling(lambda x: x * 3))
        (new,) = pool.workers()
        assert new.pid != old.pid
        assert (old.row_wise, new.row_wise) == (True, False)


@both_pools
async def test_outputs_without_rows_are_a_warning_of_the_worker() -> None:
    predictor = FunctionPredictor(
        lambda: lambda x: x.sum(), row_wise=True, signature=(np.float32, ())
    )
    async with PredictorPool(predictor, workers=1) as pool:
        (worker,) = pool.workers()
        assert not worker.row_wise
        assert "do not have the rows on their first axis" in worker.warning
