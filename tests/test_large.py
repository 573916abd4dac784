"""Large arrays: through memory that both ends share, a step at a time, and the same answers."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictpool import FunctionPredictor, KerasPredictor, PredictorPool, WorkerStartError
from predictpool import _shared_buffer as shared_buffer_module
from predictpool._local_worker import SHARED_BYTES, LocalWorker
from predictpool._shared_buffer import STEP_BYTES, Copy, SharedBuffer, create_memory
from predictpool._wire import SHARED, Frame, Kind
from predictpool._worker import _SharedMemory
from tests import needs
from tests.pools import (
    ONE_LOOP,
    POOL_TEST,
    both_pools,
    calling,
    doubling,
    held,
    pids_of,
    until,
    until_waiting,
)
from tests.stage import Stage

MB = 1 << 20


def numbers(size: int, seed: int = 0) -> Any:
    """Return an array of so many bytes, no part of it like another."""
    return np.random.default_rng(seed).integers(0, 1 << 60, size // 8)


def echoing() -> FunctionPredictor[Any]:
    """A predictor that returns what it is given, not a copy of it."""
    return calling(lambda x: x)


def buffer_of(pool: PredictorPool[Any]) -> SharedBuffer:
    """Return the buffer of the only worker."""
    return handle_of(pool)._buffer


def handle_of(pool: PredictorPool[Any]) -> LocalWorker:
    """Return the process of the only worker."""
    assert pool._supervisor is not None
    (slot,) = pool._supervisor.slots
    assert slot.worker is not None
    assert isinstance(slot.worker.handle, LocalWorker)
    return slot.worker.handle


def memory_of(buffer: SharedBuffer) -> int:
    """Return how much memory the kernel holds for a buffer, in bytes."""
    return os.fstat(buffer._descriptor).st_blocks * 512


def names_in(folder: str) -> set[str]:
    """Return what is in a folder."""
    return {path.name for path in Path(folder).iterdir()}


def mapped_by(pid: int) -> set[str]:
    """Return the names of the files that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split()) > 5}


# --- in the pool -------------------------------------------------------------------


def on_every_loop(test: Any) -> Any:
    """Mark a test of a pool."""
    for mark in POOL_TEST:
        test = mark(test)
    return test


@on_every_loop
async def test_arrays_of_sizes_around_every_limit_come_back_as_they_were_sent() -> None:
    limits = [SHARED_BYTES, STEP_BYTES, 2 * STEP_BYTES, 3 * STEP_BYTES + mmap.PAGESIZE]
    sizes = [limit + more for limit in limits for more in (-8, 0, 8)]
    async with PredictorPool(echoing(), workers=1) as pool:
        for turn in range(2):  # the second time the memory is there already
            for number, size in enumerate(sizes):
                array = numbers(size, seed=number + 100 * turn)
                assert np.array_equal(await pool.predict(array), array)
                if not turn:
                    assert bool(memory_of(buffer_of(pool))) == (size >= SHARED_BYTES)


@on_every_loop
@both_pools
async def test_sizes_in_any_order_grow_the_buffer_and_come_back() -> None:
    chance = random.Random(3)
    async with PredictorPool(echoing(), workers=1) as pool:
        for number in range(20):
            array = numbers(8 * chance.randrange(1, 3 * MB // 8), seed=number)
            assert np.array_equal(await pool.predict(array), array)


@on_every_loop
async def test_columns_of_all_kinds_share_a_large_request() -> None:
    rows = 3
    features = {
        "image": numbers(rows * MB).view(np.uint8).reshape(rows, 1024, 1024),
        "word": np.array(["", "ä" * 100_000, "b"], object),
        "embedding": np.random.default_rng(1).normal(size=(rows, 70_001)).astype(np.float32),
        "key": np.array([b"x", b"", b"y" * 70_000], object),
        "score": np.array([1.5, -0.0, np.inf]),
    }
    async with PredictorPool(echoing(), workers=1) as pool:
        for _ in range(2):
            outputs = await pool.predict(features)
            assert memory_of(buffer_of(pool)) >= rows * MB
            for name, values in features.items():
                assert outputs[name].dtype == values.dtype
                assert np.array_equal(outputs[name], values)


@on_every_loop
@pytest.mark.parametrize("width", [20, 2500, 25_000])
async def test_requests_that_are_large_only_together_share_it_and_get_their_own(
    stage: Stage, width: int
) -> None:
    requests = 1 + 2 * SHARED_BYTES // (8 * width)
    async with PredictorPool(
        held(stage), workers=1, max_batch_size=requests, max_waiting=None
    ) as pool:
        answers: dict[int, Any] = {}

        async def ask(number: int) -> None:
            answers[number] = await pool.predict(np.full((1, width), number + 0.5))

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0)
            assert await stage.hears() == 1
            for number in range(1, requests):
                group.start_soon(ask, number)
            await until_waiting(pool, requests - 1)
            stage.let_go()
            assert await stage.hears() == requests - 1
            assert memory_of(buffer_of(pool)) >= (requests - 1) * 8 * width
            stage.let_go()
        assert len(answers) == requests
        for number, answer in answers.items():
            assert np.array_equal(answer, np.full((1, width), 2 * number + 1.0))


def write_to_it(x: Any) -> Any:
    x[0] = 1
    return x


@on_every_loop
@ONE_LOOP
@pytest.mark.parametrize("size", [8, SHARED_BYTES // 2, SHARED_BYTES])
@both_pools
async def test_features_of_any_size_cannot_be_written_to(size: int) -> None:
    async with PredictorPool(calling(write_to_it), workers=1) as pool:
        with pytest.raises(ValueError, match="read-only"):
            await pool.predict(numbers(size))


@on_every_loop
@ONE_LOOP
@both_pools
async def test_a_predictor_that_writes_to_its_features_is_found_by_the_warm_up() -> None:
    with pytest.raises(WorkerStartError, match="read-only"):
        async with PredictorPool(calling(write_to_it), workers=1, warmup=[1.0, 2.0]):
            pass


@on_every_loop
async def test_the_loop_turns_between_two_steps_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, size = 0, 16 * MB
    at_step: list[int] = []
    step = Copy.step

    def noted(copy: Copy) -> bool:
        at_step.append(turns)
        return step(copy)

    monkeypatch.setattr(Copy, "step", noted)
    async with PredictorPool(calling(lambda x: x[-1:]), workers=1) as pool:
        array = np.arange(size // 8)
        done = anyio.Event()

        async def ask() -> None:
            assert await pool.predict(array) == [size // 8 - 1]
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not done.is_set():
                await anyio.lowlevel.checkpoint()
                turns += 1
        assert len(at_step) == size // STEP_BYTES
        # Every other one, because within a turn trio runs tasks in any order.
        assert all(before < after for before, after in pairwise(at_step[::2]))


@on_every_loop
async def test_the_memory_has_no_name_in_the_file_system() -> None:
    async with PredictorPool(echoing(), workers=1) as pool:
        for _ in range(2):
            await pool.predict(numbers(2 * MB))
        for pid in (os.getpid(), *pids_of(pool)):
            mapped = mapped_by(pid)
            assert any(name.startswith("/memfd:predictpool-buffer") for name in mapped)
            assert not any(name.startswith("/dev/shm") for name in mapped)


def build_echo() -> Any:
    import tensorflow as tf

    given = tf.keras.Input((50_000,))
    return tf.keras.Model(given, given)


@needs.tensorflow
@ONE_LOOP
@pytest.mark.anyio
@pytest.mark.timeout(300)  # TensorFlow on a busy machine
async def test_a_model_that_returns_what_it_is_given_returns_each_its_own() -> None:
    requests = [
        np.random.default_rng(number).normal(size=(1 + number % 3, 50_000)).astype(np.float32)
        for number in range(9)
    ]
    async with PredictorPool(KerasPredictor(build_echo), workers=1) as pool:
        answers = [await pool.predict(request) for request in requests]
        assert memory_of(buffer_of(pool))
    for request, answer in zip(requests, answers, strict=True):
        assert np.array_equal(answer, request)


# --- deaths and departures ---------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many steps for one request that a test can come between."""
    monkeypatch.setattr(shared_buffer_module, "STEP_BYTES", mmap.PAGESIZE)


def copying(pool: PredictorPool[Any]) -> bool:
    """Whether a request has been copied in part."""
    handle = handle_of(pool)
    return bool(handle._channel._waiting) and handle._buffer._size > mmap.PAGESIZE


@on_every_loop
@pytest.mark.faults
@pytest.mark.usefixtures("small_steps")
async def test_a_worker_killed_while_its_request_is_copied_is_replaced() -> None:
    array = numbers(8 * MB)
    async with PredictorPool(doubling(), workers=1) as pool:

        async def kill() -> None:
            await until(lambda: copying(pool))
            (pid,) = pids_of(pool)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not copying_in(old))

        old = handle_of(pool)

        def copying_in(handle: LocalWorker) -> bool:
            return bool(handle._channel._waiting)

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            assert np.array_equal(await pool.predict(array), array * 2)
        assert pool.statistics().restarts == 1
        assert handle_of(pool) is not old


@on_every_loop
@pytest.mark.faults
async def test_a_worker_killed_while_it_runs_a_large_request_is_replaced(stage: Stage) -> None:
    array = numbers(4 * MB).reshape(-1, 1024)
    async with PredictorPool(held(stage), workers=1) as pool:

        async def kill() -> None:
            await stage.hears()
            (pid,) = pids_of(pool)
            os.kill(pid, signal.SIGKILL)
            await stage.hears()
            stage.let_go()

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            assert np.array_equal(await pool.predict(array), array * 2)
        assert pool.statistics().restarts == 1


@on_every_loop
@pytest.mark.usefixtures("small_steps")
async def test_a_caller_that_goes_while_its_request_is_copied_harms_nobody() -> None:
    gone, later = numbers(4 * MB, seed=1), numbers(4 * MB, seed=2)
    async with PredictorPool(doubling(), workers=1) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, gone)
            await until(lambda: copying(pool))
            group.cancel_scope.cancel()
        assert copying(pool)
        assert np.array_equal(await pool.predict(later), later * 2)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert not buffer_of(pool)._taken
        assert pool.statistics().cancelled == 1


@on_every_loop
@pytest.mark.usefixtures("small_steps")
async def test_what_is_sent_behind_a_copy_comes_behind_it(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, grace_period=5) as pool:
        array = numbers(2 * MB)

        async def ask() -> None:
            assert np.array_equal(await pool.predict(array), array * 2)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(lambda: copying(pool))
            handle_of(pool).stop()  # it would end before it has answered
            assert await stage.hears() == len(array)
            assert pool.statistics().restarts == 0
            stage.let_go()


@on_every_loop
@pytest.mark.faults
async def test_restarts_leave_no_descriptor_of_a_buffer_behind() -> None:
    array = numbers(MB)
    async with PredictorPool(doubling(), workers=1) as pool:
        counts = set()
        for restarts in range(4):
            for _ in range(2):
                assert np.array_equal(await pool.predict(array), array * 2)
            counts.add(len(names_in("/proc/self/fd")))
            old = handle_of(pool)
            os.kill(old.pid, signal.SIGKILL)
            await until(lambda restarts=restarts: pool.statistics().restarts > restarts)  # type: ignore[misc]
            await pool.wait_ready()
        assert len(counts) == 1


# --- memory ------------------------------------------------------------------------


@on_every_loop
async def test_memory_that_nothing_uses_any_more_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_buffer_module, "KEEP_SECONDS", 0.0)
    array = numbers(3 * STEP_BYTES + 8)
    async with PredictorPool(echoing(), workers=1) as pool:
        for _ in range(3):
            assert np.array_equal(await pool.predict(array), array)
            buffer = buffer_of(pool)
            await until(lambda buffer=buffer: not memory_of(buffer))  # type: ignore[misc]


@on_every_loop
async def test_giving_back_does_not_stop_who_comes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_buffer_module, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(shared_buffer_module, "STEP_BYTES", mmap.PAGESIZE)
    async with PredictorPool(echoing(), workers=1) as pool:
        for number in range(6):
            array = numbers(2 * MB, seed=number)
            assert np.array_equal(await pool.predict(array), array)
            buffer = buffer_of(pool)
            await until(lambda buffer=buffer: buffer._size < 2 * MB)  # type: ignore[misc]


def refuse(*_: object, **__: object) -> Any:
    """Stand in for a kernel without memory for one more mapping."""
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Have the kernel refuse this process larger files; the signal for it Python ignores."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@on_every_loop
async def test_without_memory_to_share_large_arrays_are_sent_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    array = numbers(3 * STEP_BYTES)
    async with PredictorPool(echoing(), workers=1) as pool:
        with files_no_larger_than(2 * STEP_BYTES + 1000):
            for _ in range(3):
                assert np.array_equal(await pool.predict(array), array)
        assert caplog.text.count("no memory is shared") == 1
        assert os.strerror(errno.EFBIG) in caplog.text


@on_every_loop
async def test_memory_that_cannot_be_mapped_is_not_shared(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(STEP_BYTES)

    async with PredictorPool(echoing(), workers=1) as pool:
        assert np.array_equal(await pool.predict(array), array)
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", refuse)
            for _ in range(3):
                assert np.array_equal(await pool.predict(array), array)
        assert caplog.text.count("no memory is shared") == 1


@on_every_loop
async def test_after_it_was_given_back_memory_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_buffer_module, "KEEP_SECONDS", 0.0)
    array = numbers(3 * STEP_BYTES)
    async with PredictorPool(echoing(), workers=1) as pool:
        with files_no_larger_than(2 * STEP_BYTES):
            assert np.array_equal(await pool.predict(array), array)
        buffer = buffer_of(pool)
        await until(lambda: not buffer._no_memory)
        monkeypatch.setattr(shared_buffer_module, "KEEP_SECONDS", 1000.0)
        assert np.array_equal(await pool.predict(array), array)
        assert memory_of(buffer) >= 3 * STEP_BYTES


@on_every_loop
async def test_memory_that_cannot_be_given_back_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(STEP_BYTES)
    async with PredictorPool(echoing(), workers=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", refuse)
            patch.setattr(shared_buffer_module, "KEEP_SECONDS", 0.0)
            assert np.array_equal(await pool.predict(array), array)
            buffer = buffer_of(pool)
            await until(lambda: buffer._no_memory)
            assert memory_of(buffer) >= STEP_BYTES
            patch.undo()
            patch.setattr(shared_buffer_module, "KEEP_SECONDS", 0.0)
            await until(lambda: not buffer._no_memory)
        assert not memory_of(buffer)
        assert caplog.text.count("no memory is shared") == 1


# --- without a pool ----------------------------------------------------------------


class ByHand:
    """An event loop whose one timer the test rings."""

    def __init__(self) -> None:
        self.callback: Callable[[], None] | None = None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        """Keep the callback."""
        assert self.callback is None
        self.callback = callback
        return self

    def cancel(self) -> None:
        """Do not ring."""
        self.callback = None

    def ring(self) -> None:
        """Let the time pass for which a timer was set."""
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class BothEnds:
    """A buffer, and the worker's end of it in the same process."""

    def __init__(self) -> None:
        self.hand = ByHand()
        backend: Any = self.hand
        descriptor = create_memory()
        self.buffer = SharedBuffer(backend, descriptor)
        self.reader = _SharedMemory(descriptor)
        self.count = 0
        self.under_way: dict[int, tuple[Copy, bytes]] = {}

    def send(self, parts: list[bytes]) -> None:
        """Copy a batch into it, as far as one step."""
        self.count += 1
        copy = Copy(self.buffer, self.count, parts, sum(map(len, parts)))
        while not copy.step():
            pass
        self.under_way[self.count] = copy, b"".join(parts)

    def read(self, batch_id: int) -> bytes:
        """Return a batch as its worker sees it."""
        copy, expected = self.under_way[batch_id]
        assert copy.offset is not None
        where = SHARED.pack(copy.offset, len(expected))
        frame = Frame(Kind.PREDICT, batch_id, 1, False, True, b"", memoryview(where))
        return bytes(self.reader.payload(frame))

    def close(self) -> None:
        """Close it."""
        self.buffer.close()


PART = st.integers(0, 3 * mmap.PAGESIZE).map(lambda size: random.Random(size).randbytes(size))
STEP = st.lists(PART, min_size=1, max_size=4) | st.just("answer") | st.just("time passes")


@settings(deadline=None)  # how long an example takes is no promise
@given(st.lists(STEP, max_size=30))
def test_whatever_is_under_way_each_batch_is_read_as_it_was_written(steps: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_buffer_module, "STEP_BYTES", 2 * mmap.PAGESIZE)
        patch.setattr(shared_buffer_module, "SNAPSHOT_BYTES", mmap.PAGESIZE)
        ends = BothEnds()
        try:
            for step in steps:
                if step == "time passes":
                    ends.hand.ring()
                elif step != "answer":
                    if any(step):  # a batch without bytes is not large
                        ends.send(step)
                elif ends.under_way:
                    oldest = min(ends.under_way)
                    assert ends.read(oldest) == ends.under_way[oldest][1]
                    ends.buffer.release(oldest)
                    del ends.under_way[oldest]
            for batch_id, (_, expected) in ends.under_way.items():
                assert ends.read(batch_id) == expected
                ends.buffer.release(batch_id)
            while ends.hand.callback is not None:
                ends.hand.ring()
            assert not memory_of(ends.buffer)
        finally:
            ends.close()


def test_a_place_is_free_only_when_its_batch_was_answered() -> None:
    page = mmap.PAGESIZE
    ends = BothEnds()
    take, release = ends.buffer.take, ends.buffer.release
    assert take(1, 2 * page) == 0
    assert take(2, page) == 2 * page
    release(1)
    assert take(3, page + 1) == 0
    assert take(4, page) == 3 * page
    release(3)
    assert take(5, 2 * page + 1) == 4 * page
    ends.close()


def test_the_file_cannot_be_made_smaller_under_a_worker() -> None:
    descriptor = create_memory()
    os.ftruncate(descriptor, 2 * mmap.PAGESIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, mmap.PAGESIZE)
    os.close(descriptor)


def test_much_memory_is_let_go_of_in_steps() -> None:
    ends = BothEnds()
    observer = os.dup(ends.buffer._descriptor)
    ends.send([bytes(16 * MB)])
    ends.close()
    turns = 0
    while ends.hand.callback is not None:
        left = os.fstat(observer).st_blocks
        ends.hand.ring()
        turns += 1
        assert 0 <= left - os.fstat(observer).st_blocks <= STEP_BYTES // 512
    assert turns >= 8
    assert ends.buffer._mapping is None
    assert ends.buffer._descriptor == -1
    os.close(observer)


def test_without_a_loop_memory_is_let_go_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = BothEnds()
    ends.send([bytes(16 * MB)])

    def closed(*_: object) -> Any:
        raise RuntimeError("the loop is closed")

    monkeypatch.setattr(ends.hand, "call_later", closed)
    ends.close()
    assert ends.buffer._mapping is None
    assert ends.buffer._descriptor == -1


def test_a_closed_buffer_has_no_timer_left() -> None:
    ends = BothEnds()
    ends.send([bytes(MB)])
    ends.buffer.release(1)
    assert ends.hand.callback is not None
    ends.close()
    assert ends.hand.callback is None
