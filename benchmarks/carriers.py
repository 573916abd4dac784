"""The ways to have another process look at a large array, each as it runs in one of its own."""

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.to_process
import numpy as np
from numpy.typing import NDArray

from benchmarks import contenders, raw, trivial
from benchmarks.contenders import LOOPS, Loop
from benchmarks.harness import Orders
from predictpool import FunctionPredictor, PredictorPool

TICK = 0.001

Kind = Literal["raw socket", "pool", "ProcessPoolExecutor", "anyio.to_process", "Ray actors"]
Direction = Literal["in", "out", "lag"]
Array = NDArray[np.float32]
Ask = Callable[[Array], Awaitable[Array]]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """One way to have an array looked at by another process.

    Attributes:
        large_buffers: of a raw socket.
        declared: whether a pool knows the signature, and so looks for NaN.
    """

    kind: Kind
    loop: Loop | None = None
    workers: int = 1
    large_buffers: bool = False
    declared: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.kind == "raw socket":
            return f"raw socket, {'4 MB' if self.large_buffers else 'default'} buffer"
        if self.kind != "pool":
            return self.kind
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"pool, {self.loop}, {workers}" + (", signature declared" if self.declared else "")


FLOORS = (Way("raw socket"), Way("raw socket", large_buffers=True))
DEFAULT = Way("pool", "asyncio", 2)
RAY = Way("Ray actors", "asyncio")


def ways() -> list[Way]:
    """Return the contenders."""
    return [
        *FLOORS,
        DEFAULT,
        *(Way("pool", loop) for loop in LOOPS),
        Way("pool", "asyncio", declared=True),
        Way("ProcessPoolExecutor", "asyncio"),
        Way("anyio.to_process", "asyncio"),
    ]


# --- in a process of its own -------------------------------------------------------


def serve(orders: Orders, way: Way) -> None:
    """Be a contender; see `harness.Contender`.

    It understands ``(direction, bytes, calls)`` and returns how many seconds each call took, or for
    ``"lag"`` how many the ticker was late, each time.
    """
    if way.loop is not None:
        contenders.on_loop(way.loop, serve_asking, orders, _OPENED[way.kind](way))
        return
    orders.reply(None)
    while (order := orders.next()) is not None:
        orders.reply(_ask_raw(way, *order))


async def serve_asking(orders: Orders, opened: AbstractAsyncContextManager[Ask]) -> None:
    """Take orders for what is opened."""
    async with opened as ask:
        await ask(np.ones((1, 2), np.float32))
        orders.reply(None)
        while (order := await contenders.next_order(orders)) is not None:
            direction, size, calls = order
            if direction == "lag":
                orders.reply(await _watch(ask, size, calls))
            else:
                orders.reply(await _ask_in_turn(ask, direction, size, calls))


async def _ask_in_turn(ask: Ask, direction: Direction, size: int, calls: int) -> Seconds:
    messages = _messages(direction, size)
    taken = np.empty(calls, np.int64)
    for call in range(-_warm_up(calls), calls):
        message = messages[call % 2]
        began = time.perf_counter_ns()
        answer = await ask(message)
        taken[call] = time.perf_counter_ns() - began
        check(message, answer)
    return taken / 1e9


async def _watch(ask: Ask, size: int, calls: int) -> Seconds:
    lags: list[int] = []
    going_on = True

    async def tick() -> None:
        while going_on:
            due = time.perf_counter_ns() + int(TICK * 1e9)
            await anyio.sleep(TICK)
            lags.append(time.perf_counter_ns() - due)

    messages = _messages("in", size)
    check(messages[0], await ask(messages[0]))
    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        for call in range(calls):
            await ask(messages[call % 2])
        await anyio.sleep(TICK)
        going_on = False
    return np.array(lags) / 1e9


def _messages(direction: Direction, size: int) -> tuple[Array, Array]:
    """Return two rows, which take turns."""
    count = size // 4
    if direction == "out":
        return np.full((1, 1), count, np.float32), np.full((1, 1), count, np.float32)
    return np.full((1, count), 0.5, np.float32), np.full((1, count), 1.5, np.float32)


def _warm_up(calls: int) -> int:
    return max(1, calls // 5)


def check(message: Array, answer: Array) -> None:
    """Raise RuntimeError unless it is the answer to this message."""
    wanted = trivial.ends(message)
    if answer.shape != wanted.shape or answer[..., -1] != wanted[..., -1]:
        raise RuntimeError(f"the answer to {message} is {answer}, expected {wanted}")


def _ask_raw(way: Way, direction: Direction, size: int, calls: int) -> Seconds:
    messages = _messages(direction, size)
    returned = trivial.ends(messages[0]).nbytes
    taken = np.empty(calls, np.int64)

    def answer(message: memoryview) -> memoryview:
        return _bytes(trivial.ends(np.frombuffer(message, np.float32)[np.newaxis]))

    with raw.process(
        answer, sent=messages[0].nbytes, returned=returned, large_buffers=way.large_buffers
    ) as ask:
        for call in range(-_warm_up(calls), calls):
            message = messages[call % 2]
            began = time.perf_counter_ns()
            given = ask(_bytes(message))
            taken[call] = time.perf_counter_ns() - began
            given_array = np.frombuffer(given, np.float32)
            check(message, given_array if direction == "in" else given_array[np.newaxis])
    return taken / 1e9


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


# --- what is asked -----------------------------------------------------------------


@contextlib.asynccontextmanager
async def _pool(way: Way) -> AsyncIterator[Ask]:
    predictor: FunctionPredictor[Any] = FunctionPredictor(
        trivial.load_ends,
        signature=("f4", (None,)) if way.declared else None,
        preload=("benchmarks.trivial",),
    )
    async with PredictorPool(predictor, workers=way.workers) as pool:
        await pool.wait_ready()
        yield pool.predict


@contextlib.asynccontextmanager
async def _process_pool_executor(_: Way) -> AsyncIterator[Ask]:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(max_workers=1) as executor:

        async def ask(values: Array) -> Array:
            return await loop.run_in_executor(executor, trivial.ends, values)

        yield ask


@contextlib.asynccontextmanager
async def _to_process(_: Way) -> AsyncIterator[Ask]:
    async def ask(values: Array) -> Array:
        return await anyio.to_process.run_sync(trivial.ends, values)

    yield ask


def _ray_actors(_: Way) -> AbstractAsyncContextManager[Ask]:
    # It can be imported only in Ray's environment.
    ray_actors = importlib.import_module("benchmarks.peers.ray_actors")
    opened: AbstractAsyncContextManager[Ask] = ray_actors.opened_large()
    return opened


_OPENED: dict[Kind, Callable[[Way], AbstractAsyncContextManager[Ask]]] = {
    "pool": _pool,
    "ProcessPoolExecutor": _process_pool_executor,
    "anyio.to_process": _to_process,
    "Ray actors": _ray_actors,
}
