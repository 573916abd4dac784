"""A model of a fixed cost that notes which requests reach it. Workers import this module."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = {"number": ("i8", ())}


@dataclass(frozen=True)
class Ledger:
    """A file with one byte for each number: how often a worker was asked for it.

    A file, because what a worker did for a caller that has gone comes back in no answer. Number 0
    is the warm-up's.
    """

    path: str

    @classmethod
    def make(cls, path: Path, numbers: int) -> "Ledger":
        """Write one in which no worker was asked for anything."""
        path.write_bytes(bytes(numbers))
        return cls(str(path))

    def asked(self) -> NDArray[np.uint8]:
        """Return how often workers were asked, by number."""
        return np.fromfile(self.path, np.uint8)

    def model(self, seconds: float) -> Callable[[], Callable[[Any], Any]]:
        """Return what loads the model in a worker.

        Args:
            seconds: what a call costs. It sleeps: with two busy workers on two cores, the
                application would wait for a core and not for its workers.
        """
        return functools.partial(_load, self.path, seconds)


def _load(path: str, seconds: float) -> Callable[[Any], Any]:
    asked = np.memmap(path, np.uint8, "r+")

    def answer(features: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
        numbers = features["number"]
        asked[numbers] += 1
        time.sleep(seconds)
        return numbers

    return answer
