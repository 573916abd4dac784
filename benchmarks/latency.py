"""``python -m benchmarks latency``: one row, one caller, in every way to ask for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import contenders, figures, harness, models
from benchmarks.contenders import LOOPS, Kind, Way
from benchmarks.figures import Goal, Spread
from benchmarks.harness import Contender
from benchmarks.models import Arrays, Model

TOLERANCE = 2e-5  # relative and absolute: kernels differ with the number of rows
CHECKED_ROWS = 8
GOAL = 1.25
COMPARED: tuple[Kind, ...] = ("hop floor", "in process")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each contender has its turn.
        warm_up, calls: calls in each round, before the clock runs and while it does.
        naive_calls: the same for ``estimator.predict``, which needs no warm-up.
    """

    rounds: int
    warm_up: int
    calls: int
    naive_calls: int


FULL = Size(rounds=15, warm_up=30, calls=300, naive_calls=2)
QUICK = Size(rounds=2, warm_up=3, calls=20, naive_calls=1)


@dataclass(frozen=True)
class Line:
    """What came of one way.

    Attributes:
        p50_seconds, p99_seconds: percentiles within a round, over the rounds.
        to_floor: p50 against that of the hop floor of the same method, round by round.
        to_in_process: the same against the predictor called in process.
    """

    name: str
    kind: str
    method: str | None
    loop: str | None
    workers: int
    p50_seconds: Spread
    p99_seconds: Spread
    to_floor: Spread | None
    to_in_process: Spread | None


def ways(quick: bool) -> list[Way]:
    """Return the contenders; the quick run leaves out what is slow to start."""
    listed = [Way("naive")]
    for kind in COMPARED:
        listed += [Way(kind, method) for method in models.METHODS]
    for loop in LOOPS[:1] if quick else LOOPS:
        listed += [Way("pool", method, loop, 1 if quick else 2) for method in models.METHODS]
    if not quick:
        listed += [Way("pool", method, "asyncio", 1) for method in models.METHODS]
    return listed


def run(model: Model, *, quick: bool, note: Note) -> tuple[Size, list[Line]]:
    """Start every contender, compare their answers, and let them work in turn.

    Raises:
        ContenderFailed: one failed, or answered something else than ``estimator.predict``.
    """
    size = QUICK if quick else FULL
    started: dict[Way, Contender] = {}
    with harness.all_ended(started.values()):
        for way in ways(quick):
            started[way] = Contender(way.name, contenders.serve, way, model)
        for way, contender in started.items():
            note(f"starting: {way.name}")
            contender.result()
        check(started)
        rounds = [take_turns(started, number, size, note) for number in range(size.rounds)]
    p50 = {way: [figures.percentile(turn[way], 50) for turn in rounds] for way in started}
    p99 = {way: [figures.percentile(turn[way], 99) for turn in rounds] for way in started}
    return size, [sum_up(way, p50, p99) for way in started]


def take_turns(
    started: dict[Way, Contender], number: int, size: Size, note: Note
) -> dict[Way, Any]:
    """Let each contender have one round; in the next another one begins."""
    note(f"round {number + 1} of {size.rounds}")
    seconds = {}
    for way in harness.in_turn(started, number):
        calls = (0, size.naive_calls) if way.kind == "naive" else (size.warm_up, size.calls)
        times, _ = started[way].order(*calls, False)
        seconds[way] = (times[:, 1] - times[:, 0]) / 1e9
    return seconds


def sum_up(way: Way, p50: dict[Way, list[float]], p99: dict[Way, list[float]]) -> Line:
    """Return what came of one way, against the two that it is compared with."""
    compared: list[Spread | None] = [
        figures.ratios(p50[way], p50[other])
        if (other := Way(kind, way.method)) != way and other in p50
        else None
        for kind in COMPARED
    ]
    if way.kind == "in process":
        compared = [None, None]
    return Line(
        way.name,
        way.kind,
        way.method,
        way.loop,
        way.workers,
        Spread.of(p50[way]),
        Spread.of(p99[way]),
        *compared,
    )


def goals(lines: list[Line]) -> list[Goal]:
    """Compare the pool on asyncio with what it must reach."""
    return [
        Goal(f"{line.name}: p50 / hop floor", line.to_floor.median, GOAL)
        for line in lines
        if line.kind == "pool" and line.loop == "asyncio" and line.to_floor
    ]


# --- the same answers --------------------------------------------------------------


def check(started: dict[Way, Contender]) -> None:
    """Raise `harness.ContenderFailed` unless all answer like ``estimator.predict``."""
    answers = {way: contender.order(0, CHECKED_ROWS, True)[1] for way, contender in started.items()}
    for way, given_all in answers.items():
        for row, (given, wanted) in enumerate(zip(given_all, answers[Way("naive")], strict=True)):
            if not same(given, wanted):
                raise harness.ContenderFailed(
                    f"{way.name} answered row {row} with {given}, expected {wanted}"
                )


def same(given: Arrays, wanted: Arrays) -> bool:
    """Return whether an answer has the same outputs, dtypes, shapes and values as another."""
    return set(given) == set(wanted) and all(
        given[name].dtype == values.dtype
        and given[name].shape == values.shape
        and (
            np.allclose(given[name], values, rtol=TOLERANCE, atol=TOLERANCE)
            if values.dtype.kind == "f"
            else np.array_equal(given[name], values)
        )
        for name, values in wanted.items()
    )
