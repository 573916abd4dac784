"""Figures of several rounds, ratios between them, and what they must not exceed."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spread:
    """A figure of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sum up one value for each round."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, scale: float = 1.0) -> str:
        """Return it for people: the median, and in brackets the lowest and the highest round."""
        median, low, high = (
            f"{value * scale:,.{0 if value * scale >= 100 else 2}f}"
            for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low}–{high})"


def percentile(seconds: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """Return a percentile that is one of the values: the tail is not smoothed."""
    return float(np.percentile(seconds, percent, method="higher"))


def ratios(values: Sequence[float], to: Sequence[float]) -> Spread:
    """Return a ratio round by round: both sides had the same neighbours then."""
    return Spread.of([value / other for value, other in zip(values, to, strict=True)])


def bytes_text(count: int) -> str:
    """Return a number of bytes for people, in powers of 1,024."""
    for unit, power in (("MB", 20), ("KB", 10)):
        if count >= 1 << power:
            return f"{count >> power} {unit}"
    return f"{count} B"


@dataclass(frozen=True)
class Goal:
    """What a figure must not exceed, or must reach.

    Attributes:
        aim: what we would rather have; missing it is no failure.
    """

    name: str
    figure: float
    limit: float
    at_least: bool = False
    aim: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is so."""
        # bool: that of numpy 2 is nothing for JSON.
        return bool(self.figure >= self.limit if self.at_least else self.figure <= self.limit)
