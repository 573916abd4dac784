"""What a pool tells of itself: what it counts, and its workers."""

from __future__ import annotations

from dataclasses import dataclass

from predictpool._devices import Device


@dataclass(slots=True)
class Counters:
    """The running totals, kept by the scheduler."""

    submitted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    refused: int = 0
    rows: int = 0
    batches: int = 0
    waiting_seconds: float = 0.0
    running_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment, from `PredictorPool.statistics`.

    ``submitted`` always equals ``answered + failed + cancelled + timed_out + refused +
    waiting + running``: a request is in exactly one of these.

    Attributes:
        workers: how many workers the pool is meant to have.
        ready: how many of them are ready.
        restarts: how many workers were started in place of one that died.
        submitted: requests made so far.
        answered: requests that got their answer.
        failed: requests that ended with an error, invalid features included.
        cancelled: requests whose callers were cancelled.
        timed_out: requests that passed their deadline.
        refused: requests that found ``max_waiting`` others waiting.
        waiting: requests in the queue now.
        running: requests in a worker now.
        rows: rows of all answered requests.
        batches: batches sent to workers.
        waiting_seconds: seconds that the answered requests spent in the queue, together.
        running_seconds: seconds that workers spent on batches, together.
    """

    workers: int
    ready: int
    restarts: int
    submitted: int
    answered: int
    failed: int
    cancelled: int
    timed_out: int
    refused: int
    waiting: int
    running: int
    rows: int
    batches: int
    waiting_seconds: float
    running_seconds: float


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that is ready, from `PredictorPool.workers`.

    Attributes:
        slot: the number of its slot, from 0.
        pid: its process id.
        device: where it is pinned.
        method: how the predictor keeps its model loaded: ``"generator"``, ``"session"`` or
            ``"function"``; None where it does not say.
        row_wise: whether it takes rows of several requests in one call.
        load_seconds: how long it took to load the predictor and to warm up.
        warning: what it found wrong with the predictor, or ``""``.
    """

    slot: int
    pid: int
    device: Device
    method: str | None
    row_wise: bool
    load_seconds: float
    warning: str
