"""A pool is a good guest in its application: it leaves alone what is not its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import trio

from predictpool import FunctionPredictor, PredictorPool
from predictpool._channel import Channel
from predictpool._launcher import End
from predictpool._slot import Worker
from tests.conftest import Family, descriptors
from tests.pools import ONE_LOOP, POOL_TEST, TWO_LOOPS, calling, doubling, held, naming_pids, until
from tests.stage import Stage

pytestmark = POOL_TEST


async def test_signal_handlers_and_the_start_method_are_untouched() -> None:
    def manners() -> Any:
        return (
            {number: signal.getsignal(number) for number in signal.valid_signals()},
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            multiprocessing.get_start_method(allow_none=True),
            dict(os.environ),
            sys.path[:],
            os.getcwd(),  # noqa: PTH109 - as the test's own look, no path is needed
        )

    before = manners()
    async with PredictorPool(doubling(), workers=2) as pool:
        await pool.wait_ready()
        assert manners() == before
        await pool.predict([1.0])
    assert manners() == before


async def test_exit_codes_of_the_applications_own_processes_are_intact(stage: Stage) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        for code in (0, 3, 42):
            own = await anyio.run_process(
                [sys.executable, "-c", f"raise SystemExit({code})"], check=False
            )
            assert own.returncode == code
            os.kill(await stage.hears(), signal.SIGKILL)  # a worker's end is not theirs
            assert (await pool.predict([1.0])).tolist() == [2.0]


async def test_an_application_that_reaps_all_its_children_is_no_trouble(
    stage: Stage, nothing_left: Family
) -> None:
    def reap() -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        worker = await stage.hears()
        (template,) = set(nothing_left.pids()) - {worker}
        for pid in (template, worker):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: template not in nothing_left.pids())
        reap()
        assert (await pool.predict([1.0])).tolist() == [2.0]
        reap()
    reap()
    assert nothing_left.gone_within(1)


async def test_two_pools_do_not_know_of_each_other() -> None:
    async with (
        PredictorPool(calling(lambda x: x * 2), workers=1) as one,
        PredictorPool(calling(lambda x: x * 3), workers=1) as two,
    ):
        assert (await one.predict([1.0])).tolist() == [2.0]
        assert (await two.predict([1.0])).tolist() == [3.0]
        await one.aclose()
        assert (await two.predict([1.0])).tolist() == [3.0]


@ONE_LOOP
async def test_loops_in_several_threads_have_their_own_pools(nothing_left: Family) -> None:
    answers: list[float] = []

    async def main() -> None:
        async with PredictorPool(doubling(), workers=1) as pool:
            for value in range(50):
                answers.extend(await pool.predict([float(value)]))

    runs: list[Callable[[], object]] = [lambda: asyncio.run(main()), lambda: trio.run(main)]
    threads = [threading.Thread(target=run) for run in runs * 2]
    for thread in threads:
        thread.start()
    await until(lambda: not any(thread.is_alive() for thread in threads))
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted([2.0 * value for value in range(50)] * 4)
    assert nothing_left.gone_within(1)


def test_a_pool_outlives_the_thread_that_ran_its_opening() -> None:
    loop = asyncio.new_event_loop()
    pool = PredictorPool(doubling(), workers=1)
    opener = threading.Thread(target=lambda: loop.run_until_complete(pool.open()))
    opener.start()
    opener.join()
    answer = loop.run_until_complete(pool.predict([1.0]))
    assert answer.tolist() == [2.0]
    loop.run_until_complete(pool.aclose())
    loop.close()


def descriptor_kinds() -> Counter[str]:
    return Counter(target.split(":")[0] for target in descriptors().values())


async def test_a_forked_copy_of_the_application_holds_nothing_of_the_pool(stage: Stage) -> None:
    before = descriptor_kinds()
    async with PredictorPool(held(stage), workers=1) as pool, anyio.create_task_group() as group:
        group.start_soon(pool.predict, [1.0])
        await stage.hears()
        read, write = os.pipe()
        copy = os.fork()
        if copy == 0:  # only plain calls in here: the event loop is the parent's
            kinds = descriptor_kinds()
            os.write(write, b"%d %d" % (kinds["socket"], kinds["pipe"]))
            os._exit(0)
        os.waitpid(copy, 0)  # noqa: ASYNC222 - it ends at once
        sockets, pipes = map(int, os.read(read, 100).split())
        os.close(read)
        os.close(write)
        assert sockets == before["socket"]
        assert pipes == before["pipe"] + 2  # those of the test
        stage.let_go(5)
        assert (await pool.predict([2.0])).tolist() == [4.0]


@ONE_LOOP
@pytest.mark.parametrize("kind", ["print", "os.write", "printf", "a megabyte"])
async def test_what_a_model_prints_never_reaches_the_protocol(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def predict(x: Any) -> Any:
        if kind == "print":
            print("said", flush=True)  # noqa: T201 - that is the point
        elif kind == "os.write":
            os.write(1, b"said\n")
        elif kind == "printf":
            libc = ctypes.CDLL(None)
            libc.printf(b"said\n")
            libc.fflush(None)
        else:
            os.write(2, b"said" * 250_000)
        return x * 2

    async with PredictorPool(calling(predict), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
    captured = capfd.readouterr()
    assert "said" in captured.out + captured.err


@contextlib.contextmanager
def stdin_of_a_terminal() -> Iterator[None]:
    """Have something else on stdin than the /dev/null that pytest puts there."""
    saved = os.dup(0)
    read, write = os.pipe()
    os.dup2(read, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        for descriptor in (saved, read, write):
            os.close(descriptor)


@ONE_LOOP
async def test_a_workers_stdin_is_dev_null_and_its_descriptors_are_its_own() -> None:
    def predict(_: Any) -> Any:
        links = []
        for link in sorted(Path("/proc/self/fd").iterdir(), key=lambda link: int(link.name)):
            with contextlib.suppress(OSError):
                links.append(str(link.readlink()).split(":")[0])
        return links

    with stdin_of_a_terminal():
        async with PredictorPool(calling(predict), workers=2) as pool:
            await pool.wait_ready()
            links = await pool.predict([1.0])
    assert links[0] == "/dev/null"
    assert links.count("socket") == 1  # no other worker's, not the template's
    assert links.count("pipe") <= 3  # the lifeline, and what pytest may have for output
    assert "anon_inode" not in links


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_of_the_terminal_do_not_end_workers(
    stage: Stage, nothing_left: Family, number: int
) -> None:
    async with PredictorPool(held(stage), workers=1) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.predict, [1.0])
            await stage.hears()
            for pid in nothing_left.pids():
                os.kill(pid, number)
            stage.let_go(5)
        assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().restarts == 0


@ONE_LOOP
async def test_children_of_a_model_get_the_default_signal_handlers() -> None:
    def predict(_: Any) -> Any:
        ignored = subprocess.run(
            ["/bin/sh", "-c", "grep SigIgn /proc/self/status"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [int(ignored.split()[1], 16)]

    async with PredictorPool(calling(predict), workers=1) as pool:
        (ignored,) = await pool.predict([1.0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not ignored & 1 << (number - 1)


@pytest.mark.faults
def test_ctrl_c_ends_the_application_in_good_order_and_answers_what_runs(
    nothing_left: Family,
) -> None:
    script = """
import asyncio, os, sys
from predictpool import FunctionPredictor, PredictorPool

def load():
    def predict(x):
        os.write(2, b"running\\n")
        import time
        time.sleep(0.3)
        return x * 2
    return predict

async def main():
    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        asking = asyncio.create_task(pool.predict([1.0]))
        try:
            await asyncio.Event().wait()
        finally:
            print((await asking).tolist(), flush=True)

asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"running\n"
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does it
    out, err = process.communicate(timeout=20)
    assert out == b"[2.0]\n"
    assert b"predictpool" not in err  # what asyncio says of Ctrl-C is all
    assert err.strip().endswith(b"KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    assert nothing_left.gone_within(1)


# --- numbers of file descriptors ---------------------------------------------------


class Taken:
    """The numbers of a dead worker's descriptors, in use by the application at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.numbers: list[int] = []
        close = Channel.close

        def close_and_take(channel: Channel) -> None:
            number = channel._connection.fileno()
            close(channel)
            if number >= 0:
                self.take(number)

        monkeypatch.setattr(Channel, "close", close_and_take)
        ended = Worker.ended

        def end_and_take(worker: Worker, end: End) -> None:
            handle: Any = worker.handle  # its pidfd and its report have just been closed
            for number in (handle._pidfd, handle._report):
                self.take(number)
            ended(worker, end)

        monkeypatch.setattr(Worker, "ended", end_and_take)

    def take(self, number: int) -> None:
        """Give a number that has just become free to our own socket."""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        os.dup2(self.ours.fileno(), number)
        self.numbers.append(number)

    def close(self) -> None:
        """Give the numbers back."""
        for number in self.numbers:
            os.close(number)
        self.ours.close()
        self.theirs.close()


@pytest.mark.faults
async def test_a_dead_workers_descriptor_numbers_may_be_used_by_the_application_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def watch(number: int) -> None:
        await anyio.wait_readable(number)

    async with PredictorPool(naming_pids(stage), workers=1) as pool:
        with monkeypatch.context() as patch:
            taken = Taken(patch)
            for lives in range(3):
                os.kill(await stage.hears(), signal.SIGKILL)
                assert (await pool.predict([1.0])).tolist() == [2.0]
                assert len(taken.numbers) == 3 * (lives + 1)
                async with anyio.create_task_group() as group:
                    for number in taken.numbers:  # they can be watched like any other
                        group.start_soon(watch, number)
                    await anyio.wait_all_tasks_blocked()
                    taken.theirs.send(b"for the application")
                # Neither the old watches nor the new worker have read what is not theirs.
                assert taken.ours.recv(100) == b"for the application"
                assert (await pool.predict([2.0])).tolist() == [4.0]
        taken.close()


# --- resources ---------------------------------------------------------------------


def resources() -> tuple[int, int, int, list[str]]:
    gc.collect()
    # anyio's test runner for trio has a thread, which trio ends some seconds later.
    threads = [thread.name for thread in threading.enumerate() if "Trio" not in thread.name]
    return (
        len(descriptors()),
        len(threads),
        len(psutil.Process().children(recursive=True)),
        sorted(path.name for path in Path("/dev/shm").iterdir() if not _is_others(path.name)),
    )


def _is_others(name: str) -> bool:
    # Of multiprocessing, Ray and joblib, in tests that run beside this one; the pool uses none.
    return name.startswith(("sem.", "psm_", "plasma", "loky-", "joblib_"))


def memory() -> int:
    """Return the bytes of memory that this process has."""
    gc.collect()
    size: int = psutil.Process().memory_info().rss
    return size


# What the allocator may keep; a leak of one worker's things in each round would be more.
SLACK = 4_000_000


@TWO_LOOPS
async def test_opening_and_closing_twenty_times_leaves_nothing() -> None:
    async def open_and_close() -> None:
        async with PredictorPool(doubling(), workers=1) as pool:
            await pool.predict([1.0])

    for _ in range(3):
        await open_and_close()
    before, memory_before = resources(), memory()
    for _ in range(20):
        await open_and_close()
    assert resources() == before
    assert memory() < memory_before + SLACK


@TWO_LOOPS
@pytest.mark.faults
async def test_a_hundred_restarts_leave_nothing(stage: Stage) -> None:
    async with PredictorPool(naming_pids(stage), workers=1) as pool:

        async def restart() -> None:
            os.kill(await stage.hears(), signal.SIGKILL)
            await pool.predict([1.0])

        for _ in range(10):
            await restart()
        before, memory_before = resources(), memory()
        for _ in range(100):
            await restart()
        assert pool.statistics().restarts == 110
        assert resources() == before
        assert memory() < memory_before + SLACK


async def test_a_pool_that_opens_in_vain_leaves_nothing() -> None:
    def load() -> Any:
        raise ValueError

    before = resources()
    for _ in range(5):
        with contextlib.suppress(Exception):
            await PredictorPool(FunctionPredictor(load), workers=2).open()
    assert resources() == before
