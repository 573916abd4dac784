"""``python -m benchmarks scaling``: how many requests one application process can carry.

Every request passes through one event loop, twice. How often it can do that is what one process
can feed. To see that alone the models here wait, as for a GPU, and leave the cores to the
application: as many workers as it takes, until more of them do not answer more. Then the same
workers are spread over two processes, each with a pool of its own, as under a web server that has
several workers.
"""

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks import contenders, figures, harness, load, trivial
from benchmarks.contenders import Loop
from benchmarks.figures import Spread
from benchmarks.harness import Contender, Orders
from benchmarks.report import Paper
from predictpool import FunctionPredictor, PredictorPool

Note = Callable[[str], None]

FEATURES = 13  # as many as the Census model has
BATCH = 64
WAIT = 0.005
# Slow enough for two of them to be the limit, and not the loop: a full batch in 10.7 ms.
FIXED, PER_ROW = 3e-3, 120e-6
# Rows that are asked for at once, for each worker: one full batch in it, and one that fills.
ROWS_PER_WORKER = 2 * BATCH
WAITING_WORKERS = (1, 2, 4, 8, 16)
LARGER = (8, 64)  # rows in a request, for the most workers
LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop")
SPREAD_WORKERS = 8

Kind = Literal["waiting", "computing"]


@dataclass(frozen=True)
class Size:
    """How much is done: seconds of a round, before the clock runs and while it does."""

    rounds: int
    warm_up: float
    seconds: float


FULL = Size(rounds=5, warm_up=0.3, seconds=1.0)
QUICK = Size(rounds=1, warm_up=0.05, seconds=0.1)


@dataclass(frozen=True)
class Application:
    """One application process with a pool.

    Attributes:
        kind: of its model.
        rows: of each request.
        part, parts: which part of the cores its workers take in turn; two pools that count from
            the first core would share it.
    """

    kind: Kind
    workers: int
    loop: Loop = "asyncio"
    rows: int = 1
    part: int = 0
    parts: int = 1

    @property
    def name(self) -> str:
        """What is noted of it."""
        process = f", process {self.part + 1} of {self.parts}" if self.parts > 1 else ""
        return f"{self.kind}, workers: {self.workers}, rows: {self.rows}, {self.loop}{process}"

    @property
    def callers(self) -> int:
        """How many ask."""
        return ROWS_PER_WORKER * self.workers // self.rows

    @property
    def devices(self) -> list[str]:
        """Where each worker is."""
        cores = sorted(os.sched_getaffinity(0))
        own = cores[self.part :: self.parts] or cores
        return [f"cpu:{own[slot % len(own)]}" for slot in range(self.workers)]


# What works at once.
Setup = tuple[Application, ...]


@dataclass(frozen=True)
class FeedLine:
    """What one process fed; medians over the rounds.

    Attributes:
        to_workers: rows per second against what so many workers would answer that never had
            to wait for a batch.
        own_cpu_seconds: of the application, for each call.
    """

    loop: str
    workers: int
    rows: int
    callers: int
    calls_per_second: Spread
    to_workers: Spread
    own_cpu_seconds: Spread
    lag_p99_seconds: Spread


@dataclass(frozen=True)
class SpreadLine:
    """What the same workers answered behind one process and behind two.

    Attributes:
        ratio: two processes against one, round by round.
    """

    kind: str
    workers: int
    one: Spread
    two: Spread
    ratio: Spread


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found."""

    size: Size
    feed: list[FeedLine]
    spread: list[SpreadLine]


# --- in a process of its own -------------------------------------------------------


def serve(orders: Orders, application: Application) -> None:
    """Be a contender that takes one order: ``(seconds, warm-up)``, for a `load.Outcome`."""
    contenders.on_loop(application.loop, _serve, orders, application)


async def _serve(orders: Orders, application: Application) -> None:
    features = {f"f{number}": (np.float32, ()) for number in range(FEATURES)}
    predictor = FunctionPredictor[Any](
        _model(application.kind),
        row_wise=True,
        signature=features,
        preload=("benchmarks.trivial",),
    )
    requests = [
        {name: np.full(application.rows, number, np.float32) for name in features}
        for number in range(2 * application.callers)
    ]
    gc.collect()
    gc.freeze()  # as in `services`
    pool = PredictorPool(
        predictor, devices=application.devices, max_batch_size=BATCH, max_waiting=None
    )
    async with pool:
        await pool.wait_ready()
        orders.reply(None)
        while (order := await contenders.next_order(orders)) is not None:
            seconds, warm_up = order
            outcome = await load.closed_loop(
                pool.predict,
                requests,
                callers=application.callers,
                seconds=seconds,
                warm_up_seconds=warm_up,
            )
            orders.reply(outcome)


def _model(kind: Kind) -> Callable[[], Callable[[Any], Any]]:
    if kind == "waiting":
        return functools.partial(trivial.load_waiting, WAIT)
    return functools.partial(trivial.load_computing, FIXED, PER_ROW)


# --- all of it ---------------------------------------------------------------------


def run(*, quick: bool, note: Note) -> Outcome:
    """Measure what one process feeds, then one against two.

    Raises:
        ContenderFailed: one failed.
    """
    size = QUICK if quick else FULL
    workers = WAITING_WORKERS[:2] if quick else WAITING_WORKERS
    alone = [Application("waiting", count, loop) for loop in LOOPS for count in workers]
    alone += [Application("waiting", workers[-1], rows=rows) for rows in LARGER]
    fed = _measured([(application,) for application in alone], size, note)
    feed = [_feed_line(application, [one for (one,) in fed[application,]]) for application in alone]
    cores = len(os.sched_getaffinity(0))
    spread = [
        _spread_line("waiting", 2 if quick else SPREAD_WORKERS, size, note),
        _spread_line("computing", max(2, cores // 2 * 2), size, note),
    ]
    return Outcome(size, feed, spread)


def _measured(
    setups: list[Setup], size: Size, note: Note
) -> dict[Setup, list[tuple[load.Outcome, ...]]]:
    """Return what came of each setup in each round, of its processes one by one."""
    started: dict[Application, Contender] = {}
    with harness.all_ended(started.values()):
        for application in dict.fromkeys(each for setup in setups for each in setup):
            note(f"starting: {application.name}")
            started[application] = Contender(application.name, serve, application)
            started[application].result()
        found: dict[Setup, list[tuple[load.Outcome, ...]]] = {setup: [] for setup in setups}
        for number in range(size.rounds):
            note(f"round {number + 1} of {size.rounds}")
            for setup in harness.in_turn(found, number):
                for application in setup:
                    started[application].begin(size.seconds, size.warm_up)
                found[setup].append(tuple(started[each].result() for each in setup))
    return found


def _feed_line(application: Application, found: list[load.Outcome]) -> FeedLine:
    ideal = application.workers * BATCH / WAIT / application.rows
    return FeedLine(
        loop=application.loop,
        workers=application.workers,
        rows=application.rows,
        callers=application.callers,
        calls_per_second=Spread.of(one.calls_per_second for one in found),
        to_workers=Spread.of(one.calls_per_second / ideal for one in found),
        own_cpu_seconds=Spread.of(one.own_cpu_seconds / one.calls for one in found),
        lag_p99_seconds=Spread.of(one.lag_p99_seconds or 0.0 for one in found),
    )


def _spread_line(kind: Kind, workers: int, size: Size, note: Note) -> SpreadLine:
    one: Setup = (Application(kind, workers),)
    two: Setup = tuple(Application(kind, workers // 2, part=part, parts=2) for part in range(2))
    found = _measured([one, two], size, note)
    rates = {
        setup: [sum(process.calls_per_second for process in processes) for processes in rounds]
        for setup, rounds in found.items()
    }
    return SpreadLine(
        kind,
        workers,
        Spread.of(rates[one]),
        Spread.of(rates[two]),
        figures.ratios(rates[two], rates[one]),
    )


def show(paper: Paper, found: Outcome) -> None:
    """Print what one process feeds, and what two do."""
    rounds = f"median of {found.size.rounds} rounds of {found.size.seconds:g} s (lowest–highest)"
    table = paper.table(
        f"One process; workers that wait {WAIT * 1e3:g} ms for a batch of up to {BATCH} rows",
        f"{FEATURES} features, {ROWS_PER_WORKER} rows under way for each worker; {rounds}",
        "event loop",
        *("workers", "rows each", "calls/s", "of what they could", "CPU, µs a call", "lag p99, ms"),
    )
    for line in found.feed:
        table.add_row(
            line.loop,
            str(line.workers),
            str(line.rows),
            line.calls_per_second.text(),
            line.to_workers.text(),
            line.own_cpu_seconds.text(1e6),
            line.lag_p99_seconds.text(1e3),
        )
    paper.print(table)
    table = paper.table(
        "The same workers behind one process and behind two",
        f"calls/s of both together; {rounds}",
        "model",
        *("workers", "one process", "two processes", "two / one"),
    )
    for spread in found.spread:
        table.add_row(
            spread.kind,
            str(spread.workers),
            spread.one.text(),
            spread.two.text(),
            spread.ratio.text(),
        )
    paper.print(table)
