"""What it costs the application's event loop to check and encode a request, for each feature.

Part of ``python -m benchmarks budget``, and of what that calls "to the model".
"""

import functools
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.figures import Spread
from predictpool import Signature
from predictpool._features._encoder import Encoder

FEATURES = 13  # as many as the Census model has
ROWS = (1, 64)


@dataclass(frozen=True)
class Size:
    """How much is done: rounds in which every way has its turn, and calls in each."""

    rounds: int
    calls: int


FULL = Size(rounds=9, calls=2000)
QUICK = Size(rounds=2, calls=10)


@dataclass(frozen=True)
class Line:
    """Seconds for each feature of a request given in a certain way; over the rounds."""

    way: str
    rows: int
    number: Spread
    text: Spread


def ways() -> dict[tuple[str, int], tuple[Any, Any, bool]]:
    """Return how a float32 feature and a text can be given, and whether as one example."""
    given: dict[tuple[str, int], tuple[Any, Any, bool]] = {}
    for rows in ROWS:
        text = ["Tech-support"] * rows
        exact = np.ones(rows, np.float32), np.array(text, object)
        given["arrays as declared", rows] = (*exact, False)
        given["other arrays", rows] = (np.ones(rows, np.float64), np.array(text), False)
        given["lists", rows] = ([1.5] * rows, text, False)
    return given | {("predict_one", 1): (1.5, "Tech-support", True)}


def run(*, quick: bool) -> tuple[Size, list[Line]]:
    """Encode in every way in turn; the machine's moods then meet all of them."""
    size = QUICK if quick else FULL
    calls = {
        (way, dtype): call(dtype, value, one)
        for way, (number, text, one) in ways().items()
        for dtype, value in ((np.float32, number), (str, text))
    }
    taken: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(size.rounds):
        for key, encode in calls.items():
            taken[key].append(timeit.timeit(encode, number=size.calls) / size.calls / FEATURES)
    spreads = {key: Spread.of(np.array(seconds)) for key, seconds in taken.items()}
    return size, [
        Line(*way, number=spreads[way, np.float32], text=spreads[way, str]) for way in ways()
    ]


def call(dtype: Any, value: Any, one: bool) -> Callable[[], object]:
    """Return what encodes a request whose features all are of one dtype."""
    names = [f"feature {number}" for number in range(FEATURES)]
    encoder = Encoder(Signature.declared(dict.fromkeys(names, dtype)))
    return functools.partial(encoder.encode, dict.fromkeys(names, value), one=one)
