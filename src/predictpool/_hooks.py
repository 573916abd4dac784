"""Hooks: what a pool tells those who watch it, for metrics and traces."""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

from predictpool._launcher import End
from predictpool._scheduler import Batch, Request
from predictpool._statistics import PoolStatistics, WorkerInfo

logger = logging.getLogger("predictpool")

Outcome = Literal["answered", "failed", "invalid", "cancelled", "timed_out", "refused"]
BatchOutcome = Literal["answered", "failed", "lost"]

OUTCOMES: Final[tuple[Outcome, ...]] = (
    "answered",
    "failed",
    "invalid",
    "cancelled",
    "timed_out",
    "refused",
)


# --- facts -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolOpened:
    """A pool begins to start its workers; `Hooks.pool_closed` gets the same object.

    Attributes:
        pool: the pool's name.
        statistics: returns what `PredictorPool.statistics` does, from any thread, or None
            when the pool is gone. Holding it does not keep the pool alive.
    """

    pool: str
    statistics: Callable[[], PoolStatistics | None]


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has loaded its predictor, and gets requests from now on.

    Attributes:
        pool: the pool's name.
        worker: what is known of it.
    """

    pool: str
    worker: WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker that was ready has died, or hung and was killed.

    One that was replaced, or that ends with its pool, is not lost.

    Attributes:
        pool: the pool's name.
        slot: the number of its slot, from 0.
        pid: its process id.
        cause: the name of the signal that ended it, ``"exit"`` where it ended by itself,
            ``"killed by the pool"`` where it hung or sent nonsense, or ``"unknown"``.
        description: the same in words, with likely cause or exit status.
    """

    pool: str
    slot: int
    pid: int
    cause: str
    description: str


@dataclass(frozen=True, slots=True)
class RequestSubmitted:
    """A request was made; told in its caller's context, before `predict` waits.

    Attributes:
        pool: the pool's name.
        id: no other request of this process has it.
        rows: how many rows it has; None where it was refused or invalid.
    """

    pool: str
    id: int
    rows: int | None


@dataclass(frozen=True, slots=True)
class BatchStarted:
    """A batch goes to a worker.

    Attributes:
        pool: the pool's name.
        id: no other batch of this process has it.
        slot: the number of the worker's slot.
        rows: rows of all requests together.
        requests: the ids of its requests.
    """

    pool: str
    id: int
    slot: int
    rows: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """A worker has done with a batch.

    Attributes:
        batch: as it was told when it started.
        outcome: ``"answered"``; ``"failed"`` where the model raised; ``"lost"`` where the worker
            died or the pool ended.
        seconds: from the one to the other.
    """

    batch: BatchStarted
    outcome: BatchOutcome
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request has its outcome; told once for each `RequestSubmitted`.

    Attributes:
        request: as it was told when it was made.
        outcome: ``"answered"``, ``"failed"``, ``"invalid"``, ``"cancelled"``, ``"timed_out"`` or
            ``"refused"``: what `PoolStatistics` counts it as, where invalid ones are among the
            failed.
        waited: seconds in the queue, until a worker got it for the last time.
        ran: seconds in that worker; 0.0 if it waited when it ended.
        batch: the last batch that it ran in, or None.
        error: what its caller gets instead of an answer; None for a caller that is gone.
    """

    request: RequestSubmitted
    outcome: Outcome
    waited: float
    ran: float
    batch: BatchStarted | None
    error: BaseException | None


# --- hooks -------------------------------------------------------------------------


@runtime_checkable
class Hooks(Protocol):
    """Whom a pool tells what happens: ``PredictorPool(..., hooks=[...])``.

    Make a class from it with the methods you need, the others do nothing; or write all of them
    in any class. They are called on the event loop, where requests wait for them: they must
    not block, and cannot await. What they raise is logged, once for each method, and breaks
    nothing.
    """

    def pool_opened(self, fact: PoolOpened) -> None:
        """A pool begins to start its workers."""
        return

    def pool_closed(self, fact: PoolOpened) -> None:
        """It has ended, and with it every request, or it could not be opened."""
        return

    def worker_ready(self, fact: WorkerReady) -> None:
        """A worker has loaded its predictor: at the start, after a death, after a reload."""
        return

    def worker_lost(self, fact: WorkerLost) -> None:
        """A worker has died."""
        return

    def request_submitted(self, fact: RequestSubmitted) -> None:
        """A request was made."""
        return

    def request_ended(self, fact: RequestEnded) -> None:
        """It has its outcome."""
        return

    def batch_started(self, fact: BatchStarted) -> None:
        """A batch goes to a worker."""
        return

    def batch_ended(self, fact: BatchEnded) -> None:
        """A worker has done with a batch; the slot's next one may have started already."""
        return


_EVENTS: Final = tuple(name for name in vars(Hooks) if not name.startswith("_"))


def checked_hooks(hooks: Any) -> tuple[Hooks, ...]:
    """Return the hooks that were given to a pool.

    Raises:
        TypeError: they are no list of hooks, or one of them cannot be called.
    """
    if not isinstance(hooks, list | tuple):
        raise TypeError(f"hooks is {hooks!r}, expected a list of Hooks: hooks=[...]")
    for hook in hooks:
        _check_hook(hook)
    return tuple(hooks)


def _check_hook(hook: Any) -> None:
    if isinstance(hook, type) or not isinstance(hook, Hooks):
        raise TypeError(
            f"hooks has {hook!r}, expected an object with all methods of Hooks, such as "
            "PrometheusHooks(); make its class from Hooks, and it has them"
        )
    for event in _EVENTS:
        if inspect.iscoroutinefunction(getattr(hook, event)):
            raise TypeError(
                f"{event} of {hook!r} is an `async def`, and nobody would await it: make it a "
                "`def` that returns at once"
            )


# --- telling -----------------------------------------------------------------------

# For all pools, so that hooks can be given to several.
_request_ids = itertools.count(1)
_batch_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class _Told:
    """A request whose outcome has not been told.

    Attributes:
        fact: what was told of it.
        batch: the last one that it ran in.
    """

    fact: RequestSubmitted
    batch: BatchStarted | None = None


class Teller:
    """Tells hooks what happens in a pool, every end once; what they raise breaks nothing."""

    def __init__(
        self, hooks: Sequence[Hooks], pool: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hooks = hooks
        self._pool = pool
        self._clock = clock
        self._opened: PoolOpened | None = None
        self._requests: dict[Request, _Told] = {}
        self._batches: dict[Batch, BatchStarted] = {}
        self._logged: set[tuple[int, str]] = set()

    def pool_opened(self, statistics: Callable[[], PoolStatistics | None]) -> None:
        """Tell that the workers are being started."""
        self._opened = PoolOpened(self._pool, statistics)
        self._tell("pool_opened", self._opened)

    def pool_closed(self) -> None:
        """Tell that all has ended."""
        self._tell("pool_closed", self._opened)

    def worker_ready(self, worker: WorkerInfo) -> None:
        """Tell of a worker, before it gets requests."""
        self._tell("worker_ready", WorkerReady(self._pool, worker))

    def worker_lost(self, slot: int, pid: int, end: End) -> None:
        """Tell of a worker's death, before what follows from it."""
        self._tell("worker_lost", WorkerLost(self._pool, slot, pid, end.kind, str(end)))

    def submitted(self, request: Request) -> None:
        """Tell of a request that waits now."""
        fact = RequestSubmitted(self._pool, next(_request_ids), request.rows)
        self._requests[request] = _Told(fact)
        self._tell("request_submitted", fact)

    def turned_away(self, outcome: Outcome, error: BaseException) -> None:
        """Tell of a request that has ended before it could wait."""
        fact = RequestSubmitted(self._pool, next(_request_ids), None)
        self._tell("request_submitted", fact)
        self._tell("request_ended", RequestEnded(fact, outcome, 0.0, 0.0, None, error))

    def ended(self, request: Request, outcome: Outcome, error: BaseException | None = None) -> None:
        """Tell of the end of a request that has waited."""
        told, now = self._requests.pop(request), self._clock()
        started = request.started_at or now
        waited, ran = started - request.submitted_at, now - started
        self._tell(
            "request_ended", RequestEnded(told.fact, outcome, waited, ran, told.batch, error)
        )

    def batch_started(self, batch: Batch) -> None:
        """Tell of a batch that is about to be sent."""
        requests = [self._requests[request] for request in batch.requests]
        ids = tuple(request.fact.id for request in requests)
        fact = BatchStarted(self._pool, next(_batch_ids), batch.slot, batch.rows, ids)
        for request in requests:
            request.batch = fact
        self._batches[batch] = fact
        self._tell("batch_started", fact)

    def batch_ended(self, batch: Batch, outcome: BatchOutcome, now: float) -> None:
        """Tell of the end of a batch."""
        fact = self._batches.pop(batch, None)
        if fact is not None:  # a bug of ours may have kept it from being sent
            self._tell("batch_ended", BatchEnded(fact, outcome, now - batch.started_at))

    def _tell(self, event: str, fact: object) -> None:
        for number, hook in enumerate(self._hooks):
            try:
                getattr(hook, event)(fact)
            except Exception:
                if (number, event) not in self._logged:
                    self._logged.add((number, event))
                    logger.exception(
                        "%s of %r has raised; the pool goes on, and does not log it again",
                        event,
                        hook,
                    )
