"""Forty lines by hand over ``ProcessPoolExecutor``: the contender to beat.

What an engineer who knows asyncio writes in an afternoon. A process that is free takes what waits,
at most 64 requests; their rows are joined as columns, and the answer is divided among them. There
is no timer: nobody waits while a process is free. It knows no deadline, no bound of its queue, no
bad input of one caller that spares the others, and the first process that dies ends it for good.
"""

import asyncio
import functools
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.models import Arrays, Model
from predictpool import Device, Signature
from predictpool.predictors._estimator import Method

MOST = 64

Waiting = tuple[Arrays, "asyncio.Future[Arrays]"]


class MicroBatcher:
    """Joins the requests of one event loop into batches.

    Args:
        call: predicts for a batch, in one of the executor's processes.
    """

    def __init__(
        self, executor: ProcessPoolExecutor, workers: int, call: Callable[[Arrays], Arrays]
    ) -> None:
        self._executor, self._free, self._predict = executor, workers, call
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Waiting] = deque()

    def ask(self, row: Arrays) -> "asyncio.Future[Arrays]":
        """Return a future of the outputs for one or more rows."""
        future: asyncio.Future[Arrays] = self._loop.create_future()
        if not self._waiting:  # whoever asks in the same turn of the loop comes along
            self._loop.call_soon(self._send)
        self._waiting.append((row, future))
        return future

    def _send(self) -> None:
        while self._free and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            rows = [row for row, _ in batch]
            columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
            self._free -= 1
            self._executor.submit(self._predict, columns).add_done_callback(
                lambda done, batch=batch: self._loop.call_soon_threadsafe(  # type: ignore[misc]
                    self._answered, batch, done
                )
            )

    def _answered(self, batch: list[Waiting], done: "Future[Arrays]") -> None:
        self._free += 1
        self._send()  # first: the process would be idle while callers are served
        error = done.exception()
        outputs = [] if error is not None else list(done.result().items())
        start = 0
        for row, future in batch:
            stop = start + len(next(iter(row.values())))
            if error is not None and not future.done():
                future.set_exception(error)
            elif not future.done():
                future.set_result({name: values[start:stop] for name, values in outputs})
            start = stop


# --- in the executor's processes ---------------------------------------------------

_predict: Callable[[Arrays], Arrays]
_shapes: dict[str, tuple[Any, ...]]


def load(model: Model, method: Method, cores: Any = None, together: Any = None) -> None:
    """Load the predictor: the executor's initializer.

    Args:
        cores: a queue with a core for each process; None where they are not pinned.
        together: a barrier, at which each waits until all have loaded.
    """
    global _predict, _shapes  # noqa: PLW0603 - an executor's processes keep what they have in globals
    if cores is not None:
        os.sched_setaffinity(0, (cores.get(),))
    predictor = model.predictor(method)
    predictor.load(Device(threads=1))
    assert isinstance(predictor.signature, Signature)  # derived from the feature columns
    _predict = predictor.predict
    _shapes = {name: (-1, *spec.shape) for name, spec in predictor.signature.features.items()}
    predict(predictor.signature.example())  # the first call builds what the others use
    if together is not None:
        together.wait()


def predict(features: Arrays) -> Arrays:
    """Predict for some rows, in one of the executor's processes."""
    return _predict({name: values.reshape(_shapes[name]) for name, values in features.items()})


@functools.cache
def _loaded(model: Model, method: Method) -> None:
    load(model, method)


def load_and_predict(model: Model, method: Method, features: Arrays) -> Arrays:
    """Do as `predict`, in a process that has no initializer."""
    _loaded(model, method)
    return predict(features)
