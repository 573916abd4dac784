"""However the application ends, one second later no process of its pool is left."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import trio

from predictpool import PredictorPool
from tests.conftest import Family
from tests.pools import both_pools, doubling

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(60),
    pytest.mark.usefixtures("nothing_left"),
]

APPLICATION = """
import ctypes, os, sys, time
import anyio
from predictpool import FunctionPredictor, PredictorPool

state = sys.argv[1]
loop = sys.argv[2]

def say(text):
    os.write(2, text.encode() + b"\\n")

def load():
    if state == "load":
        say("there")
        time.sleep(1000)
    if state == "load in C":
        say("there")
        ctypes.PyDLL(None).sleep(1000)
    if state == "setsid":
        os.setsid()
    def predict(x):
        if state == "GIL":
            say("there")
            ctypes.PyDLL(None).sleep(1000)
        if state == "forked":
            if os.fork() == 0:
                time.sleep(1000)
        return x * 2
    return predict

async def ask(pool):
    while True:
        await pool.predict([1.0])

async def main():
    if state == "first":
        # The loop's own thread starts the template, and then ends.
        say("there")
    async with PredictorPool(FunctionPredictor(load), workers=2, timeout=None) as pool:
        await pool.wait_ready()
        if state == "fork()":
            if os.fork() == 0:
                time.sleep(1000)
        async with anyio.create_task_group() as group:
            if state in ("GIL", "load"):
                group.start_soon(pool.predict, [1.0])
            if state == "busy":
                for _ in range(20):
                    group.start_soon(ask, pool)
                await anyio.sleep(0.05)
            if state == "forked":
                await pool.predict([1.0])
            if state != "GIL":
                say("there")
            if "exit" in sys.argv:
                os._exit(3)
            if "segfault" in sys.argv:
                ctypes.string_at(0)
            await anyio.sleep_forever()

anyio.run(main, backend=loop)
"""


@contextmanager
def application(*arguments: str) -> Iterator[int]:
    """Run an application until it is where the test wants it, and yield its pid."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", APPLICATION, *arguments], stderr=write, start_new_session=True
    )
    os.close(write)
    try:
        said = b""
        while b"there" not in said:
            assert select.select([read], [], [], 30)[0], said
            data = os.read(read, 4096)
            assert data, said
            said += data
        yield process.pid
    finally:
        process.kill()
        process.wait()
        os.close(read)


loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@loops
@pytest.mark.parametrize(
    "state", ["idle", "busy", "load", "load in C", "GIL", "setsid", "forked", "fork()"]
)
def test_no_process_is_left_one_second_after_a_kill_of_the_application(
    state: str, loop: str, nothing_left: Family
) -> None:
    with application(state, loop) as pid:
        family = set(nothing_left.pids()) - {pid}
        assert len(family) >= 2
        copies = {p for p in family if is_copy(p)}
        assert len(copies) == (state == "fork()")
        os.kill(pid, signal.SIGKILL)
        wait_for_end(family - copies)
        for copy in copies:  # a copy of the application is not the pool's to end
            os.kill(copy, signal.SIGKILL)
        wait_for_end(copies)


def is_copy(pid: int) -> bool:
    command: list[str] = psutil.Process(pid).cmdline()
    return command[1] == "-c"


def wait_for_end(pids: set[int]) -> None:
    """Fail unless all of them are gone within a second; a generous one on a busy machine."""
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=1)
    alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not alive


@loops
@pytest.mark.parametrize("how", ["exit", "segfault"])
def test_no_process_is_left_after_the_application_ended_itself(
    how: str, loop: str, nothing_left: Family
) -> None:
    with application("idle", loop, how):
        assert nothing_left.gone_within(2)  # its own end, and a second


@pytest.mark.parametrize("state", ["idle", "GIL"])
def test_no_worker_is_left_where_the_template_was_killed_first(
    state: str, nothing_left: Family
) -> None:
    with application(state, "asyncio") as pid:
        (template,) = psutil.Process(pid).children()
        workers = set(nothing_left.pids()) - {pid, template.pid}
        template.kill()
        wait_for_end({template.pid})
        assert all(psutil.pid_exists(worker) for worker in workers)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(workers)


def test_no_process_is_left_when_the_application_is_killed_while_the_first_worker_starts(
    nothing_left: Family,
) -> None:
    with application("first", "asyncio") as pid:
        os.kill(pid, signal.SIGKILL)
        assert nothing_left.gone_within(1.5)


def test_the_template_leads_a_process_group_of_its_own(nothing_left: Family) -> None:
    with application("idle", "asyncio") as pid:
        others = set(nothing_left.pids()) - {pid}
        (group,) = {os.getpgid(other) for other in others}
        assert group in others
        assert group != os.getpgid(pid)


# --- a loop that ends, or a pool that is forgotten ---------------------------------


async def forgotten() -> Any:
    pool = PredictorPool(doubling(), workers=1)
    await pool.open()
    return pool


@pytest.mark.parametrize("run", ["asyncio", "trio"])
@both_pools
def test_a_loop_that_ends_without_aclose_ends_the_processes_with_it(
    run: str, nothing_left: Family
) -> None:
    pool = asyncio.run(forgotten()) if run == "asyncio" else trio.run(forgotten)
    assert nothing_left.gone_within(1)
    with pytest.warns(ResourceWarning, match="open, 0/1 workers ready.* was never"):  # noqa: PT031
        del pool
        gc.collect()


@pytest.mark.parametrize("run", ["asyncio", "trio"])
def test_a_pool_that_nobody_holds_warns_and_ends_its_processes(
    run: str, nothing_left: Family
) -> None:
    async def main() -> None:
        pool = await forgotten()
        assert nothing_left.pids()
        with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031
            del pool
            gc.collect()
        assert nothing_left.gone_within(1)

    if run == "asyncio":
        asyncio.run(main())
    else:
        trio.run(main)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@both_pools
def test_a_pool_whose_loop_was_closed_under_it_ends_its_processes(
    nothing_left: Family, busy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(forgotten())
    if busy:
        asking = loop.create_task(pool.predict([1.0], timeout=None))
        loop.run_until_complete(asyncio.sleep(0))
        asking.cancel()
        loop.run_until_complete(asyncio.wait([asking]))
        del asking
    loop.close()
    with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031
        del pool
        gc.collect()
    assert nothing_left.gone_within(1)
    del loop
    gc.collect()
    # What asyncio itself says of a task that a closed loop has left behind.
    assert all("was destroyed but it is pending" in r.getMessage() for r in caplog.records)


def test_an_interpreter_that_ends_with_an_open_pool_ends_in_silence(
    nothing_left: Family,
) -> None:
    script = """
import asyncio
from predictpool import FunctionPredictor, PredictorPool
pool = PredictorPool(FunctionPredictor(lambda: lambda x: x), workers=1)
async def main():
    await pool.open()
    print((await pool.predict([1.0])).tolist())
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "[1.0]\n"
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert nothing_left.gone_within(1)
