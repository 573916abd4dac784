"""Where the microseconds of one echo go, step by step; part of ``python -m benchmarks budget``.

An echo of 64 bytes (see `echo`) passes clocks in the application and in its worker. The clocks take
time themselves, and so does the pool's code where it finds the caches cold: the sum is larger than
what the echo takes without them, which stands beside it. Read the steps as shares.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import clocks, contenders, harness, trivial
from benchmarks.contenders import LOOPS, Loop
from benchmarks.figures import Spread
from benchmarks.harness import Contender, ContenderFailed, Orders
from benchmarks.report import Paper
from predictpool import FunctionPredictor, PredictorPool

BYTES = 64
STEPS = (
    *(clock.step for clock in (*clocks.TO_WORKER, *clocks.IN_WORKER, *clocks.BACK)),
    clocks.LAST_STEP,
)

Note = Callable[[str], None]
Moments = NDArray[np.int64]
Spans = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How much is done: rounds, and calls in each, of which the first tenth does not count."""

    rounds: int
    calls: int


FULL = Size(rounds=9, calls=1000)
QUICK = Size(rounds=2, calls=20)


@dataclass(frozen=True)
class Line:
    """Seconds of an echo on one event loop; medians within a round, over the rounds.

    Attributes:
        steps: by what has been done at their ends.
        sum: of the steps' medians.
        without_clocks: the whole echo in a pool that has none.
    """

    loop: str
    steps: dict[str, Spread]
    sum: float
    without_clocks: Spread


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    size: Size
    lines: list[Line]


# --- in a process of its own -------------------------------------------------------


def serve(orders: Orders, loop: Loop, clocked: bool) -> None:
    """Be a contender; see `harness.Contender`.

    It understands ``(calls,)`` and returns for each call the moments that it passed, in ns of the
    clock that all processes share; the first and the last are the caller's own.
    """
    contenders.on_loop(loop, _serve_clocked if clocked else _serve, orders)


async def _serve(orders: Orders) -> None:
    async with _pool(trivial.load_echo) as pool:
        orders.reply(None)
        while (order := await contenders.next_order(orders)) is not None:
            orders.reply(await _ask_in_turn(pool, order[0], []))


async def _serve_clocked(orders: Orders) -> None:
    moments = [0] * len((*clocks.TO_WORKER, *clocks.BACK))
    clocks.set_clocks((*clocks.TO_WORKER, *clocks.BACK), moments)
    asked = 0
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(FULL.rounds * (FULL.calls + 1) * len(clocks.IN_WORKER) * 8)
        async with _pool(functools.partial(clocks.load_clocked_echo, file.name)) as pool:
            orders.reply(None)
            while (order := await contenders.next_order(orders)) is not None:
                ours = await _ask_in_turn(pool, order[0], moments)
                await _ask_in_turn(pool, 1, [])  # once it is answered, the row before is written
                asked += len(ours)
                theirs = np.fromfile(file.name, np.int64).reshape(-1, len(clocks.IN_WORKER))
                there = 1 + len(clocks.TO_WORKER)
                taken = ours[:, :there], theirs[asked - len(ours) : asked], ours[:, there:]
                asked += 1
                orders.reply(np.concatenate(taken, axis=1))


def _pool(load: Callable[[], Any]) -> PredictorPool[Any]:
    predictor = FunctionPredictor(
        load,
        row_wise=True,
        signature=("u1", (BYTES,)),
        preload=("benchmarks.clocks", "benchmarks.trivial"),
    )
    return PredictorPool(predictor, workers=1)


async def _ask_in_turn(pool: PredictorPool[Any], calls: int, moments: list[int]) -> Moments:
    message = np.ones((1, BYTES), np.uint8)
    taken = []
    for _ in range(calls):
        began = time.monotonic_ns()
        await pool.predict(message)
        ended = time.monotonic_ns()
        taken.append((began, *moments, ended))
    return np.array(taken)


# --- all of it ---------------------------------------------------------------------


def run(*, quick: bool, note: Note) -> Outcome:
    """Start a pool with clocks and one without on every event loop, and let them work in turn.

    Raises:
        ContenderFailed: one failed, or a request did not pass the clocks in their order.
    """
    size = QUICK if quick else FULL
    loops = LOOPS[:1] if quick else LOOPS
    started: dict[tuple[Loop, bool], Contender] = {}
    with harness.all_ended(started.values()):
        for loop in loops:
            for clocked in (True, False):
                started[loop, clocked] = Contender(f"{loop}, steps", serve, loop, clocked)
        for contender in started.values():
            contender.result()
        spans: dict[tuple[Loop, bool], list[Spans]] = {key: [] for key in started}
        for number in range(size.rounds):
            note(f"steps, round {number + 1} of {size.rounds}")
            for key in harness.in_turn(started, number):
                spans[key].append(_medians(started[key].order(size.calls)))
    return Outcome(size, [_line(loop, spans[loop, True], spans[loop, False]) for loop in loops])


def _medians(moments: Moments) -> Spans:
    counted = moments[len(moments) // 10 :]
    return np.asarray(np.median(np.diff(counted, axis=1), axis=0) / 1e9)


def _line(loop: Loop, clocked: list[Spans], plain: list[Spans]) -> Line:
    spans = [Spread.of(seconds) for seconds in zip(*clocked, strict=True)]
    steps = dict(zip(STEPS, spans, strict=True))
    for step, taken in steps.items():
        if taken.median < 0:
            raise ContenderFailed(f"no request passes the clock {step!r} in its turn: see `clocks`")
    return Line(
        loop,
        steps,
        sum(taken.median for taken in steps.values()),
        Spread.of(float(seconds[0]) for seconds in plain),
    )


def show(paper: Paper, found: Outcome) -> None:
    """Print a line for each step."""
    table = paper.table(
        f"The steps of an echo of {BYTES} bytes",
        f"µs; median of {found.size.rounds} rounds of {found.size.calls} calls "
        "(lowest–highest round)",
        "step",
        *(line.loop for line in found.lines),
    )
    for step in STEPS:
        table.add_row(step, *(line.steps[step].text(1e6) for line in found.lines))
    table.add_row("sum of the medians", *(f"{line.sum * 1e6:.1f}" for line in found.lines))
    table.add_row("without clocks", *(line.without_clocks.text(1e6) for line in found.lines))
    paper.print(table)
