"""A closed loop: so many callers, each of which asks again as soon as it is answered.

Each caller is one task for the whole run, so what the loop costs is a clock read twice and a row
taken from a list. A ticker in the same event loop shows how long anything else there has to wait.
"""

import contextlib
import itertools
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import psutil

from benchmarks import figures

TICK = 0.001
PATIENCE = 60.0

Ask = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True)
class Outcome:
    """What came of one run; the warm-up does not count.

    Attributes:
        calls: answers that came within ``seconds``.
        seconds: how long the clock ran.
        p50_seconds, p99_seconds: of a call.
        lag_p99_seconds: how much later than due a ticker of 1 ms ran. An event loop on epoll is up
            to 1 ms late with nothing else to do. None where there is no event loop.
        cpu_seconds: user and system, of this process and of its descendants; those that
            ended meanwhile are not in it.
        own_cpu_seconds: the same of this process alone.
    """

    calls: int
    seconds: float
    p50_seconds: float
    p99_seconds: float
    lag_p99_seconds: float | None
    cpu_seconds: float
    own_cpu_seconds: float

    @property
    def calls_per_second(self) -> float:
        """The throughput."""
        return self.calls / self.seconds


class _Run:
    """What the callers of one closed loop share."""

    def __init__(self, ask: Ask, rows: Sequence[Any]) -> None:
        self.spans, self.lags = array("d"), array("d")
        self.going_on = True
        self.heard_of = anyio.Event()
        self._ask = ask
        self._next_row = itertools.cycle(rows).__next__

    async def call(self) -> None:
        clock, ask, next_row, spans = time.perf_counter, self._ask, self._next_row, self.spans
        while self.going_on:
            row = next_row()
            began = clock()
            await ask(row)
            spans.append(clock() - began)

    async def tick(self) -> None:
        while self.going_on:
            due = time.perf_counter() + TICK
            await anyio.sleep(TICK)
            self.lags.append(time.perf_counter() - due)
            if self.spans:
                self.heard_of.set()

    def forget(self) -> None:
        del self.spans[:], self.lags[:]
        self.heard_of = anyio.Event()


async def closed_loop(
    ask: Ask, rows: Sequence[Any], *, callers: int, seconds: float, warm_up_seconds: float
) -> Outcome:
    """Have callers ask without a pause, on the event loop that runs: asyncio, uvloop or trio.

    Each goes on with the next row of all, so no object is under way twice. What is under way at
    the end is waited for, but does not count; nothing is cancelled.

    Args:
        ask: has to wait for something: the clock needs the event loop too.
        rows: the requests, which take turns.
        seconds: how long, or longer, until a call was answered.

    Raises:
        ValueError: there are too few rows for so many callers.
        Exception: what ``ask`` raises ends the run, in a group; or a TimeoutError, where nothing is
            answered for `PATIENCE` seconds.
    """
    if len(rows) < 2 * callers:
        raise ValueError(f"{len(rows)} requests for {callers} callers, expected twice as many")
    run = _Run(ask, rows)
    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(run.call)
        group.start_soon(run.tick)
        await anyio.sleep(warm_up_seconds)
        run.forget()
        spent, began = _cpu_seconds(), time.perf_counter()
        with anyio.fail_after(seconds + PATIENCE):
            await anyio.sleep(seconds)
            await run.heard_of.wait()
        elapsed, spans, lags = time.perf_counter() - began, run.spans[:], run.lags[:]
        spent_then = _cpu_seconds()
        run.going_on = False
    gone = {process: then - spent.get(process, 0.0) for process, then in spent_then.items()}
    return Outcome(
        calls=len(spans),
        seconds=elapsed,
        p50_seconds=figures.percentile(spans, 50),
        p99_seconds=figures.percentile(spans, 99),
        lag_p99_seconds=figures.percentile(lags, 99),
        cpu_seconds=sum(gone.values()),
        own_cpu_seconds=gone[psutil.Process()],
    )


def _cpu_seconds() -> dict[psutil.Process, float]:
    """Return what this process and each of its descendants have spent so far."""
    found = {}
    myself = psutil.Process()
    for process in (myself, *myself.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            times = process.cpu_times()
            found[process] = times.user + times.system
    return found
