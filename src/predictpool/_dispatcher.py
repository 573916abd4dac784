"""Between callers and workers: encodes requests, carries out what the scheduler decides."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet

import anyio
import cloudpickle
import numpy as np

from predictpool import _columns, _wire
from predictpool._backend import Backend, Cancellable, Waiter
from predictpool._columns import SNAPSHOT_BYTES, Parts, Schema
from predictpool._errors import InvalidFeatures, PredictionError, TooManyRequests
from predictpool._features._encoder import Encoder
from predictpool._features._signature import Signature, SignatureSource, as_arrays
from predictpool._hooks import BatchOutcome, Teller
from predictpool._launcher import WorkerHandle
from predictpool._scheduler import Batch, ErrorFactory, Request, Scheduler, State, Todo
from predictpool._wire import MAX_REQUEST, Frame, Kind
from predictpool._worker import Failure, Ready

logger = logging.getLogger("predictpool")

# How many callers are woken in one turn of the event loop; half of them where there are more.
_AT_ONCE = 32
# What is ready in one turn of the loop wakes others in the next one: so long, once all callers are
# woken, until what came is sent. And for how many turns a worker waits for all of them.
_TURNS, _MOST_TURNS = 2, 8


@dataclass(slots=True, eq=False)
class Call(Request):
    """A request with what the scheduler need not know.

    Attributes:
        key: the schema of its features.
        parts: the segments of its payload.
        waiter: what its caller waits on; set to the outputs or to a `Failed`.
        one: whether the row axis is taken off the outputs.
        inferred: the signature that was taken from it, where none is known yet.
    """

    key: Schema
    parts: Parts
    waiter: Waiter | None
    one: bool
    inferred: Signature | None


@dataclass(slots=True, eq=False)
class Failed:
    """What a caller gets instead of outputs."""

    error: BaseException


class Dispatcher:
    """Carries requests to workers and answers to callers. One event loop, one thread.

    Attributes:
        teller: tells hooks what happens; None where there are no hooks.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        *,
        teller: Teller | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.teller = teller
        self._signature: SignatureSource = None
        self._encoder: Encoder | None = None
        self._scheduler = scheduler
        self._backend = backend
        self._clock = clock
        self._handles: dict[int, WorkerHandle] = {}
        self._models: dict[int, object] = {}
        self._broke_rows: WeakSet[object] = WeakSet()
        self._broken: ErrorFactory | None = None
        self._timer: Cancellable | None = None
        self._timer_at = math.inf
        self._quiet: anyio.Event | None = None
        self._in_hand: Batch | None = None
        self._answers: deque[tuple[Waiter | None, Any]] = deque()
        self._turns_left = 0
        self._turns = 0
        self._retiring: dict[int, anyio.Event] = {}

    @property
    def signature(self) -> SignatureSource:
        """What is known of the features that the model takes."""
        return self._signature

    @signature.setter
    def signature(self, signature: SignatureSource) -> None:
        self._signature = signature
        self._encoder = Encoder(signature) if isinstance(signature, Signature) else None

    @property
    def broken(self) -> bool:
        """Whether all requests are refused, until a worker is ready."""
        return self._broken is not None

    # --- callers -------------------------------------------------------------------

    def submit(self, features: Any, *, one: bool, timeout: float | None) -> tuple[Call, Waiter]:
        """Check and encode features and put them in the queue.

        Raises:
            TooManyRequests: ``max_waiting`` requests are waiting.
            InvalidFeatures: the features do not fit the signature.
            WorkerError: the pool has no worker left.
        """
        if self._broken is not None:
            raise self._broken()
        scheduler = self._scheduler
        if scheduler.full and not self.has_room():
            raise self._refuse()
        now = self._clock()
        try:
            schema, parts, rows, inferred = self._encode(features, one)
            _check_size(parts)
        except InvalidFeatures as error:
            self._reject(error)
            raise
        limit = math.inf if timeout is None else timeout
        waiter = self._backend.waiter()
        call = Call(schema, rows, now, now + limit, limit, parts, waiter, one, inferred)
        scheduler.add(call)
        if self.teller is not None:
            self.teller.submitted(call)
        if scheduler.due and not self._turns_left:
            if scheduler.lonely:
                self._carry_out(scheduler.dispatch(now))
            else:
                self._dispatch_later()
        if call.deadline < self._timer_at:
            self._set_timer()
        return call, waiter

    def _dispatch_later(self) -> None:
        """Let the requests of one turn of the event loop share a batch."""
        if not self._turns_left:
            self._turns = 0
            self._backend.call_soon(self._on_turn_end)
        self._turns_left = _TURNS

    def _on_turn_end(self) -> None:
        self._turns += 1
        # Callers that are answered together mostly come back together: workers wait for them,
        # unless what waits fills their batches.
        if self._answers:
            self._wake_some()
        else:
            self._turns_left -= 1
        if not self._turns_left or self._scheduler.filled or self._turns >= _MOST_TURNS:
            self._carry_out(self._scheduler.dispatch(self._clock()))
        if self._turns_left:
            self._backend.call_soon(self._on_turn_end)

    def has_room(self) -> bool:
        """Return whether one more request would not be refused."""
        scheduler = self._scheduler
        self._carry_out(scheduler.make_room(self._clock()))
        return not scheduler.full or scheduler.idle

    def cancel(self, call: Call) -> None:
        """Forget a request whose caller has gone."""
        if self._scheduler.cancel(call) and self.teller is not None:
            self.teller.ended(call, "cancelled")
        _let_go(call)
        self._note_quiet()

    async def drained(self) -> None:
        """Wait until no request is waiting or running; the caller lets no more of them in."""
        self._carry_out(self._scheduler.release(self._clock()))
        self._quiet = anyio.Event()
        self._note_quiet()
        await self._quiet.wait()

    def fail_all(self, error: ErrorFactory) -> None:
        """End every request with an error, and refuse all further ones with it."""
        self._broken = error
        while self._answers:
            self._wake_next()
        # A batch whose answer could not be handed out is in no worker and in no queue.
        for request in self._in_hand.requests if self._in_hand is not None else ():
            if self._scheduler.blame(request):
                self._fail(request, error())
        self._carry_out(self._scheduler.fail_all(error))

    # --- workers -------------------------------------------------------------------

    def worker_ready(self, slot: int, handle: WorkerHandle, ready: Ready, model: object) -> None:
        """Give work to a worker.

        Args:
            model: the same object for all workers that have loaded the same; what is
                learnt of one of them is remembered until the last has gone.
        """
        self._handles[slot], self._models[slot] = handle, model
        self._broken = None
        if isinstance(ready.signature, Signature) or not isinstance(self.signature, Signature):
            self.signature = ready.signature
        row_wise = ready.row_wise and model not in self._broke_rows
        now = self._clock()
        self._carry_out(self._scheduler.worker_ready(slot, now, row_wise=row_wise, model=model))

    def worker_ending(self, slot: int) -> None:
        """Give nothing more to a worker that is about to be lost."""
        self._scheduler.worker_ending(slot)

    def check_signature(self, ready: Ready) -> None:
        """Raise ValueError if a new predictor cannot answer the requests that wait.

        They are encoded for the signature that the pool has.
        """
        old, new = self.signature, ready.signature
        if isinstance(old, Signature) and isinstance(new, Signature) and str(old) != str(new):
            raise ValueError(
                f"the new predictor takes other features than this pool's ({new}; the pool: "
                f"{old}): open another pool for it"
            )

    async def retire(self, slot: int) -> None:
        """Give nothing more to a slot's worker, and wait until it has answered."""
        self._carry_out(self._scheduler.retire(slot, self._clock()))
        event = self._retiring[slot] = anyio.Event()
        try:
            self._note_quiet()
            await event.wait()
        finally:
            del self._retiring[slot]

    def unretire(self, slot: int) -> None:
        """Go on giving requests to a slot's worker, if it still has one."""
        if slot in self._handles:
            self._carry_out(self._scheduler.unretire(slot, self._clock()))

    def forget(self, slot: int) -> None:
        """Do away with a slot that is retired."""
        self._handles.pop(slot, None)
        self._models.pop(slot, None)
        self._scheduler.forget(slot)

    def worker_lost(self, slot: int, error: ErrorFactory) -> None:
        """Have the requests of a dead worker run again, or fail."""
        self._handles.pop(slot, None)
        self._models.pop(slot, None)
        self._tell_batch_ended(self._scheduler.batch_of(slot), "lost")
        self._carry_out(self._scheduler.worker_lost(slot, error, self._clock()))

    def answered(self, slot: int, frame: Frame) -> None:
        """Hand out the outputs of a batch."""
        now = self._clock()
        batch = self._in_hand = self._scheduler.answered(slot, frame.id, now)
        # The next batch is sent first: its worker would be idle while callers are served.
        if not self._turns_left or self._scheduler.filled:
            self._carry_out(self._scheduler.dispatch(now))
        if batch is not None:
            if self.teller is not None:
                self.teller.batch_ended(batch, "answered", now)
            self._hand_out(batch, frame)
            self._in_hand = None
            if not self._turns_left:
                self._wake_some()

    def failed(self, slot: int, batch_id: int, failure: Failure) -> None:
        """Take note that the model raised."""
        if failure.broke_rows:
            self._run_alone(slot)
        handle = self._handles.get(slot)
        where = f"slot {slot}" + (f", pid {handle.pid}" if handle else "")
        batch = self._scheduler.batch_of(slot)
        if batch is not None and batch.id == batch_id:
            self._tell_batch_ended(batch, "failed")
        self._carry_out(
            self._scheduler.failed(
                slot,
                batch_id,
                lambda: rebuild(failure, where),
                self._clock(),
                alone=failure.broke_rows,
            )
        )

    # --- inside --------------------------------------------------------------------

    def _run_alone(self, slot: int) -> None:
        """Join no more requests for the model that a slot's worker has loaded."""
        model = self._models.get(slot)
        if model is None or model in self._broke_rows:
            return
        self._broke_rows.add(model)
        for other, loaded in self._models.items():
            if loaded is model:
                self._scheduler.run_alone(other)
        logger.warning(
            "the outputs of the model do not have the rows on their first axis: from now "
            "on every request runs as a call of its own"
        )

    def _encode(self, features: Any, one: bool) -> tuple[Schema, Parts, int, Signature | None]:
        if self._encoder is not None:
            return *self._encoder.encode(features, one=one), None
        arrays, mapping = as_arrays(features, one=one)
        if self._signature == "infer":
            inferred = Signature.inferred(arrays)
            return *Encoder(inferred).encode(features, one=one), inferred
        try:
            schema, parts = _columns.encode_features(arrays, mapping, cloudpickle.dumps)
        except Exception as error:
            raise InvalidFeatures(
                f"features cannot be sent to a worker: {error}", given=str(error)
            ) from error
        return schema, parts, len(next(iter(arrays.values()))), None

    def _carry_out(self, todo: Todo) -> None:
        for request, error in todo.fail:
            self._fail(request, error)
        for slot, why in todo.kill:
            self._handles[slot].kill(why)
        for batch in todo.send:
            self._send(batch)
        # The timer may come too early, never too late: most of what it was set for is over
        # by then, and whoever looks for the next deadline passes by all that are over.
        if self._scheduler.holds or any(batch.deadline < self._timer_at for batch in todo.send):
            self._set_timer()
        self._note_quiet()

    def _send(self, batch: Batch) -> None:
        if self.teller is not None:
            self.teller.batch_started(batch)
        calls = cast(list[Call], batch.requests)
        handle = self._handles[batch.slot]
        handle.send(batch.id, calls[0].key, [call.parts for call in calls], batch.rows)

    def _hand_out(self, batch: Batch, frame: Frame) -> None:
        try:
            outputs = _Outputs(frame)
        except Exception as error:  # noqa: BLE001 - unpickling objects can raise anything
            self._blame(batch, _undecodable(error))
            return
        share = len(batch.requests) > 1
        singles = share and all(request.rows == 1 for request in batch.requests)
        rows = outputs.by_row() if singles else None
        start = 0
        for call in cast(list[Call], batch.requests):
            stop = start + call.rows
            if call.state is State.RUNNING:  # its caller still waits
                if call.inferred is not None and not isinstance(self.signature, Signature):
                    self.signature = call.inferred
                if rows is None or call.one:
                    outcome = outputs.part(start, stop, share, call.one)
                else:
                    outcome = rows[start]
                if isinstance(outcome, Failed):
                    self._scheduler.blame(call)
                    self._fail(call, outcome.error)
                else:
                    self._scheduler.answer(call)
                    if self.teller is not None:
                        self.teller.ended(call, "answered")
                    self._answers.append((call.waiter, outcome))
                    _let_go(call)
            start = stop

    def _blame(self, batch: Batch, failure: Failure) -> None:
        for request in batch.requests:
            if self._scheduler.blame(request):
                self._fail(request, rebuild(failure, f"slot {batch.slot}"))

    def _fail(self, request: Request, error: BaseException) -> None:
        if self.teller is not None:
            self.teller.ended(request, "timed_out" if request.expired else "failed", error)
        _wake(request, Failed(error))

    def _refuse(self) -> TooManyRequests:
        self._scheduler.refuse()
        error = _too_many(self._scheduler)
        if self.teller is not None:
            self.teller.turned_away("refused", error)
        return error

    def _reject(self, error: InvalidFeatures) -> None:
        self._scheduler.reject()
        if self.teller is not None:
            self.teller.turned_away("invalid", error)

    def _tell_batch_ended(self, batch: Batch | None, outcome: BatchOutcome) -> None:
        if self.teller is not None and batch is not None:
            self.teller.batch_ended(batch, outcome, self._clock())

    def _wake_some(self) -> None:
        """Wake callers of answered requests, not too many in one turn of the loop.

        Each has something to do then, and asks again. All at once they would keep the loop
        from the answers of other workers, and those from their next batches.
        """
        waiting = len(self._answers)
        count = min(waiting, max(_AT_ONCE, waiting // 2))
        for _ in range(count):
            self._wake_next()
        if waiting > 1 or self._scheduler.due:
            self._dispatch_later()
        self._note_quiet()

    def _wake_next(self) -> None:
        _tell(*self._answers.popleft())

    def _set_timer(self) -> None:
        """Have one timer for all deadlines, set to the earliest."""
        at = self._scheduler.next_deadline()
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._backend.call_later(max(0.0, at - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._carry_out(self._scheduler.expire(self._clock()))
        self._set_timer()

    def stop_timer(self) -> None:
        """Leave nothing behind in the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, -math.inf

    def _note_quiet(self) -> None:
        if self._answers or self._in_hand is not None:
            return
        if self._quiet is not None and self._scheduler.quiet:
            self._quiet.set()
        for slot, event in self._retiring.items():
            if self._scheduler.batch_of(slot) is None:
                event.set()


def _wake(request: Request, failed: Failed) -> None:
    call = cast(Call, request)
    _tell(call.waiter, failed)
    _let_go(call)


def _let_go(call: Call) -> None:
    # Its deadline keeps it for a while.
    call.parts, call.waiter = [], None


def _tell(waiter: Waiter | None, outcome: Any) -> None:
    if waiter is not None and not waiter.done():  # its caller may have left
        waiter.set_result(outcome)


def _check_size(parts: Parts) -> None:
    size = sum(map(len, parts))
    if size > MAX_REQUEST:
        raise InvalidFeatures(
            f"the features of this request are {size:,} bytes, and one request may have "
            f"{MAX_REQUEST:,}: send fewer rows at a time",
            given=f"{size:,} bytes",
            expected=f"at most {MAX_REQUEST:,} bytes",
        )


def _too_many(scheduler: Scheduler) -> TooManyRequests:
    return TooManyRequests(
        f"{scheduler.waiting} requests are waiting, and max_waiting={scheduler.max_waiting:g}: "
        "try again later, or open the pool with more workers or a larger max_waiting",
        waiting=scheduler.waiting,
        max_waiting=int(scheduler.max_waiting),
    )


# --- outputs -----------------------------------------------------------------------


class _Outputs:
    """The outputs of a batch, to be divided among its requests."""

    def __init__(self, frame: Frame) -> None:
        self._whole: Any
        if frame.kind is Kind.ANSWER_OBJECT:
            self._schema = None
            self._whole = _wire.loads_cautiously(frame.payload)
            return
        self._schema = schema = _columns.parse_schema(frame.schema)
        self._whole = _columns.decode_payload(
            schema, frame.rows, frame.payload, _wire.loads_cautiously
        )
        # A view of one row would keep the whole batch in memory as long as it lives.
        self._copy = len(frame.payload) > SNAPSHOT_BYTES

    def by_row(self) -> list[dict[str, Any]] | None:
        """Return each row as `part` would, in half the time; None where it takes `part`."""
        schema = self._schema
        if schema is None or not (schema.mapping and schema.divisible and schema.columns):
            return None
        if self._copy:
            return None
        columns = [list(values[:, None]) for values in self._whole.values()]
        return [dict(zip(self._whole, row, strict=True)) for row in zip(*columns, strict=True)]

    def part(self, start: int, stop: int, share: bool, one: bool) -> Any:
        """Return a request's rows, or a `Failed`.

        Args:
            share: whether there are other requests in the batch.
            one: take the row axis off.
        """
        schema, whole = self._schema, self._whole
        if schema is None:
            return _whole_object(whole, one)
        if not share and not one:
            return whole
        rows = start if one else slice(start, stop)
        if not schema.mapping:
            whole = {"": whole}
        if schema.divisible and not (share and self._copy):
            parts = {name: values[rows] for name, values in whole.items()}
        else:
            parts = {
                column.name: _copied(whole[column.name], rows, share and self._copy)
                if column.per_row
                else whole[column.name]
                for column in schema.columns
            }
        return parts if schema.mapping else parts[""]


def _copied(values: Any, rows: int | slice, copy: bool) -> Any:
    part = values[rows]
    # One element of a column is no view, and bytes have no copy.
    return part.copy() if copy and isinstance(part, np.ndarray) else part


def _whole_object(outputs: Any, one: bool) -> Any:
    if not one:
        return outputs
    if isinstance(outputs, list | tuple) and len(outputs) == 1:
        return outputs[0]
    return Failed(
        TypeError(
            "predict_one needs outputs with a row axis (arrays, a mapping of arrays, or a list "
            f"with one item a row); the predictor returned a {type(outputs).__name__}: use predict"
        )
    )


# --- errors ------------------------------------------------------------------------


def rebuild(failure: Failure, where: str) -> BaseException:
    """Return a model's exception in this process: its own type where that is known here.

    Importing what it needs would stop the event loop; and some exceptions cannot be
    raised through a coroutine. Those come as a `PredictionError`.
    """
    error: Any = None
    if failure.pickled is not None:
        with contextlib.suppress(Exception):  # whatever unpickling it does; the text remains
            error = _wire.loads_cautiously(failure.pickled)
    if not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration):
        return PredictionError(
            f"the model raised {failure.type_name} in {where}: {failure.text}\n\n"
            f"{failure.traceback}",
            type_name=failure.type_name,
            traceback=failure.traceback,
        )
    with contextlib.suppress(Exception):  # a class of the user's may forbid it
        error.add_note(f"raised in a worker ({where}):\n{failure.traceback}")
    return error


def _undecodable(error: Exception) -> Failure:
    reason = (
        f"the outputs are of the type {error}, whose module is not imported in the application: "
        "return arrays, or import it there"
        if isinstance(error, _wire.ForeignType)
        else str(error)
    )
    return Failure(type(error).__qualname__, reason, "", None)
