"""``python -m benchmarks echo``: bytes to a worker and back, and nothing done with them.

What is left of a pool without a model: checking, encoding, a queue, a frame, two processes that
wake, and the same backwards. It is compared with the raw socket (see `raw`), whose caller is where
the kernel puts it, as the pool's is.
"""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import contenders, figures, harness, raw, trivial
from benchmarks.contenders import LOOPS, Loop
from benchmarks.figures import Goal, Spread
from benchmarks.harness import Contender, Orders
from benchmarks.raw import Place
from benchmarks.report import Paper
from predictpool import FunctionPredictor, PredictorPool

SIZES = (64, 4 << 10, 64 << 10, 1 << 20)
GOALS: dict[Loop, tuple[float, float]] = {
    "asyncio": (4.0, 3.0),
    "uvloop": (3.0, 2.5),
    "trio": (5.0, 4.0),
}

Kind = Literal["raw socket", "pool"]
Note = Callable[[str], None]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each contender has its turn.
        calls: in each round, by the number of bytes; a tenth as many to warm up.
    """

    rounds: int
    calls: dict[int, int]


FULL = Size(rounds=9, calls=dict(zip(SIZES, (3000, 3000, 1500, 200), strict=True)))
QUICK = Size(rounds=2, calls=dict.fromkeys(SIZES, 10))


@dataclass(frozen=True)
class Way:
    """One way to get an echo: from a raw socket with the caller in some place, or a pool."""

    kind: Kind
    place: Place = "anywhere"
    loop: Loop | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.kind == "pool":
            return f"pool, {self.loop}"
        return "raw socket" if self == FLOOR else f"raw socket, caller on {self.place}"


FLOOR = Way("raw socket")


@dataclass(frozen=True)
class Line:
    """What came of one way with messages of one size.

    Attributes:
        p50_seconds: the median within a round, over the rounds.
        to_floor: against the raw socket with its caller anywhere, round by round.
    """

    name: str
    kind: str
    loop: str | None
    bytes: int
    p50_seconds: Spread
    to_floor: Spread


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found."""

    size: Size
    lines: list[Line]


def ways() -> list[Way]:
    """Return the contenders."""
    floors = [Way("raw socket", place) for place in raw.places()]
    return floors + [Way("pool", loop=loop) for loop in LOOPS]


# --- in a process of its own -------------------------------------------------------


def serve(orders: Orders, way: Way) -> None:
    """Be a contender; see `harness.Contender`.

    It understands ``(bytes, calls)`` and returns how many seconds each call took.
    """
    if way.loop is not None:
        contenders.on_loop(way.loop, _serve_pool, orders)
        return
    orders.reply(None)
    while (order := orders.next()) is not None:
        orders.reply(_ask_raw(way.place, *order))


def _ask_raw(place: Place, size: int, calls: int) -> Seconds:
    message = memoryview(bytes(range(1, 65)) * (size // 64))
    taken = np.empty(calls, np.int64)
    with raw.process(trivial.echo, sent=size, returned=size, place=place) as ask:
        for call in range(-calls // 10, calls):
            began = time.perf_counter_ns()
            answer = ask(message)
            taken[call] = time.perf_counter_ns() - began
        _check(answer == message)
    return taken / 1e9


async def _serve_pool(orders: Orders) -> None:
    async with AsyncExitStack() as stack:
        pools = {size: await stack.enter_async_context(_pool(size)) for size in SIZES}
        orders.reply(None)
        while (order := await contenders.next_order(orders)) is not None:
            size, calls = order
            orders.reply(await _ask_pool(pools[size], size, calls))


def _pool(size: int) -> PredictorPool[Any]:
    predictor = FunctionPredictor(
        trivial.load_echo,
        row_wise=True,
        signature=("u1", (size,)),
        preload=("benchmarks.trivial",),
    )
    return PredictorPool(predictor, workers=1)


async def _ask_pool(pool: PredictorPool[Any], size: int, calls: int) -> Seconds:
    message = np.resize(np.arange(1, 65, dtype=np.uint8), (1, size))
    taken = np.empty(calls, np.int64)
    for call in range(-calls // 10, calls):
        began = time.perf_counter_ns()
        answer = await pool.predict(message)
        taken[call] = time.perf_counter_ns() - began
    _check(np.array_equal(answer, message))
    return taken / 1e9


def _check(same: bool) -> None:
    if not same:
        raise RuntimeError("the answer is not the message")


# --- all of it ---------------------------------------------------------------------


def run(*, quick: bool, note: Note) -> Outcome:
    """Start every contender and let them work in turn.

    Raises:
        ContenderFailed: one failed, or its answer was not the message.
    """
    size = QUICK if quick else FULL
    started: dict[Way, Contender] = {}
    with harness.all_ended(started.values()):
        for way in ways():
            started[way] = Contender(way.name, serve, way)
        for way, contender in started.items():
            note(f"starting: {way.name}")
            contender.result()
        medians: dict[tuple[Way, int], list[float]] = {}
        for number in range(size.rounds):
            note(f"round {number + 1} of {size.rounds}")
            for way in harness.in_turn(started, number):
                for count, calls in size.calls.items():
                    taken = started[way].order(count, calls)
                    p50 = figures.percentile(taken, 50)
                    medians.setdefault((way, count), []).append(p50)
    return Outcome(size, [_line(way, count, medians) for way in started for count in size.calls])


def _line(way: Way, count: int, medians: dict[tuple[Way, int], list[float]]) -> Line:
    p50 = medians[way, count]
    return Line(
        way.name,
        way.kind,
        way.loop,
        count,
        Spread.of(p50),
        figures.ratios(p50, medians[FLOOR, count]),
    )


def goals(found: Outcome) -> list[Goal]:
    """Compare the smallest message with what must be reached."""
    smallest = [line for line in found.lines if line.bytes == SIZES[0]]
    return [
        Goal(f"{line.name}, 64 bytes: p50 / raw socket", line.to_floor.median, must, aim=aim)
        for loop, (must, aim) in GOALS.items()
        for line in smallest
        if line.loop == loop
    ]


def show(paper: Paper, found: Outcome) -> None:
    """Print how long an echo takes, each way."""
    for count, calls in found.size.calls.items():
        table = paper.table(
            f"An echo of {figures.bytes_text(count)}, one caller",
            f"median of {found.size.rounds} rounds of {calls} calls (lowest–highest round)",
            "way",
            *("p50, µs", "p50 / raw socket"),
        )
        for line in found.lines:
            if line.bytes == count:
                table.add_row(line.name, line.p50_seconds.text(1e6), line.to_floor.text())
        paper.print(table)
