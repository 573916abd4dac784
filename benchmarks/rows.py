"""Rows whose answers prove whose they are, and the model that answers them.

Every row has a number that no other row of a run has. The answer repeats it, binds it to the row's
text and repeats the row's value changed, so that an answer can be taken for no other row's and no
two columns can come from different rows. Workers import this module: it needs numpy alone.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

SIGNATURE = {"value": ("f8", ()), "number": ("i8", ()), "text": (str, ())}
# Numbers begin far out, so that one cut to 32 bits or carried as a float shows.
FIRST_NUMBER = 1 << 62
TABLE = 1 << 15


def load() -> Callable[[Arrays], Arrays]:
    """Return the model, for a `predictpool.FunctionPredictor`."""
    return answer


def answer(features: Arrays) -> Arrays:
    """Answer rows.

    Raises:
        FloatingPointError: the value of a row is NaN: poison. It names the first such row.
    """
    values, numbers = features["value"], features["number"]
    if np.isnan(values).any():
        raise FloatingPointError(poison(numbers[np.isnan(values)][0]))
    sums = np.fromiter(map(zlib.crc32, features["text"]), np.int64, len(numbers))
    return {"doubled": values * 2 + 1, "number": numbers, "checksum": sums ^ numbers}


def poison(number: int) -> str:
    """Return what the model says of a row that it cannot take."""
    return f"row {number} is poison"


@dataclass(slots=True)
class Question:
    """The rows of one request, and what their answer must be.

    Attributes:
        features: as `predictpool.PredictorPool.predict` takes them.
        poison: what the model will say of them instead of answering, or "".
    """

    features: Arrays
    doubled: NDArray[np.float64]
    checksums: NDArray[np.int64]
    poison: str = ""

    @property
    def rows(self) -> int:
        """How many they are."""
        return len(self.doubled)

    def answered_by(self, outputs: Any) -> bool:
        """Return whether these are the outputs for exactly these rows, in their order."""
        # Bytes are compared, which is exact and takes a tenth of numpy's time for a few rows.
        return (
            len(outputs) == 3
            and _same(outputs["number"], self.features["number"])
            and _same(outputs["doubled"], self.doubled)
            and _same(outputs["checksum"], self.checksums)
            and not self.poison
        )

    def example(self) -> dict[str, Any]:
        """Return the first row, without a row axis."""
        return {name: values[0] for name, values in self.features.items()}

    def example_answered_by(self, outputs: Any) -> bool:
        """Return whether these are the outputs for `example`."""
        return (
            len(outputs) == 3
            and outputs["number"] == self.features["number"][0]
            and outputs["doubled"] == self.doubled[0]
            and outputs["checksum"] == self.checksums[0]
        )


def _same(given: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return given.dtype == wanted.dtype and given.tobytes() == wanted.tobytes()


class Rows:
    """An endless supply of rows; values and texts are made once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._values = np.random.default_rng(seed).normal(size=TABLE)
        self._doubled = self._values * 2 + 1
        texts = [f"{'naïve 模' * (index % 5)}{index:x}" for index in range(TABLE)]
        self._texts = np.array(texts, object)
        self._sums = np.array([zlib.crc32(text.encode()) for text in texts], np.int64)
        self._next = FIRST_NUMBER

    def take(self, count: int) -> Question:
        """Return so many new rows."""
        first = self._random.randrange(TABLE - count)
        table = slice(first, first + count)
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        features = {"value": self._values[table], "number": numbers, "text": self._texts[table]}
        return Question(features, self._doubled[table], self._sums[table] ^ numbers)

    def take_poisoned(self, count: int) -> Question:
        """Return so many new rows, one of which the model cannot take."""
        question = self.take(count)
        bad = self._random.randrange(count)
        values = question.features["value"].copy()
        values[bad] = np.nan
        question.features["value"] = values
        question.poison = poison(question.features["number"][bad])
        return question

    def take_invalid(self, count: int) -> Question:
        """Return new rows that do not fit the signature, each time in another way."""
        question = self.take(count)
        question.features = self._random.choice(_SPOILED)(question.features)
        return question


_SPOILED: tuple[Callable[[Arrays], Arrays], ...] = (
    lambda features: {"value": features["value"], "text": features["text"]},
    lambda features: {**features, "colour": features["value"]},
    lambda features: {**features, "number": np.append(features["number"], 1)},
    lambda features: {**features, "value": features["text"]},
    lambda features: {**features, "text": features["number"]},
    lambda features: {**features, "value": features["value"].reshape(-1, 1, 1)},
)
