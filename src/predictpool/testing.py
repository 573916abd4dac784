"""For tests of code that uses a pool: `InlinePool`, whose workers are no processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from predictpool._backend import Backend
from predictpool._columns import OutputEncoder, Parts, Schema, join_parts
from predictpool._devices import Device, Wishes, one_for_each
from predictpool._launcher import End, Launcher, Listener, WorkerHandle
from predictpool._pool import PredictorPool
from predictpool._wire import Frame, Kind, decode_frame, loads_cautiously
from predictpool._worker import Failure, Start, answer, describe, exit_by, load_predictor

__all__ = ["InlinePool"]

OutputsT = TypeVar("OutputsT")


class InlinePool(PredictorPool[OutputsT]):
    """A `PredictorPool` without processes, for tests of code that uses one.

    ::

        async with InlinePool(FunctionPredictor(load)) as pool:
            assert (await pool.predict([1.0])).tolist() == [2.0]

    It is a `PredictorPool` in all but where its workers live: options, checks, batches,
    deadlines, errors and statistics are the pool's own. A worker is a thread of this process,
    and the event loop stands still while one loads or predicts, so that a test runs the same
    way every time. What follows from it:

    - ``workers=None`` means one, or one for each that ``devices`` lists; of them only
      `Device.kind` counts, as nothing is looked for and nobody is pinned. ``launcher`` is
      checked, and not used.
    - A timeout that passes while the model runs is told when it has returned.
    - What the predictor imports is imported into this process; TensorFlow keeps the threads
      that it has.
    - The predictor is pickled as for a process, so that what cannot travel is found; what it
      takes from a module by name is not copied but the module's own, so that a test can watch
      or replace it there.
    - `WorkerInfo.pid` is this process. Where the model calls ``sys.exit`` its worker ends, as a
      process would; what kills a process kills the tests.
    """

    def _launcher_for(self, given: Launcher | None) -> Launcher:
        return _InlineLauncher()


class _InlineLauncher:
    """Starts workers in this process."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._workers: list[_InlineWorker] = []
        self._closed = ""  # why, once it is

    def plan_blocks(self, wishes: Wishes) -> bool:
        return False

    def plan(self, wishes: Wishes, workers: int | None) -> list[Device]:
        # Pinned to nothing: cores and GPUs are the application's.
        each = one_for_each(wishes, workers)[:workers]
        return [Device("gpu" if wish.kind == "gpu" else "cpu") for wish in each]

    def bind(self, backend: Backend, preload: tuple[str, ...], devices: Sequence[Device]) -> None:
        self._backend = backend

    async def start(self, start: Start, listener: Listener) -> WorkerHandle:
        assert self._backend is not None
        if self._closed:
            raise ChildProcessError(f"the last one {self._closed}")
        worker = _InlineWorker(self._backend, listener, self._end)
        self._workers = [*(other for other in self._workers if not other.gone), worker]
        worker.begin(start)
        return worker

    def kill(self) -> None:
        self._end("belongs to a pool that was closed")

    async def aclose(self) -> None:
        self.kill()

    def _end(self, why: str) -> None:
        self._closed = why
        for worker in self._workers:
            worker.kill(why)


_Report: TypeAlias = Callable[[], None]
"""Tells the listener what came of an order."""

_Order: TypeAlias = Callable[[], _Report]
"""What the pool asks of a worker."""


class _InlineWorker:
    """A worker in this process: it carries out one order after another.

    In a thread of its own, the same for its whole life, as a predictor may expect: what
    TensorFlow 1 keeps open belongs to a thread, and would be in the way of the tests' own.

    Attributes:
        gone: whether it has ended.
    """

    def __init__(
        self, backend: Backend, listener: Listener, end_all: Callable[[str], None]
    ) -> None:
        self.pid = os.getpid()
        self.gone = False
        self._backend = backend
        self._listener = listener
        self._end_all = end_all
        self._orders: deque[_Order] = deque()
        self._predictor: Any = None
        self._encoder = OutputEncoder()
        self._running = False
        self._to_thread: SimpleQueue[_Order | None] = SimpleQueue()
        self._from_thread: SimpleQueue[_Report] = SimpleQueue()
        # A daemon, so that a program ends whose model never does.
        self._thread = threading.Thread(
            target=self._work, name="predictpool inline worker", daemon=True
        )
        self._thread.start()

    # --- what the pool asks for ----------------------------------------------------

    def begin(self, start: Start) -> None:
        """Have the predictor loaded."""
        self._order(partial(self._load, start))

    def send(self, batch_id: int, schema: Schema, requests: Sequence[Parts], rows: int) -> None:
        parts, _ = join_parts(requests)
        payload = memoryview(b"".join(parts))  # of bytes, so nobody can write to it
        joined = len(requests) > 1
        frame = Frame(Kind.PREDICT, batch_id, rows, joined, False, schema.blob, payload)
        self._order(partial(self._predict, frame))

    def stop(self) -> None:
        self._order(self._close)

    def kill(self, why: str) -> None:
        if not self.gone:
            self._let_go()
            end = End(None, int(signal.SIGKILL), "", False, why)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is to be told
                self._backend.call_soon(partial(self._listener.ended, end))

    # --- in the event loop ---------------------------------------------------------

    def _order(self, order: _Order) -> None:
        self._orders.append(order)
        if len(self._orders) == 1:
            self._in_turn(self._carry_out)

    def _in_turn(self, callback: Callable[[], None]) -> None:
        # No sooner than what is due by then: deadlines that passed while the event loop stood
        # still come before the answer, as where the model ran elsewhere.
        self._backend.call_later(0.0, callback)

    def _carry_out(self) -> None:
        """Carry out the oldest order, while the event loop waits."""
        if self.gone:
            return
        self._running = True
        try:
            self._to_thread.put(self._orders[0])
            report = self._from_thread.get()
        except BaseException:  # not the model's: Ctrl-C, or a test's time limit
            # Nobody is to run the same again: asyncio goes on after most of what is raised here.
            self._end_all("was interrupted")
            raise
        self._running = False
        self._in_turn(partial(self._tell, report))

    def _tell(self, report: _Report) -> None:
        if self.gone:
            return
        self._orders.popleft()
        if self._orders:
            self._in_turn(self._carry_out)
        report()

    def _start_failed(self, failure: Failure) -> None:
        self._listener.start_failed(failure)
        self._ended(End(0, None, "", False, ""))

    def _ended(self, end: End) -> None:
        self._let_go()
        self._listener.ended(end)

    def _let_go(self) -> None:
        self.gone = True
        self._orders.clear()
        self._to_thread.put(None)
        if not self._running:  # or else waiting for the model was interrupted
            self._thread.join()

    # --- in the worker's thread ----------------------------------------------------

    def _work(self) -> None:
        for order in iter(self._to_thread.get, None):
            self._from_thread.put(self._outcome(order))
        self._predictor = None

    def _outcome(self, order: _Order) -> _Report:
        try:
            return order()
        except BaseException as error:  # noqa: BLE001 - it would have ended a process
            return partial(self._ended, _end_by(error))

    def _load(self, start: Start) -> _Report:
        try:
            self._predictor, ready = load_predictor(start)
        except Exception as error:  # noqa: BLE001 - whatever it is, the pool is told
            return partial(self._start_failed, describe(error))
        return partial(self._listener.ready, ready)

    def _predict(self, frame: Frame) -> _Report:
        parts = answer(self._predictor, self._encoder, attrgetter("payload"), frame)
        reply = decode_frame(memoryview(bytearray().join(parts)))  # writable, as a received one
        if reply.kind is Kind.FAILURE:
            return partial(self._listener.failed, reply.id, loads_cautiously(reply.payload))
        return partial(self._listener.answered, reply)

    def _close(self) -> _Report:
        self._predictor.close()
        return partial(self._ended, End(0, None, "", True, ""))


def _end_by(error: BaseException) -> End:
    """Return how a process would have ended that raised this."""
    status, report = exit_by(error)
    return End(status, None, report, False, "")
