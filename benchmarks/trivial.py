"""Models that do nothing: what is left is the way there and back. Workers import this module."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load_echo() -> Any:
    """Load the model that answers what it was asked."""
    return echo


def echo(values: Any) -> Any:
    """Return the features."""
    return values


def load_ends() -> Any:
    """Load the model that is asked or answers large arrays."""
    return ends


def ends(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return one number for the row that is given, or many for a row of one number.

    Args:
        values: one row, of shape (1, n).

    Returns:
        the sum of its first and its last element, of shape (1,): nothing between them is touched;
        but the numbers from 0 to *n* - 1, of shape (1, *n*), where the row is the number *n* alone.
    """
    if values.size == 1:
        return _numbers(int(values[0, 0]))
    return np.add(values[:, 0], values[:, -1])


def load_waiting(seconds: float) -> Callable[[Any], Any]:
    """Load a model that waits for something else than a core, as for a GPU, whatever it is asked.

    Args:
        seconds: of each call.
    """

    def wait(features: dict[str, Any]) -> Any:
        time.sleep(seconds)
        return next(iter(features.values()))

    return wait


def load_computing(fixed: float, per_row: float) -> Callable[[Any], Any]:
    """Load a model that keeps its core busy.

    Args:
        fixed, per_row: seconds of the core for each call, and for each row besides.
    """

    def compute(features: dict[str, Any]) -> Any:
        first = next(iter(features.values()))
        until = time.thread_time() + fixed + per_row * len(first)
        while time.thread_time() < until:
            pass
        return first

    return compute


@functools.cache
def _numbers(count: int) -> NDArray[np.float32]:
    return np.arange(count, dtype=np.float32)[np.newaxis]
