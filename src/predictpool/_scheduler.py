"""Who runs what: the queue, the slots, the batches, deadlines and retries, as pure state.

Every method is one transition: it changes the state and returns a `Todo` where I/O
follows from it. There is no await, no clock and no process in here, so that all of it can
be driven by a state machine in tests.

The rules:

- One queue for the whole pool. A worker that can take more gets the oldest requests that
  fit together, up to ``max_batch_size`` rows; several that are idle share them evenly.
- Nobody waits while a worker is idle: after `Scheduler.dispatch` either no worker is idle or
  no request waits. With a ``batch_timeout`` a request may wait that long for others to fill
  its batch, unless it would run out of time. With `Scheduler.routes`, for workers that are not
  equal, it may wait for a busy worker that is expected to answer it sooner than an idle one.
- Requests with different keys never share a batch and never block each other.
- A worker whose model is not row-wise gets one request at a time; the others' requests are
  joined all the same.
- A batch that the model refused is halved until only the guilty requests fail.
- The requests of a worker that died run again, each alone, at most ``retries`` times.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from predictpool._errors import PoolTimeout
from predictpool._statistics import Counters

if TYPE_CHECKING:
    from predictpool._routing import Routes

# So many deadlines need no tidying up.
_FEW_DEADLINES = 64


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Request:
    """One `predict` call.

    Attributes:
        key: requests with equal keys may share a batch.
        rows: how many rows it has.
        timeout: the caller's limit in seconds, for the message.
        submitted_at, deadline, started_at: in seconds of the pool's clock; the last is 0.0 while it
            waits.
        place: the lower, the older.
        deaths: how many workers died while they ran it.
        expired: whether it ended because its deadline had passed.
    """

    key: Hashable
    rows: int
    submitted_at: float
    deadline: float
    timeout: float
    state: State = field(default=State.WAITING, init=False)
    started_at: float = field(default=0.0, init=False)
    place: int = field(default=0, init=False)
    deaths: int = field(default=0, init=False)
    expired: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run in one call of the model.

    ``id`` is never used twice in a pool's life, so that a late answer of a replaced
    worker can never be taken for another request's. ``deadline`` is when its worker hangs.
    """

    id: int
    slot: int
    requests: list[Request]
    started_at: float
    deadline: float = math.inf
    killed: bool = False

    @property
    def rows(self) -> int:
        """Rows of all requests together."""
        return sum(request.rows for request in self.requests)


@dataclass(slots=True, eq=False)
class Todo:
    """What the dispatcher has to do after a transition, in this order.

    Attributes:
        fail: requests that end with an error.
        kill: slots whose workers have to be killed, with the reason.
        send: batches that go to their workers.
    """

    fail: list[tuple[Request, BaseException]] = field(default_factory=list)
    kill: list[tuple[int, str]] = field(default_factory=list)
    send: list[Batch] = field(default_factory=list)


ErrorFactory = Callable[[], BaseException]


class _Line:
    """The waiting requests of one key, the oldest first.

    Attributes:
        key: theirs.
        requests: a dict for its order and for leaving from the middle.
        rows: how many rows they have together.
        until: when they are not held any more; None where it has to be looked up.
    """

    __slots__ = ("key", "requests", "rows", "until")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self.rows = 0
        self.until: float | None = math.inf

    @property
    def place(self) -> int:
        """That of the oldest request."""
        return next(iter(self.requests)).place


class Scheduler:
    """The state of a pool's requests. See the module's docstring for the rules.

    Attributes:
        routes: decides who gets what, where workers need different times for the same; None
            where they are equal.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_waiting: float,
        retries: int,
        hang_timeout: float,
        batch_timeout: float = 0.0,
    ) -> None:
        self.counters = Counters()
        self.routes: Routes | None = None
        self.waiting = 0
        self._max_batch_size = max_batch_size
        self.max_waiting = max_waiting
        self._retries = retries
        self._hang_timeout = hang_timeout
        self._batch_timeout = batch_timeout
        self._ids = itertools.count(1)
        self._lines: dict[Hashable, _Line] = {}
        self._again: deque[list[Request]] = deque()
        self._idle: list[int] = []
        self._retired: set[int] = set()
        self._alone: set[int] = set()
        self._running: dict[int, Batch] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._tidy_at = _FEW_DEADLINES
        self._places = itertools.count()
        self._counts_until = math.inf  # on busy workers, for what waits while others are idle
        self._planned_at = -math.inf  # what was not held any more then is not held since

    # --- what can be asked ---------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests in a worker whose callers still want the answer."""
        return sum(
            request.state is State.RUNNING
            for batch in tuple(self._running.values())  # a scrape asks from its own thread
            for request in batch.requests
        )

    @property
    def quiet(self) -> bool:
        """Whether no request is waiting or running."""
        return not self.waiting and not self.running

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may."""
        return self.waiting >= self.max_waiting

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return bool(self._idle)

    @property
    def due(self) -> bool:
        """Whether `dispatch` may have something to do."""
        return bool(self._idle) and self.waiting > 0

    @property
    def filled(self) -> bool:
        """Whether what waits fills a batch of each idle worker."""
        rows = sum(line.rows for line in self._lines.values())
        return rows >= self._max_batch_size * len(self._idle) or bool(self._again)

    @property
    def holds(self) -> bool:
        """Whether a request may be held while a worker is idle."""
        return self._batch_timeout > 0 or self._counts_until < math.inf

    @property
    def lonely(self) -> bool:
        """Whether there is one waiting request and nothing else."""
        return self.waiting == 1 and not self._running

    def batch_of(self, slot: int) -> Batch | None:
        """Return the batch that a slot's worker is running."""
        return self._running.get(slot)

    def next_deadline(self) -> float:
        """Return when `expire` has something to do, in seconds of the pool's clock."""
        heap = self._deadlines
        while heap and heap[0][2].state is State.DONE:
            heapq.heappop(heap)
        soonest = heap[0][0] if heap else math.inf
        for batch in self._running.values():
            if not batch.killed:
                soonest = min(soonest, batch.deadline)
        if self._batch_timeout and self._idle:
            untils = map(self._until, self._lines.values())
            later = (until for until in untils if until > self._planned_at)
            soonest = min(soonest, *later, math.inf)
        return min(soonest, self._counts_until)

    # --- requests ------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take a request into the queue, where `make_room` has found a place for it."""
        self.counters.submitted += 1
        self.waiting += 1
        request.place = next(self._places)
        line = self._lines.get(request.key)
        if line is None:
            line = self._lines[request.key] = _Line(request.key)
        line.requests[request] = None
        line.rows += request.rows
        if self._batch_timeout and line.until is not None:
            line.until = min(line.until, self._held_until(request))
        if request.deadline < math.inf:
            heapq.heappush(self._deadlines, (request.deadline, request.place, request))
            if len(self._deadlines) > self._tidy_at:
                self._forget_old_deadlines()

    def dispatch(self, now: float) -> Todo:
        """Give what waits to idle workers, but for what is held for a batch to fill."""
        return self._dispatch(now, Todo())

    def release(self, now: float) -> Todo:
        """Hold nothing from now on: no request will come to fill a batch."""
        self._batch_timeout = 0.0
        return self.dispatch(now)

    def make_room(self, now: float) -> Todo:
        """Give out what is held, too, where the queue would be full otherwise."""
        full = self.full and self._idle
        return self._dispatch(now, Todo(), hold=False) if full else Todo()

    def refuse(self) -> None:
        """Count a request that found the queue full."""
        self.counters.submitted += 1
        self.counters.refused += 1

    def reject(self) -> None:
        """Count a request whose features were invalid."""
        self.counters.submitted += 1
        self.counters.failed += 1

    def cancel(self, request: Request) -> bool:
        """Forget a request whose caller has gone; False if it had ended.

        Its batch-mates notice nothing.
        """
        if not self._finish(request):
            return False
        self.counters.cancelled += 1
        return True

    def expire(self, now: float) -> Todo:
        """Fail what has run out of time, give out what was held, have hung workers killed."""
        todo = self._dispatch(now, Todo())
        for slot, batch in self._running.items():
            if not batch.killed and now >= batch.deadline:
                batch.killed = True
                self._retired.discard(slot)
                todo.kill.append((slot, f"ran longer than hang_timeout={self._hang_timeout:g} s"))
        return todo

    # --- workers -------------------------------------------------------------------

    def worker_ready(
        self, slot: int, now: float, *, row_wise: bool = True, model: object = None
    ) -> Todo:
        """Give work to a worker that has just become ready.

        Args:
            row_wise: whether requests may share one of its calls.
            model: what it has loaded: the same object for the same.
        """
        if self.routes is not None:
            self.routes.worker_ready(slot, model)
        self._retired.discard(slot)
        self._alone.discard(slot)
        if not row_wise:
            self._alone.add(slot)
        self._idle.append(slot)
        return self._dispatch(now, Todo())

    def answered(self, slot: int, batch_id: int, now: float) -> Batch | None:
        """Take note of a worker's answer; it is idle until `dispatch`.

        Returns:
            the batch, whose requests that are still RUNNING are now `answer`-ed by the
            caller; None for an answer that nobody waits for.
        """
        batch = self._end_batch(slot, batch_id, now)
        if batch is not None:
            if self.routes is not None:
                self.routes.answered(batch, now)
            self._free(batch)
        return batch

    def answer(self, request: Request) -> bool:
        """Mark a request as answered; False if its caller has gone meanwhile."""
        if request.state is not State.RUNNING:
            return False
        request.state = State.DONE
        counters = self.counters
        counters.answered += 1
        counters.rows += request.rows
        counters.waiting_seconds += request.started_at - request.submitted_at
        return True

    def blame(self, request: Request) -> bool:
        """Mark a request of an answered batch as failed; False if its caller has gone."""
        if not self._finish(request):
            return False
        self.counters.failed += 1
        return True

    def failed(
        self, slot: int, batch_id: int, error: ErrorFactory, now: float, *, alone: bool = False
    ) -> Todo:
        """Take note of a batch that the model refused.

        Args:
            error: makes the error, in case a single request is to blame.
            alone: run each request alone instead of halving the batch.
        """
        batch = self._end_batch(slot, batch_id, now)
        if batch is None:
            return Todo()
        todo = Todo()
        live = [request for request in batch.requests if request.state is State.RUNNING]
        if len(batch.requests) == 1:
            self._fail(live, error, todo)
        else:
            size = 1 if alone else (len(live) + 1) // 2
            self._run_again([live[i : i + size] for i in range(0, len(live), max(size, 1))])
        self._free(batch)
        return self._dispatch(now, todo)

    def run_alone(self, slot: int) -> None:
        """Have every further request to a worker be a call of its own."""
        self._alone.add(slot)

    def worker_ending(self, slot: int) -> None:
        """Give nothing more to a worker; what it still answers counts."""
        self._retired.discard(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        elif slot in self._running:
            self._running[slot].killed = True

    def retire(self, slot: int, now: float) -> Todo:
        """Give nothing more to a worker that is to be replaced; its batch runs on."""
        if slot in self._idle:
            self._idle.remove(slot)
            self._retired.add(slot)
        elif slot in self._running and not self._running[slot].killed:
            self._retired.add(slot)
        return self._dispatch(now, Todo())  # what waits for it

    def forget(self, slot: int) -> None:
        """Do away with a slot whose worker is retired, and what was learnt of it."""
        self.worker_ending(slot)
        if self.routes is not None:
            self.routes.forget(slot)

    def unretire(self, slot: int, now: float) -> Todo:
        """Go on with a worker that was to be replaced and is not."""
        if slot in self._retired:
            self._retired.remove(slot)
            if slot not in self._running:
                self._idle.append(slot)
        return self._dispatch(now, Todo())

    def worker_lost(self, slot: int, error: ErrorFactory, now: float) -> Todo:
        """Take note of a worker's death.

        Its requests run again, alone, unless they have taken ``retries`` workers with
        them before: those fail.
        """
        todo = Todo()
        self.worker_ending(slot)
        batch = self._running.get(slot)
        if batch is None:
            return todo
        self._end_batch(slot, batch.id, now)
        live = [request for request in batch.requests if request.state is State.RUNNING]
        for request in live:
            request.deaths += 1
        guilty = [request for request in live if request.deaths > self._retries]
        self._fail(guilty, error, todo)
        self._run_again([[request] for request in live if request.state is State.RUNNING])
        return self._dispatch(now, todo)

    def fail_all(self, error: ErrorFactory) -> Todo:
        """End every request that waits or runs with an error."""
        todo = Todo()
        running = [r for batch in self._running.values() for r in batch.requests]
        lines = (line.requests for line in self._lines.values())
        waiting = [request for group in (*self._again, *lines) for request in group]
        self._fail((r for r in running + waiting if r.state is not State.DONE), error, todo)
        return todo

    # --- inside --------------------------------------------------------------------

    def _run_again(self, groups: Iterable[list[Request]]) -> None:
        """Put groups at the front of the queue; each runs as a batch of its own."""
        for group in reversed([group for group in groups if group]):
            for request in group:
                request.state, request.started_at = State.WAITING, 0.0
                self.waiting += 1
            self._again.appendleft(group)

    def _finish(self, request: Request) -> bool:
        """End a request wherever it is; False if it had ended."""
        if request.state is State.DONE:
            return False
        if request.state is State.WAITING:
            self.waiting -= 1
            line = self._lines.get(request.key)
            if line is not None and request in line.requests:
                del line.requests[request]
                line.rows -= request.rows
                if not line.requests:
                    del self._lines[request.key]
                else:
                    line.until = None
        request.state = State.DONE
        return True

    def _fail(self, requests: Iterable[Request], error: ErrorFactory, todo: Todo) -> None:
        for request in requests:
            if self._finish(request):
                self.counters.failed += 1
                todo.fail.append((request, error()))

    def _end_batch(self, slot: int, batch_id: int, now: float) -> Batch | None:
        batch = self._running.get(slot)
        if batch is None or batch.id != batch_id:
            return None
        del self._running[slot]
        if self.routes is not None:
            self.routes.ended(batch)
        self.counters.running_seconds += now - batch.started_at
        return batch

    def _time_out(self, now: float, todo: Todo) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if request.state is not State.DONE:
                error = _timeout_error(request, now)
                self._finish(request)
                self.counters.timed_out += 1
                request.expired = True
                todo.fail.append((request, error))

    def _free(self, batch: Batch) -> None:
        # A worker that is being killed gets nothing more, even if it answers first.
        if not batch.killed and batch.slot not in self._retired:
            self._idle.append(batch.slot)

    def _dispatch(self, now: float, todo: Todo, *, hold: bool = True) -> Todo:
        # An expired request never reaches a worker, however late the pool's timer is.
        if self._deadlines and self._deadlines[0][0] <= now:
            self._time_out(now, todo)
        if self.routes is not None:
            self._route(self.routes, now, todo, hold=hold)
            return todo
        while self._idle and self.waiting:
            requests = self._take(self._idle[-1] in self._alone, now if hold else math.inf)
            if requests is None:
                break
            if not requests:
                continue
            todo.send.append(self._start(self._idle.pop(), requests, now))
        return todo

    def _start(self, slot: int, requests: list[Request], now: float) -> Batch:
        batch = Batch(next(self._ids), slot, requests, now, now + self._hang_timeout)
        for request in requests:
            request.state = State.RUNNING
            request.started_at = now
        self.waiting -= len(requests)
        self._running[slot] = batch
        self.counters.batches += 1
        if self.routes is not None:
            self.routes.started(batch)
        return batch

    def _route(self, routes: Routes, now: float, todo: Todo, *, hold: bool) -> None:
        """Give what waits to those idle workers that will answer it sooner than busy ones."""
        self._planned_at = now
        while self._idle and self.waiting and self._again:
            requests = self._take(self._idle[-1] in self._alone, now)
            if requests:
                todo.send.append(self._start(self._idle.pop(), requests, now))
        if self._idle and self._lines:
            for slot, requests in self._planned(routes, now, hold=hold):
                self._idle.remove(slot)
                self._take_out(requests)
                todo.send.append(self._start(slot, requests, now))
        held = self._idle and self._lines
        self._counts_until = routes.counts_until(now, self._going_on()) if held else math.inf

    def _planned(
        self, routes: Routes, now: float, *, hold: bool
    ) -> list[tuple[int, list[Request]]]:
        lines: Collection[_Line] = self._lines.values()
        if self._batch_timeout and hold and not self._alone.intersection(self._idle):
            lines = self._not_held(now)
        lines = sorted(lines, key=_place)
        waiting = [(line.key, line.requests) for line in lines]
        planned = routes.plan(now, waiting, self._idle, self._going_on(), self._alone)
        if not planned and not hold:
            oldest = lines[0]
            first = [(oldest.key, [next(iter(oldest.requests))])]
            planned = routes.plan(now, first, self._idle, (), self._alone)
        return planned

    def _going_on(self) -> list[int]:
        """Return the busy workers that get more when they have answered."""
        return [
            slot
            for slot, batch in self._running.items()
            if not batch.killed and slot not in self._retired
        ]

    def _take_out(self, requests: list[Request]) -> None:
        """Take requests with equal keys out of the queue."""
        line = self._lines[requests[0].key]
        for request in requests:
            del line.requests[request]
            line.rows -= request.rows
        if line.requests:
            line.until = None
        else:
            del self._lines[line.key]

    def _take(self, alone: bool, now: float) -> list[Request] | None:
        """Take the oldest requests that fit together out of the queue, or the oldest one.

        Returns:
            None where all that wait are held.
        """
        if self._again:
            group = [r for r in self._again.popleft() if r.state is State.WAITING]
            if alone and len(group) > 1:
                self._again.appendleft(group[1:])
                del group[1:]
            return group
        lines: Collection[_Line] = self._lines.values()
        if self._batch_timeout and not alone:
            lines = self._not_held(now)
            if not lines:
                return None
        line = min(lines, key=_place) if len(lines) > 1 else next(iter(lines))
        return self._take_from(line, None if alone else self._share(line))

    def _not_held(self, now: float) -> list[_Line]:
        """Return the lines that fill a batch, or have waited long enough for it."""
        most = self._max_batch_size
        lines = self._lines.values()
        return [line for line in lines if line.rows >= most or self._until(line) <= now]

    def _share(self, line: _Line) -> int:
        """Return how many rows of a line one of the idle workers should take."""
        if self._batch_timeout:
            return self._max_batch_size
        workers = max(1, len(self._idle) - (len(self._lines) - 1))
        return min(self._max_batch_size, -(-line.rows // workers))

    def _take_from(self, line: _Line, most: int | None) -> list[Request]:
        """Take the oldest requests that have at most so many rows, and one at least.

        Args:
            most: None for one request.
        """
        queue = line.requests
        request, _ = queue.popitem(last=False)
        taken, rows = [request], request.rows
        while queue and most is not None:
            request, _ = queue.popitem(last=False)
            rows += request.rows
            if rows > most:
                rows -= request.rows
                queue[request] = None
                queue.move_to_end(request, last=False)
                break
            taken.append(request)
        line.rows -= rows
        if not queue:
            del self._lines[taken[0].key]
        else:
            line.until = None
        return taken

    def _until(self, line: _Line) -> float:
        if line.until is None:
            line.until = min(map(self._held_until, line.requests))
        return line.until

    def _held_until(self, request: Request) -> float:
        # One that would run out of time meanwhile is not held at all.
        held = self._batch_timeout if self._batch_timeout < request.timeout else 0.0
        return request.submitted_at + held

    def _forget_old_deadlines(self) -> None:
        # Finished requests leave their deadlines behind; without this, an hour's timeout
        # would keep an hour's requests in memory.
        self._deadlines = [entry for entry in self._deadlines if entry[2].state is not State.DONE]
        heapq.heapify(self._deadlines)
        self._tidy_at = 2 * len(self._deadlines) + _FEW_DEADLINES


def _place(line: _Line) -> int:
    return line.place


def _timeout_error(request: Request, now: float) -> PoolTimeout:
    started = request.state is State.RUNNING
    waited = (request.started_at if started else now) - request.submitted_at
    ran = now - request.started_at if started else 0.0
    return PoolTimeout(
        f"no answer within timeout={request.timeout:g} s: the request waited {waited:.3f} s "
        f"in the queue and ran {ran:.3f} s in a worker",
        timeout=request.timeout,
        waited=waited,
        ran=ran,
    )
