"""``python -m benchmarks large``: one large array to a worker and a number back, and the reverse.

The model looks at two elements of what it is given, so what is left is the way. It is compared with
the raw socket (see `raw`) and with other ways to have a function called in a process. Then a
ticker shows how long each keeps the event loop from everything else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks import carriers, figures, harness
from benchmarks.carriers import DEFAULT, FLOORS, RAY, Direction, Seconds, Way
from benchmarks.figures import Goal, Spread
from benchmarks.harness import Contender
from benchmarks.report import Paper

MB = 1 << 20
LAG_BYTES = 64 * MB
JUDGED = 16 * MB
_DIRECTIONS = {"in": "to a worker, a number back", "out": "from a worker, for a number"}

Note = Callable[[str], None]
Start = Callable[..., Contender]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each contender has its turn.
        calls_in, calls_out: in each round, by the number of bytes; a fifth as many to warm up, and
            one at least.
        calls_lag: messages of ``lag_bytes`` during which the event loop is watched.
    """

    rounds: int
    calls_in: dict[int, int]
    calls_out: dict[int, int]
    calls_lag: int
    lag_bytes: int


FULL = Size(
    rounds=7,
    calls_in={MB: 40, 4 * MB: 20, 16 * MB: 10, 64 * MB: 4, 256 * MB: 2},
    calls_out={16 * MB: 10},
    calls_lag=8,
    lag_bytes=LAG_BYTES,
)
QUICK = Size(
    rounds=2,
    calls_in={MB: 2, 16 * MB: 1},
    calls_out={16 * MB: 1},
    calls_lag=1,
    lag_bytes=4 * MB,
)


@dataclass(frozen=True)
class Line:
    """What came of one way with arrays of one size.

    Attributes:
        direction: whether the array goes to the worker or comes from it.
        p50_seconds: the median within a round, over the rounds.
        to_floor: against the faster of the raw sockets, round by round.
        to_ray: against Ray actors, where they took part.
    """

    name: str
    kind: str
    loop: str | None
    direction: str
    bytes: int
    p50_seconds: Spread
    to_floor: Spread
    to_ray: Spread | None


@dataclass(frozen=True)
class Lag:
    """How much later than due a ticker of 1 ms ran while one array after the other was sent.

    An event loop on epoll is up to 1 ms late with nothing else to do.

    Attributes:
        p99_seconds: of all rounds together, each of which has few ticks.
        worst_seconds: in a round, over the rounds.
    """

    name: str
    p99_seconds: float
    worst_seconds: Spread


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found."""

    size: Size
    lines: list[Line]
    lags: list[Lag]


# --- all of it ---------------------------------------------------------------------

Taken = dict[tuple[Way, Direction, int], list[Seconds]]


def run(*, quick: bool, note: Note, ray: Start | None = None) -> Outcome:
    """Start every contender and let them work in turn.

    Args:
        ray: starts `carriers.RAY` in Ray's environment, where there is one.

    Raises:
        ContenderFailed: one failed, or answered something else.
    """
    size = QUICK if quick else FULL
    started: dict[Way, Contender] = {}
    with harness.all_ended(started.values()):
        for way in carriers.ways():
            started[way] = Contender(way.name, carriers.serve, way)
        if ray is not None:
            started[RAY] = ray(RAY.name, carriers.serve, RAY)
        for way, contender in started.items():
            note(f"starting: {way.name}")
            contender.result()
        taken: Taken = {}
        for number in range(size.rounds):
            note(f"round {number + 1} of {size.rounds}")
            for way in harness.in_turn(started, number):
                for order in _orders(size, way):
                    taken.setdefault((way, *order[:2]), []).append(started[way].order(*order))
    return _sum_up(size, list(started), taken)


def _orders(size: Size, way: Way) -> list[tuple[Direction, int, int]]:
    orders: list[tuple[Direction, int, int]] = [
        *(("in", count, calls) for count, calls in size.calls_in.items()),
        *(("out", count, calls) for count, calls in size.calls_out.items()),
    ]
    return (
        orders if way.kind == "raw socket" else [*orders, ("lag", size.lag_bytes, size.calls_lag)]
    )


def _sum_up(size: Size, started: list[Way], taken: Taken) -> Outcome:
    p50 = {
        key: [figures.percentile(calls, 50) for calls in rounds] for key, rounds in taken.items()
    }
    lines = []
    for (way, direction, count), seconds in p50.items():
        if direction != "lag":
            floor = min((p50[floor, direction, count] for floor in FLOORS), key=np.median)
            ray = p50.get((RAY, direction, count))
            lines.append(
                Line(
                    way.name,
                    way.kind,
                    way.loop,
                    direction,
                    count,
                    Spread.of(seconds),
                    figures.ratios(seconds, floor),
                    figures.ratios(seconds, ray) if ray else None,
                )
            )
    return Outcome(size, lines, [_lag(way, size, taken) for way in started if way not in FLOORS])


def _lag(way: Way, size: Size, taken: Taken) -> Lag:
    lags = taken[way, "lag", size.lag_bytes]
    return Lag(
        way.name,
        figures.percentile(np.concatenate(lags), 99),
        Spread.of(float(late.max()) for late in lags),
    )


def goals(found: Outcome) -> list[Goal]:
    """Compare the pool with default options with what it must reach."""
    (line,) = (
        line
        for line in found.lines
        if (line.name, line.direction, line.bytes) == (DEFAULT.name, "in", JUDGED)
    )
    listed = [
        Goal(f"{line.name}, 16 MB in: p50 / raw socket", line.to_floor.median, 1.1, aim=0.7),
    ]
    if line.to_ray is not None:
        listed.append(
            Goal(f"{line.name}, 16 MB in: p50 / Ray actors", line.to_ray.median, 1.0, aim=0.6)
        )
    return listed


def show(paper: Paper, found: Outcome) -> None:
    """Print how long large arrays take, and how long the event loop is kept."""
    for direction, count in dict.fromkeys((line.direction, line.bytes) for line in found.lines):
        table = paper.table(
            f"{figures.bytes_text(count)} {_DIRECTIONS[direction]}",
            f"median of {found.size.rounds} rounds (lowest–highest round)",
            "way",
            *("p50, ms", "p50 / raw socket", "p50 / Ray actors"),
        )
        for line in found.lines:
            if (line.direction, line.bytes) == (direction, count):
                ray = "" if line.to_ray is None else line.to_ray.text()
                table.add_row(line.name, line.p50_seconds.text(1e3), line.to_floor.text(), ray)
        paper.print(table)
    if not any(line.kind == RAY.kind for line in found.lines):
        paper.print("Ray actors took no part: see `python -m benchmarks environments ray`")
    size = figures.bytes_text(found.size.lag_bytes)
    lags = paper.table(
        f"How late a ticker of 1 ms is while arrays of {size} are sent",
        f"ms; p99 of all ticks; worst: median of {found.size.rounds} rounds (lowest–highest round)",
        "way",
        *("p99", "worst"),
    )
    for lag in found.lags:
        lags.add_row(lag.name, f"{lag.p99_seconds * 1e3:.2f}", lag.worst_seconds.text(1e3))
    paper.print(lags)
