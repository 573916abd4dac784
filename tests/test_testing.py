"""What an `InlinePool` does beside what `tests.pools.both_pools` asks of either kind of pool."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from predictpool import (
    BrokenWorkerError,
    Device,
    FunctionPredictor,
    LocalLauncher,
    PoolClosed,
    PoolTimeout,
    WorkerStartError,
)
from predictpool.testing import InlinePool
from tests import needs
from tests.conftest import Family
from tests.pools import POOL_TEST, adds_up, calling, doubling, until

pytestmark = POOL_TEST

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "testing.md"

seen: list[Any] = []


def remember(x: Any) -> Any:
    """Predict, in a function that is found by its name and so not copied."""
    seen.append(x.tolist())
    return x * 2


async def asks(pool: InlinePool[Any], value: float = 1.0) -> Any:
    return (await pool.predict([value])).tolist()


# --- no processes ------------------------------------------------------------------


async def test_there_is_no_process_and_no_descriptor(nothing_left: Family) -> None:
    seen.clear()
    async with InlinePool(calling(remember), workers=2) as pool:
        await pool.wait_ready()
        assert not nothing_left.pids()
        assert await asks(pool, 3.0) == [6.0]
        assert [worker.pid for worker in pool.workers()] == [os.getpid()] * 2
    assert seen == [[3.0]]


async def test_without_workers_there_is_one_and_nobody_is_pinned() -> None:
    async with InlinePool(doubling()) as pool:
        await pool.wait_ready()
        assert [worker.device for worker in pool.workers()] == [Device()]
        await pool.resize(2)
        assert pool.statistics().ready == 2


async def test_a_launcher_is_checked_and_not_used(nothing_left: Family) -> None:
    async with InlinePool(doubling(), launcher=LocalLauncher()) as pool:
        assert await asks(pool) == [2.0]
        assert not nothing_left.pids()


async def test_the_repr_says_what_it_is() -> None:
    assert repr(InlinePool(doubling(), name="income")) == "<InlinePool 'income' not opened>"


class Threads(FunctionPredictor[Any]):
    """Notes the thread of each call, in a class that is found by its name and so not copied."""

    def load(self, device: Device) -> None:
        seen.append(threading.get_ident())
        super().load(device)

    def predict(self, features: Any) -> Any:
        seen.append(threading.get_ident())
        return asyncio.run(self.later(features))  # there is no event loop in that thread

    async def later(self, features: Any) -> Any:
        await asyncio.sleep(0)
        return features * 2

    def close(self) -> None:
        seen.append(threading.get_ident())


async def test_a_worker_is_one_thread_beside_the_event_loop_from_load_to_close() -> None:
    seen.clear()
    async with InlinePool(Threads(lambda: lambda x: x)) as pool:
        assert await asks(pool) == [2.0]
    assert len(seen) == 3
    assert len({*seen, threading.get_ident()}) == 2


class Model:
    """Something that can be seen to go."""

    def __call__(self, x: Any) -> Any:
        sys.exit(1)


def load_model() -> Model:
    model = Model()
    seen.append(threading.get_ident())
    seen.append(weakref.ref(model, lambda _: seen.append(threading.get_ident())))
    return model


async def test_a_worker_that_ended_has_let_go_of_its_model_in_its_thread() -> None:
    seen.clear()
    async with InlinePool(FunctionPredictor(load_model), retries=0) as pool:
        with pytest.raises(BrokenWorkerError):
            await pool.predict([1.0])
        loaded_in, _, gone_in = seen[:3]
        assert loaded_in == gone_in


async def test_requests_whose_outputs_cannot_be_divided_are_run_alone() -> None:
    answers = []

    async def ask(value: float) -> None:
        answers.append(float(await pool.predict([value])))

    async with InlinePool(calling(lambda x: x.sum(), row_wise=True)) as pool:
        async with anyio.create_task_group() as group:
            for value in range(4):
                group.start_soon(ask, float(value))
        assert sorted(answers) == [0.0, 1.0, 2.0, 3.0]
        assert adds_up(pool)


async def test_requests_of_one_turn_share_a_batch_and_everything_is_counted() -> None:
    seen.clear()
    async with InlinePool(calling(remember, row_wise=True), max_batch_size=3) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(7):
                group.start_soon(asks, pool)
        assert [len(rows) for rows in seen] == [1, 3, 3]
        now = pool.statistics()
        assert (now.submitted, now.answered, now.rows, now.batches) == (7, 7, 7, 3)
        assert adds_up(pool)


# --- time --------------------------------------------------------------------------


def slowly(x: Any) -> Any:
    """Take as many seconds as it is told."""
    time.sleep(x[0])
    return x * 2


async def test_a_deadline_that_passes_while_the_model_runs_is_a_timeout() -> None:
    async with InlinePool(calling(slowly)) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.predict([0.3], timeout=0.25)
        assert caught.value.ran > 0
        assert await asks(pool, 0.0) == [0.0]
        assert pool.statistics().timed_out == 1
        assert adds_up(pool)


async def test_a_batch_that_ran_longer_than_hang_timeout_ends_its_worker() -> None:
    async with InlinePool(calling(slowly), hang_timeout=0.01, retries=0) as pool:
        with pytest.raises(BrokenWorkerError, match=r"ran longer than hang_timeout=0\.01 s"):
            await pool.predict([0.1])
        await until(lambda: pool.statistics().ready)
        assert pool.statistics().restarts == 1


async def test_a_load_that_took_longer_than_start_timeout_is_an_error() -> None:
    def load() -> Callable[[Any], Any]:
        time.sleep(0.1)
        return lambda x: x

    with pytest.raises(WorkerStartError, match=r"not ready within start_timeout=0\.01 s"):
        await InlinePool(FunctionPredictor(load), start_timeout=0.01).open()


def test_a_clock_of_trios_that_jumps_does_not_pass_deadlines() -> None:
    async def main() -> None:
        async with InlinePool(doubling()) as pool:
            await trio.sleep(3600)
            assert await asks(pool) == [2.0]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- what would end a process ------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (3, 3), ("no memory", 1)], ids=["none", "number", "text"]
)
async def test_a_model_that_exits_ends_its_worker_and_the_slot_is_filled_again(
    code: Any, status: int
) -> None:
    def predict(x: Any) -> Any:
        if x[0] < 0:
            sys.exit(code)
        return x * 2

    async with InlinePool(calling(predict), retries=1) as pool:
        with pytest.raises(BrokenWorkerError, match=f"exited by itself with status {status}") as e:
            await pool.predict([-1.0])
        assert e.value.exitcode == status
        assert "in predict" in e.value.crash_report
        assert await asks(pool) == [2.0]
        assert pool.statistics().restarts == 2
        assert adds_up(pool)


async def test_a_load_that_exits_is_an_error() -> None:
    with pytest.raises(WorkerStartError, match="exited by itself with status 3 while it started"):
        await InlinePool(FunctionPredictor(partial(sys.exit, 3))).open()


async def test_a_model_that_raises_what_ends_tasks_ends_no_caller() -> None:
    def predict(_: Any) -> Any:
        raise asyncio.CancelledError

    async with InlinePool(calling(predict), retries=0) as pool:
        with pytest.raises(BrokenWorkerError, match="status 1") as caught:
            await pool.predict([1.0])
        assert "CancelledError" in caught.value.crash_report


INTERRUPTED = """
import asyncio
import signal
import sys
import threading
import time

from predictpool import FunctionPredictor, WorkerStartError
from predictpool.testing import InlinePool


class TimeLimit(BaseException):
    pass


def interrupt(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise {"ctrl-c": KeyboardInterrupt, "limit": TimeLimit}[sys.argv[1]]


def for_ever(_):
    # Again until it is heard: one that comes as a thread begins to wait does not wake it.
    while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)
    threading.Event().wait()


async def main():
    async with InlinePool(FunctionPredictor(lambda: for_ever), timeout=None) as pool:
        await pool.predict([1.0])


signal.signal(signal.SIGINT, interrupt)
try:
    asyncio.run(main())
except (KeyboardInterrupt, WorkerStartError) as error:
    print(repr(error))
"""


def test_ctrl_c_while_a_model_runs_for_ever_ends_the_program(tmp_path: Path) -> None:
    assert run_in(tmp_path, "-c", INTERRUPTED, "ctrl-c") == "KeyboardInterrupt()\n"


def test_a_time_limit_that_passes_while_a_model_runs_for_ever_ends_the_pool(tmp_path: Path) -> None:
    said = run_in(tmp_path, "-c", INTERRUPTED, "limit")
    assert "TimeLimit" in said  # which asyncio reports, and goes on
    assert "WorkerStartError" in said
    assert "could not be started: the last one was interrupted" in said


async def test_what_runs_longer_than_the_grace_period_is_over_when_the_pool_is_closed() -> None:
    pool = InlinePool(calling(slowly), grace_period=0.01)
    await pool.open()

    async def ask() -> None:
        with contextlib.suppress(PoolClosed):  # or it has its answer, which was there by then
            await pool.predict([0.1])

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(pool.aclose)
    assert pool.statistics().running == 0
    assert adds_up(pool)


async def test_a_reload_that_is_under_way_when_the_pool_closes_is_told_so() -> None:
    pool = InlinePool(doubling(), workers=2)
    await pool.open()
    await pool.wait_ready()

    async def reload() -> None:
        with pytest.raises(PoolClosed):
            await pool.reload()

    async with anyio.create_task_group() as group:
        group.start_soon(reload)
        group.start_soon(pool.aclose)


async def test_a_worker_that_is_asked_for_when_the_pool_is_closed_is_not_started() -> None:
    async with InlinePool(doubling()) as pool:
        pass
    nobody: Any = None
    with pytest.raises(ChildProcessError, match="pool that was closed"):
        await pool._launcher.start(nobody, nobody)


async def test_a_pool_that_nobody_holds_warns_and_leaves_no_thread() -> None:
    pool = InlinePool(doubling())
    await pool.open()
    with pytest.warns(ResourceWarning, match="InlinePool open, 1/1 .* was never closed"):  # noqa: PT031
        del pool
        gc.collect()


# --- TensorFlow, which the tests may use themselves ---------------------------------

KERAS = """
import anyio
import numpy as np
import tensorflow as tf

from predictpool import KerasPredictor
from predictpool.testing import InlinePool

x = tf.constant([[1.0, 2.0]])
assert float(tf.reduce_sum(x)) == 3  # TensorFlow runs, and its threads cannot be set any more


def build():
    return tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Rescaling(2.0)])


async def main():
    async with InlinePool(KerasPredictor(build), workers=2) as pool:
        await pool.wait_ready()
        assert (await pool.predict([[1.0, 2.0]])).tolist() == [[2.0, 4.0]]
        await pool.reload()
        assert (await pool.predict_one([3.0, 4.0])).tolist() == [6.0, 8.0]


anyio.run(main)
"""

ESTIMATOR = """
import anyio
import tensorflow as tf

from predictpool import EstimatorPredictor
from predictpool.testing import InlinePool


def build():
    def model_fn(features, labels, mode):
        weight = tf.compat.v1.get_variable("weight", [3], initializer=tf.ones_initializer())
        step = tf.compat.v1.train.get_global_step()
        return tf.estimator.EstimatorSpec(
            mode,
            predictions=features * weight,
            loss=tf.reduce_sum(weight),
            train_op=tf.compat.v1.assign_add(step, 1),
        )

    return tf.estimator.Estimator(model_fn, model_dir="model")


build().train(lambda: tf.data.Dataset.from_tensors(([[1.0] * 3], [1.0])), steps=1)


async def main():
    for method in ("generator", "session"):
        predictor = EstimatorPredictor(build, method=method, signature=("float32", (3,)))
        async with InlinePool(predictor, workers=2) as pool:
            await pool.wait_ready()
            answers = [rows.tolist() async for rows in pool.map([[[1, 2, 3]], [[4, 5, 6]]] * 2)]
            assert answers == [[[1, 2, 3]], [[4, 5, 6]]] * 2
            assert tf.executing_eagerly()  # no graph is left open around the test's own code
            await pool.reload()
            assert (await pool.predict_one([7, 8, 9])).tolist() == [7, 8, 9]
    assert tf.constant([1.0]).numpy() == 1


anyio.run(main)
"""


def run_in(folder: Path, *command: str) -> str:
    """Run Python in a process of its own, and return what it wrote."""
    run = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@needs.tensorflow
@pytest.mark.timeout(120)
def test_a_keras_model_is_loaded_where_tensorflow_runs_already(tmp_path: Path) -> None:
    run_in(tmp_path, "-c", KERAS)


@needs.estimators
@pytest.mark.timeout(120)
def test_estimators_are_held_open_beside_the_tests_own_tensorflow(tmp_path: Path) -> None:
    run_in(tmp_path, "-c", ESTIMATOR)


# --- the page ----------------------------------------------------------------------

FILE = re.compile(
    r"as\s+`(\w+\.py)`[^`]*?\n\n<!-- not run: .*?-->\n```python\n(.*?)```\n", re.DOTALL
)


def files_of_the_page() -> dict[str, str]:
    return dict(FILE.findall(PAGE.read_text()))


def test_every_block_of_the_page_is_a_file() -> None:
    files = files_of_the_page()
    assert len(files) == PAGE.read_text().count("```python") == 6
    assert "app.py" in files


@pytest.mark.timeout(120)
def test_the_tests_that_the_page_shows_pass(tmp_path: Path) -> None:
    files = files_of_the_page()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    said = run_in(tmp_path, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider")
    assert all(f"PASSED {name}::" in said for name in files if name != "app.py"), said
    assert "skipped" not in said
