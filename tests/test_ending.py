"""A pool ends whole: whenever its end is interrupted, and whatever its workers do meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import trio

from predictpool import FunctionPredictor, LocalLauncher, PoolClosed, PredictorPool
from predictpool import _slot as slot_module
from tests.conftest import Family
from tests.misbehaviour import (
    PRELOAD,
    Parting,
    block_all_signals,
    exit_1,
    hang_in_c,
    ignore_all_signals,
    leave_the_session,
    raise_an_error,
    resist_all_in_all,
    segfault,
    stop_myself,
)
from tests.pools import ONE_LOOP, POOL_TEST, TWO_LOOPS, adds_up, held, naming_pids, pids_of, until
from tests.stage import Stage

faults = pytest.mark.faults
pytestmark = POOL_TEST


def running() -> set[object]:
    """What runs besides the test itself: our children, and what is in the event loop."""
    return {*children(), *background()}


def background() -> set[object]:
    try:
        return {step for step in asyncio.all_tasks() if step is not asyncio.current_task()}
    except RuntimeError:  # it is trio
        root = trio.lowlevel.current_root_task()
        assert root is not None
        found = {child for nursery in root.child_nurseries for child in nursery.child_tasks}
        return {child for child in found if child.name.startswith("predictpool")}


class Callers:
    """Callers in the background, and what they were told."""

    def __init__(self, pool: PredictorPool[Any]) -> None:
        self.pool = pool
        self.told: list[object] = []

    async def ask(self, value: float = 1.0) -> None:
        """Ask, and note the answer or that the pool was closed."""
        try:
            self.told.append((await self.pool.predict([value])).tolist())
        except PoolClosed:
            self.told.append(PoolClosed)


def children() -> set[int]:
    """Our own children, zombies among them."""
    return {child.pid for child in psutil.Process().children()}


async def assert_gone(family: Family, running_before: set[object]) -> None:
    """Fail if a process is left, be it as a zombie, or anything in the event loop."""
    assert family.gone_within(1)
    assert children() <= running_before  # multiprocessing's may be among them
    await until(lambda: running() <= running_before)


# --- aclose is cancelled -----------------------------------------------------------


@types.coroutine
def cancelled_at(
    step: int, work: Awaitable[object], cancel: Callable[[], object]
) -> Generator[Any, Any, bool]:
    """Run something, and cancel it when it waits for the ``step``-th time.

    Returns:
        whether it waited so often.
    """
    running: Any = work.__await__()
    waits = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            wanted = running.send(value) if error is None else running.throw(error)
        except StopIteration:
            return waits > step
        if waits == step:
            cancel()
        waits += 1
        value = error = None
        try:
            value = yield wanted
        except BaseException as thrown:  # noqa: BLE001 - a cancellation goes where it belongs
            error = thrown


async def close_cancelled_at(step: int, pool: PredictorPool[Any], how: str) -> bool:
    """Close a pool, cancelled at a step of it; False if it has not so many steps."""
    if how == "scope":
        with anyio.CancelScope() as scope:
            if step < 0:
                scope.cancel()
            return await cancelled_at(step, pool.aclose(), scope.cancel)
        return True

    async def close() -> bool:
        running = asyncio.current_task()
        assert running is not None
        if step < 0:
            running.cancel()
        return await cancelled_at(step, pool.aclose(), running.cancel)

    closing = asyncio.create_task(close())
    await asyncio.wait([closing])
    return True if closing.cancelled() else closing.result()


@faults
@TWO_LOOPS
@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("let_go", [True, False], ids=["answered", "held"])
async def test_an_aclose_cancelled_at_any_step_ends_all_processes_and_tells_every_caller(
    stage: Stage, nothing_left: Family, how: str, let_go: bool, anyio_backend_name: str
) -> None:
    if how == "native" and anyio_backend_name == "trio":
        pytest.skip("trio cancels by scopes only")
    running_before = running()
    step = -1  # before it waits for the first time
    more = True
    while more:
        pool = PredictorPool(held(stage, row_wise=False), workers=1, grace_period=0.05)
        await pool.open()
        callers = Callers(pool)
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(callers.ask)
            await stage.hears()
            stage.let_go(2 * let_go)
            more = await close_cancelled_at(step, pool, how)
            assert repr(pool) == "<PredictorPool closed>"
        assert len(callers.told) == 2
        assert adds_up(pool)
        await assert_gone(nothing_left, running_before)
        stage.heard()
        step += 1
    assert step >= 4  # drained, parted, its background, its template


def in_trouble(state: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> FunctionPredictor[Any]:
    """A predictor whose second worker is in trouble."""
    folder = stage.door.folder

    class Slow(slot_module.Backoff):
        def __init__(self) -> None:
            super().__init__(first=1000.0, longest=1000.0, tries=1 if state == "given up" else 6)

        def failed(self) -> float | None:
            super().failed()
            return super().failed()  # the first restart would be immediate

    monkeypatch.setattr(slot_module, "Backoff", Slow)

    def load() -> Callable[[Any], Any]:
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            if state == "loading":
                stage.hold("loading")
            raise ValueError("in trouble") from None
        return lambda x: x * 2

    return FunctionPredictor(load)


@faults
@TWO_LOOPS
@pytest.mark.parametrize("state", ["loading", "backing off", "given up"])
async def test_an_aclose_cancelled_while_a_slot_is_in_trouble_leaves_nothing_running(
    state: str,
    stage: Stage,
    nothing_left: Family,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running_before = running()
    pool = PredictorPool(in_trouble(state, stage, monkeypatch), workers=2)
    await pool.open()
    if state == "loading":
        await stage.hears()
    else:
        await until(lambda: "given up" in caplog.text or "in trouble" in caplog.text)
        await anyio.wait_all_tasks_blocked()
    caplog.clear()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.aclose()
    await assert_gone(nothing_left, running_before)
    assert not caplog.records  # what it is to end is no failure


@faults
async def test_an_aclose_cancelled_while_a_template_is_awaited_leaves_nothing_running(
    stage: Stage,
    nothing_left: Family,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running_before = running()
    launcher = LocalLauncher()
    pool = PredictorPool(naming_pids(stage), workers=1, launcher=launcher)
    await pool.open()
    worker = await stage.hears()
    (template,) = set(nothing_left.pids()) - {worker}
    os.kill(template, signal.SIGKILL)
    await until(lambda: launcher._templates[0].gone)
    os.kill(worker, signal.SIGKILL)
    await until(lambda: len(launcher._templates) and not launcher._templates[-1].gone)
    assert not pids_of(pool)  # the second template has not said yet that it is ready
    caplog.clear()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.aclose()
    await assert_gone(nothing_left, running_before)
    assert not caplog.records


# --- workers that die, hang or resist meanwhile ------------------------------------


@faults
async def test_a_worker_that_dies_while_the_pool_drains_is_replaced_and_everyone_answered(
    stage: Stage, nothing_left: Family
) -> None:
    running_before = running()
    pool = PredictorPool(held(stage, row_wise=False), workers=1)
    await pool.open()
    callers = Callers(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(callers.ask, 1.0)
        await stage.hears()
        group.start_soon(callers.ask, 2.0)
        await until(lambda: pool.statistics().waiting)
        group.start_soon(pool.aclose)
        await until(lambda: "closing" in repr(pool))
        os.kill(pids_of(pool)[0], signal.SIGKILL)
        await stage.hears()  # the next worker has the request
        stage.let_go(2)
    assert callers.told == [[2.0], [4.0]]
    assert pool.statistics().restarts == 1
    await assert_gone(nothing_left, running_before)


@faults
@TWO_LOOPS
@pytest.mark.parametrize("part", [exit_1, segfault, raise_an_error, None])
async def test_a_worker_that_dies_while_it_lets_go_of_its_model_does_not_delay_the_end(
    part: Callable[[], object] | None,
    stage: Stage,
    nothing_left: Family,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    running_before = running()
    pool = PredictorPool(Parting(stage, part or exit_1), workers=2, grace_period=None)
    await pool.open()
    await pool.wait_ready()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(pool.aclose)
            for _ in range(2):
                pid = await stage.hears()
                if part is None:
                    os.kill(pid, signal.SIGKILL)
            stage.let_go(2)
    await assert_gone(nothing_left, running_before)
    assert pool.statistics().restarts == 0
    assert not caplog.records
    assert ("do not want" in capfd.readouterr().err) == (part is raise_an_error)


@faults
@TWO_LOOPS
@pytest.mark.parametrize("part", [hang_in_c, stop_myself])
async def test_a_worker_that_hangs_while_it_lets_go_is_killed_after_the_grace_period(
    part: Callable[[], object], stage: Stage, nothing_left: Family
) -> None:
    running_before = running()
    async with PredictorPool(Parting(stage, part), workers=1, grace_period=0.1):
        stage.let_go()
    await stage.hears()
    await assert_gone(nothing_left, running_before)


RESISTANCE = [leave_the_session, block_all_signals, ignore_all_signals, resist_all_in_all]


def deaf_to(pid: int, number: int) -> set[str]:
    """How a process keeps a signal off, as the kernel tells it."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return {name for name in ("SigBlk", "SigIgn") if int(fields[name], 16) & 1 << (number - 1)}


@faults
@ONE_LOOP
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("resist", RESISTANCE)
async def test_no_resistance_of_a_worker_keeps_it_alive_when_the_pool_closes(
    resist: Callable[[], None], busy: bool, stage: Stage, nothing_left: Family
) -> None:
    def load() -> Callable[[Any], Any]:
        resist()

        def predict(_: Any) -> Any:
            stage.say("running")
            hang_in_c()

        return predict

    running_before = running()
    pool = PredictorPool(FunctionPredictor(load, preload=PRELOAD), workers=1, grace_period=0.05)
    await pool.open()
    callers = Callers(pool)
    async with anyio.create_task_group() as group:
        (worker,) = pids_of(pool)
        assert (os.getsid(worker) == worker) == (resist in (leave_the_session, resist_all_in_all))
        if resist is not leave_the_session:
            assert deaf_to(worker, signal.SIGTERM)
        if busy:
            group.start_soon(callers.ask)
            await stage.hears()
        await pool.aclose()
    assert callers.told == [PoolClosed] * busy
    await assert_gone(nothing_left, running_before)


# --- Ctrl-C, twice -----------------------------------------------------------------

IMPATIENT = """
import asyncio, contextlib, os, sys, threading, time
import anyio
from predictpool import FunctionPredictor, PoolClosed, PredictorPool

def load():
    def predict(x):
        os.write(2, b"running\\n")
        time.sleep(1000)
    return predict

def tell_when_it_drains(pool):
    while pool._phase.value != "closing":
        time.sleep(0.001)
    os.write(2, b"draining\\n")

async def main(loop):
    pool = PredictorPool(FunctionPredictor(load), workers=2, grace_period=None, hang_timeout=None)
    threading.Thread(target=tell_when_it_drains, args=(pool,), daemon=True).start()

    async def ask():
        with contextlib.suppress(PoolClosed):
            await pool.predict([1.0], timeout=None)

    async with pool:
        await pool.wait_ready()
        if loop == "trio":  # not in a nursery: Ctrl-C would cancel it, and nothing would be drained
            import trio
            trio.lowlevel.spawn_system_task(ask)
        else:
            asking = asyncio.create_task(ask())
        await anyio.sleep_forever()

loop = sys.argv[1]
anyio.run(
    main,
    loop,
    backend="trio" if loop == "trio" else "asyncio",
    backend_options={"use_uvloop": True} if loop == "uvloop" else {},
)
"""


@faults
@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_second_ctrl_c_ends_the_application_at_once_and_nothing_is_left(
    loop: str, nothing_left: Family
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, loop], stderr=subprocess.PIPE, process_group=0
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"running\n"
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does it
        assert process.stderr.readline() == b"draining\n"
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert err.strip().endswith(b"KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    assert nothing_left.gone_within(1)
