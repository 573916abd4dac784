"""``python -m benchmarks budget``: where the time of one request goes.

The model notes when it begins and ends, by the clock that all processes of a machine share, and
adds that to its answer. So a request falls into three spans, for the hop floor and for the pool
alike: to the model, in the model, back to the caller. What the pool adds to the first and the last
is its own work; what it adds to the second is what a model loses when other code has used the
caches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import contenders, harness, models
from benchmarks.contenders import Kind, Way
from benchmarks.figures import Spread
from benchmarks.harness import Contender
from benchmarks.models import Model

KINDS: tuple[Kind, ...] = ("in process", "hop floor")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is done; see `latency.Size`."""

    rounds: int
    warm_up: int
    calls: int


FULL = Size(rounds=9, warm_up=30, calls=400)
QUICK = Size(rounds=2, warm_up=3, calls=20)


@dataclass(frozen=True)
class Line:
    """Seconds of each span; medians within a round, over the rounds."""

    name: str
    to_model: Spread
    in_model: Spread
    back: Spread


def ways(quick: bool) -> list[Way]:
    """Return the contenders; the quick run makes do with one method."""
    methods = models.METHODS[-1:] if quick else models.METHODS
    alone = [Way(kind, method, clocked=True) for kind in KINDS for method in methods]
    workers = 1 if quick else 2
    return alone + [Way("pool", method, "asyncio", workers, clocked=True) for method in methods]


def run(model: Model, *, quick: bool, note: Note) -> tuple[Size, list[Line]]:
    """Start every contender and let them work in turn."""
    size = QUICK if quick else FULL
    started: list[Contender] = []
    with harness.all_ended(started):
        started.extend(Contender(way.name, contenders.serve, way, model) for way in ways(quick))
        for contender in started:
            note(f"starting: {contender.name}")
            contender.result()
        rounds = []
        for number in range(size.rounds):
            note(f"round {number + 1} of {size.rounds}")
            rounds.append([spans(contender, size) for contender in started])
    return size, [
        Line(contender.name, *(Spread.of(seconds) for seconds in zip(*taken, strict=True)))
        for contender, taken in zip(started, zip(*rounds, strict=True), strict=True)
    ]


def spans(contender: Contender, size: Size) -> NDArray[np.float64]:
    """Let one contender have its turn; return the median seconds of the three spans."""
    times, answers = contender.order(size.warm_up, size.calls, True)
    clock = np.concatenate([answer[models.CLOCK] for answer in answers])
    moments = np.stack([times[:, 0], clock[:, 0], clock[:, 1], times[:, 1]], axis=1)
    return np.asarray(np.median(np.diff(moments), axis=0) / 1e9)
