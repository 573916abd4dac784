"""Clocks around the pool's own functions, in the application and in its worker.

They know the pool's insides: what is renamed there has to be renamed here. All read the clock that
the processes of a machine share. Workers import this module.
"""

import functools
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

When = Literal["before", "after"]


@dataclass(frozen=True)
class Clock:
    """A moment of a request.

    Attributes:
        step: what has been done by then, since the moment before.
        module, function: of the pool; ``Class.method`` is a function too.
        when: whether the clock is read before the function runs or after it.
    """

    step: str
    module: str
    function: str
    when: When


TO_WORKER = (
    Clock("checked and encoded", "_features._encoder", "Encoder.encode", "after"),
    Clock("queued", "_scheduler", "Scheduler.add", "after"),
    Clock("given to a worker", "_dispatcher", "Dispatcher._send", "before"),
    Clock("made a frame", "_channel", "Channel.send", "before"),
)
IN_WORKER = (
    Clock("sent; the worker is awake and has received", "_wire", "FrameDecoder.received", "before"),
    Clock("the frame taken apart by the worker", "_worker", "answer", "before"),
    Clock("features decoded, the model called", "_worker", "_encode_answer", "before"),
    Clock("the answer encoded", "_worker", "answer", "after"),
)
BACK = (
    Clock("sent; the loop is awake and has received", "_wire", "FrameDecoder.received", "before"),
    Clock("the frame taken apart", "_dispatcher", "Dispatcher.answered", "before"),
    Clock("the next batch chosen", "_dispatcher", "Dispatcher._hand_out", "before"),
    Clock("handed out", "_dispatcher", "Dispatcher._hand_out", "after"),
)
LAST_STEP = "the caller is awake"


def set_clocks(clocks: Sequence[Clock], moments: list[int]) -> None:
    """Put clocks around functions of this process, for as long as it lives.

    Args:
        moments: gets the time of each clock, in ns, at the clock's index; the last time counts.
    """
    for index, clock in enumerate(clocks):
        _surround(clock, functools.partial(_take, moments, index))


def _take(moments: list[int], index: int) -> None:
    moments[index] = time.monotonic_ns()


def load_clocked_echo(path: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Load, in a worker, the model that answers what it was asked, and set the worker's clocks.

    Args:
        path: a file with room for a row of `IN_WORKER` for each request; written when the answer
            has left, so that the writing is in no step.
    """
    rows = np.asarray(np.memmap(path, np.int64, "r+")).reshape(-1, len(IN_WORKER))
    moments = [0] * len(IN_WORKER)
    answered = 0

    def note() -> None:
        nonlocal answered
        if moments[-1]:  # else it was no answer that was sent
            rows[answered] = moments
            answered += 1
            moments[-1] = 0

    set_clocks(IN_WORKER, moments)
    _surround(Clock("", "_worker", "_send", "after"), note)
    return lambda values: values


def _surround(clock: Clock, note: Callable[[], object]) -> None:
    owner = importlib.import_module(f"predictpool.{clock.module}")
    *path, name = clock.function.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, _noting(getattr(owner, name), clock.when, note))


def _noting(function: Callable[..., Any], when: When, note: Callable[[], object]) -> Any:
    def before(*given: Any, **named: Any) -> Any:
        note()
        return function(*given, **named)

    def after(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        note()
        return result

    return before if when == "before" else after
