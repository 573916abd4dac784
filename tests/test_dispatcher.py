"""When the dispatcher sends and wakes, turn by turn of an event loop that is made up here.

No process and no loop, so that a test says what comes between two turns. That the same holds on
real loops with real workers is for `test_requests` to show.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np

from predictpool._columns import OutputEncoder, Parts, Schema
from predictpool._dispatcher import Dispatcher
from predictpool._routing import Routes
from predictpool._scheduler import Scheduler
from predictpool._wire import Frame, Kind
from predictpool._worker import Ready

AT_ONCE = 32  # callers that are woken in a turn


class FakeWaiter:
    """A caller that waits."""

    def __init__(self) -> None:
        self.result: Any = None

    def done(self) -> bool:
        return self.result is not None

    def set_result(self, result: Any) -> None:
        self.result = result

    def __await__(self) -> Any:
        raise NotImplementedError  # nobody awaits here


class FakeTimer:
    def cancel(self) -> None:
        pass


class FakeLoop:
    """An event loop whose turns end when the test says so."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def turn_ends(self) -> None:
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def waiter(self) -> FakeWaiter:
        return FakeWaiter()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> FakeTimer:
        return FakeTimer()


class FakeWorker:
    """The application's end of a worker; what it is sent, the test answers."""

    pid = 1

    def __init__(self, slot: int, sent: list[tuple[int, int]]) -> None:
        self._slot, self._sent = slot, sent
        self.batch = self.rows = 0

    def send(self, batch_id: int, schema: Schema, requests: list[Parts], rows: int) -> None:
        self.batch, self.rows = batch_id, rows
        self._sent.append((self._slot, rows))


class Stand:
    """A dispatcher with workers; `sent` has slot and rows of each batch."""

    def __init__(self, *, workers: int, max_batch_size: int) -> None:
        self.loop = FakeLoop()
        self.scheduler = Scheduler(
            max_batch_size=max_batch_size, max_waiting=math.inf, retries=1, hang_timeout=math.inf
        )
        self.dispatcher = Dispatcher(self.scheduler, self.loop, clock=lambda: 0.0)  # type: ignore[arg-type]
        self.sent: list[tuple[int, int]] = []
        self.callers: list[FakeWaiter] = []
        self.workers = [FakeWorker(slot, self.sent) for slot in range(workers)]

    def start(self, slot: int) -> None:
        ready = Ready(None, True, 0.0, "", None, None)
        self.dispatcher.worker_ready(slot, self.workers[slot], ready, self)  # type: ignore[arg-type]

    def ask(self, requests: int) -> None:
        for _ in range(requests):
            _, waiter = self.dispatcher.submit(np.zeros(1), one=False, timeout=None)
            self.callers.append(waiter)  # type: ignore[arg-type]

    def answer(self, slot: int) -> None:
        worker = self.workers[slot]
        encoded = OutputEncoder().encode(np.ones(worker.rows), worker.rows)
        assert encoded is not None
        payload = memoryview(bytearray(b"".join(encoded[1])))
        frame = Frame(
            Kind.ANSWER, worker.batch, worker.rows, False, False, encoded[0].blob, payload
        )
        self.dispatcher.answered(slot, frame)

    def woken(self) -> int:
        return sum(caller.done() for caller in self.callers)


def busy(batches: list[int], *, max_batch_size: int = 64) -> Stand:
    """Have one worker for each of these batches, and nothing waiting."""
    stand = Stand(workers=len(batches), max_batch_size=max_batch_size)
    for slot, requests in enumerate(batches):
        stand.ask(requests)
        stand.start(slot)
    assert stand.sent == list(enumerate(batches))
    del stand.sent[:]
    return stand


def test_a_worker_that_comes_free_takes_what_waits_at_once() -> None:
    stand = busy([1, 1])
    stand.ask(3)
    stand.answer(0)
    assert stand.sent == [(0, 3)]
    assert stand.woken() == 1


def test_a_worker_waits_for_callers_that_are_being_woken() -> None:
    stand = busy([40, 1])
    stand.answer(0)
    assert stand.woken() == AT_ONCE
    stand.ask(5)  # they come back
    stand.answer(1)
    stand.loop.turn_ends()
    assert stand.woken() == 41
    assert not stand.sent
    stand.ask(9)
    stand.loop.turn_ends()
    assert not stand.sent  # those who came back may wake others
    stand.loop.turn_ends()
    assert sorted(stand.sent) == [(0, 7), (1, 7)]


def test_a_worker_does_not_wait_where_its_batch_is_full() -> None:
    stand = busy([4, 4], max_batch_size=4)
    stand.answer(0)
    stand.ask(7)
    stand.answer(1)
    assert not stand.sent  # two could be filled, and one is not
    stand.ask(1)
    stand.loop.turn_ends()
    assert sorted(stand.sent) == [(0, 4), (1, 4)]


def test_a_full_batch_is_sent_while_callers_are_being_woken() -> None:
    stand = busy([2 * AT_ONCE, 1, 1])
    stand.ask(3)
    stand.answer(0)
    stand.ask(64)
    assert stand.sent == [(0, 3)]
    stand.answer(1)
    assert stand.sent == [(0, 3), (1, 64)]
    assert stand.woken() == AT_ONCE


def test_no_caller_waits_long_for_being_woken() -> None:
    """A caller that is answered never waits for ever more others that are answered later."""
    requests = 2 * AT_ONCE
    stand = busy([requests] * 40, max_batch_size=requests)
    backlog = []
    for slot in range(40):
        stand.answer(slot)
        stand.loop.turn_ends()
        backlog.append(requests * (slot + 1) - stand.woken())
    assert max(backlog) <= 2 * requests


def test_a_worker_does_not_wait_for_ever() -> None:
    requests = AT_ONCE + 1  # more than are woken before the next worker answers
    stand = busy([requests] * 20, max_batch_size=requests)
    stand.answer(0)
    stand.ask(1)
    turns = 0
    while not stand.sent:
        turns += 1
        stand.answer(turns)
        stand.loop.turn_ends()
    assert 1 < turns < 10
    assert stand.woken() < (turns + 1) * requests  # there are callers still to be woken


def test_what_waits_goes_to_another_worker_when_one_is_retired() -> None:
    stand = busy([1, 1, 1])
    for slot in (0, 1):
        stand.answer(slot)
    stand.ask(2)  # their turn of the loop has not ended yet
    assert not stand.sent
    anyio.run(stand.dispatcher.retire, 0)
    assert stand.sent == [(1, 2)]


def test_a_slot_that_is_done_away_with_is_forgotten_where_workers_are_chosen() -> None:
    stand = Stand(workers=1, max_batch_size=1)
    routes = stand.scheduler.routes = Routes(1)
    stand.start(0)
    assert list(routes._models) == [0]
    stand.dispatcher.forget(0)
    assert not routes._models
