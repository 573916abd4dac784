"""What the scheduler promises, by examples and by a state machine; no process, no clock."""

import math
from collections.abc import Hashable, Iterable
from enum import Enum

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from predictpool._errors import PoolTimeout
from predictpool._routing import Routes
from predictpool._scheduler import Batch, Request, Scheduler, State, Todo


class Refused(Exception):
    """The model's."""


class Lost(Exception):
    """A worker's end."""


def scheduler(
    *,
    max_batch_size: int = 4,
    max_waiting: float = math.inf,
    retries: int = 1,
    hang_timeout: float = math.inf,
    batch_timeout: float = 0.0,
) -> Scheduler:
    return Scheduler(
        max_batch_size=max_batch_size,
        max_waiting=max_waiting,
        retries=retries,
        hang_timeout=hang_timeout,
        batch_timeout=batch_timeout,
    )


def request(
    rows: int = 1, *, key: Hashable = "key", at: float = 0.0, timeout: float = math.inf
) -> Request:
    return Request(key, rows, at, at + timeout, timeout)


def add(pool: Scheduler, one: Request, now: float = 0.0) -> Todo:
    """Let one request be all that comes in its turn of the event loop."""
    pool.add(one)
    return pool.dispatch(now)


def only(todo: Todo) -> Batch:
    """Return the one batch that is all there is to do."""
    assert not todo.fail
    assert not todo.kill
    (batch,) = todo.send
    return batch


def nothing(todo: Todo) -> bool:
    return not todo.fail and not todo.kill and not todo.send


def waiting_behind(pool: Scheduler, *requests: Request) -> Batch:
    """Have worker 0 busy and these requests waiting; return what the worker runs."""
    pool.worker_ready(0, 0.0)
    first = only(add(pool, request(key="first"), 0.0))
    for each in requests:
        assert nothing(add(pool, each, 0.0))
    return first


def serve(pool: Scheduler, batch: Batch, now: float = 0.0) -> Todo:
    """Answer a batch, and return what is to be done next."""
    assert pool.answered(batch.slot, batch.id, now) is batch
    todo = pool.dispatch(now)
    for each in batch.requests:
        pool.answer(each)
    return todo


def total(pool: Scheduler) -> int:
    c = pool.counters
    ended = c.answered + c.failed + c.cancelled + c.timed_out + c.refused
    return ended + pool.waiting + pool.running


# --- batches -----------------------------------------------------------------------


def test_an_idle_worker_gets_a_request_at_once() -> None:
    pool = scheduler(max_batch_size=64)
    pool.worker_ready(0, 0.0)
    one = request()
    batch = only(add(pool, one, 0.0))
    assert (batch.slot, batch.requests, batch.rows) == (0, [one], 1)


def test_under_load_a_batch_is_all_that_fits_oldest_first() -> None:
    pool = scheduler(max_batch_size=4)
    waiting = [request(2), request(1), request(2), request(1)]
    first = waiting_behind(pool, *waiting)
    second = only(serve(pool, first))
    assert second.requests == waiting[:2]
    assert only(serve(pool, second)).requests == waiting[2:]


def test_a_batch_has_exactly_max_batch_size_rows_where_they_are_waiting() -> None:
    pool = scheduler(max_batch_size=64)
    first = waiting_behind(pool, *(request() for _ in range(100)))
    assert only(serve(pool, first)).rows == 64


def test_a_request_that_is_larger_than_a_batch_runs_alone() -> None:
    pool = scheduler(max_batch_size=4)
    small, large, last = request(1), request(9), request(1)
    first = waiting_behind(pool, small, large, last)
    second = only(serve(pool, first))
    third = only(serve(pool, second))
    fourth = only(serve(pool, third))
    assert [second.requests, third.requests, fourth.requests] == [[small], [large], [last]]


def test_requests_with_different_keys_never_share_a_batch_and_never_block_each_other() -> None:
    pool = scheduler()
    waiting = [request(key="a"), request(key="b"), request(key="a"), request(key="b")]
    first = waiting_behind(pool, *waiting)
    second = only(serve(pool, first))
    assert second.requests == [waiting[0], waiting[2]]
    assert only(serve(pool, second)).requests == [waiting[1], waiting[3]]


def test_a_worker_that_is_not_row_wise_gets_one_request_at_a_time_and_the_others_join() -> None:
    pool = scheduler()
    waiting = [request() for _ in range(4)]
    first = waiting_behind(pool, *waiting)
    alone = only(pool.worker_ready(1, 0.0, row_wise=False))
    assert (alone.slot, alone.requests) == (1, waiting[:1])
    again = only(serve(pool, alone))
    assert (again.slot, again.requests) == (1, waiting[1:2])
    assert only(serve(pool, first)).requests == waiting[2:]


def test_a_worker_that_is_not_row_wise_runs_what_is_left_of_a_halved_batch_one_by_one() -> None:
    pool = scheduler()
    waiting = [request() for _ in range(4)]
    second = only(serve(pool, waiting_behind(pool, *waiting)))
    pool.run_alone(0)  # it was found out by this very batch, say
    third = only(pool.failed(0, second.id, Refused, 0.0))
    assert third.requests == waiting[:1]
    for expected in waiting[1:]:
        third = only(serve(pool, third))
        assert third.requests == [expected]
    assert nothing(serve(pool, third))


def test_a_worker_that_is_not_row_wise_gets_requests_without_rows_one_at_a_time_too() -> None:
    pool = scheduler()
    waiting = [request(0), request(0), request(1)]
    for each in waiting:
        pool.add(each)
    batch = only(pool.worker_ready(0, 0.0, row_wise=False))
    assert batch.requests == waiting[:1]
    assert only(serve(pool, batch)).requests == waiting[1:2]


def test_requests_are_joined_again_once_a_row_wise_worker_has_the_slot() -> None:
    pool = scheduler()
    pool.worker_ready(0, 0.0, row_wise=False)
    waiting = [request(), request(), request()]
    first = only(add(pool, waiting[0], 0.0))
    for each in waiting[1:]:
        assert nothing(add(pool, each, 0.0))
    pool.retire(0, 0.0)
    assert nothing(serve(pool, first))
    assert only(pool.worker_ready(0, 0.0)).requests == waiting[1:]


def test_idle_workers_share_what_comes_in_one_turn_evenly() -> None:
    pool = scheduler(max_batch_size=64)
    for slot in range(3):
        pool.worker_ready(slot, 0.0)
    waiting = [request() for _ in range(8)]
    for each in waiting:
        pool.add(each)
    sent = pool.dispatch(0.0).send
    assert [batch.requests for batch in sent] == [waiting[:3], waiting[3:6], waiting[6:]]


def test_idle_workers_share_only_when_there_are_more_than_kinds_of_requests() -> None:
    pool = scheduler(max_batch_size=64)
    for slot in range(3):
        pool.worker_ready(slot, 0.0)
    a, b = [request(key="a") for _ in range(4)], [request(key="b") for _ in range(4)]
    for each in (*a, *b):
        pool.add(each)
    sent = pool.dispatch(0.0).send
    assert [batch.requests for batch in sent] == [a[:2], a[2:], b]


def test_a_worker_that_becomes_ready_gets_what_is_waiting() -> None:
    pool = scheduler()
    one = request()
    assert nothing(add(pool, one, 0.0))
    assert only(pool.worker_ready(3, 0.0)).slot == 3


# --- batches that are held ---------------------------------------------------------


def test_a_batch_is_held_until_it_is_full() -> None:
    pool = scheduler(max_batch_size=3, batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    waiting = [request(at=0.0), request(at=1.0), request(at=1.5)]
    assert nothing(add(pool, waiting[0], 0.0))
    assert nothing(add(pool, waiting[1], 1.0))
    assert only(add(pool, waiting[2], 1.5)).requests == waiting


def test_a_batch_is_held_for_batch_timeout_from_its_oldest_request() -> None:
    pool = scheduler(batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    waiting = [request(at=0.0), request(at=1.0)]
    for each in waiting:
        assert nothing(add(pool, each, each.submitted_at))
    assert pool.next_deadline() == 2.0
    assert nothing(pool.expire(1.9))
    assert only(pool.expire(2.0)).requests == waiting


def test_the_next_oldest_request_counts_once_the_oldest_is_cancelled() -> None:
    pool = scheduler(batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    waiting = [request(at=0.0), request(at=1.0)]
    for each in waiting:
        add(pool, each, each.submitted_at)
    pool.cancel(waiting[0])
    assert pool.next_deadline() == 3.0
    assert nothing(pool.expire(2.0))
    assert only(pool.expire(3.0)).requests == waiting[1:]


def test_what_is_left_of_a_full_batch_is_held_on() -> None:
    pool = scheduler(max_batch_size=2, batch_timeout=2.0)
    waiting = [request(at=0.0), request(at=0.5), request(at=1.0)]
    for each in waiting:
        add(pool, each, each.submitted_at)
    assert only(pool.worker_ready(0, 1.0)).requests == waiting[:2]
    assert nothing(pool.worker_ready(1, 1.0))
    assert pool.next_deadline() == 3.0


def test_a_request_that_would_run_out_of_time_is_not_held() -> None:
    pool = scheduler(batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    mate, hasty = request(), request(timeout=2.0)
    assert nothing(add(pool, mate))
    assert only(add(pool, hasty)).requests == [mate, hasty]


def test_a_full_batch_goes_before_an_older_one_that_is_held() -> None:
    pool = scheduler(max_batch_size=2, batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    held, full = request(key="held"), [request(key="full"), request(key="full")]
    for each in (held, *full):
        pool.add(each)
    assert only(pool.dispatch(0.0)).requests == full


def test_nothing_is_held_that_runs_again_or_is_not_row_wise() -> None:
    pool = scheduler(batch_timeout=2.0)
    one, mate = request(), request()
    for each in (one, mate):
        pool.add(each)
    pool.worker_ready(0, 0.0)
    batch = only(pool.dispatch(2.0))
    pool.worker_lost(0, Lost, 2.0)
    assert only(pool.worker_ready(1, 2.0)).requests == batch.requests[:1]
    later = scheduler(batch_timeout=2.0)
    later.worker_ready(0, 0.0, row_wise=False)
    assert only(add(later, request())).rows == 1


def test_nothing_is_held_once_it_is_released() -> None:
    pool = scheduler(batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    add(pool, request())
    assert only(pool.release(0.0)).rows == 1
    assert nothing(add(pool, request()))  # it waits for the worker
    assert only(pool.worker_ready(1, 0.0)).rows == 1


def test_a_held_request_makes_room_for_one_that_would_be_refused() -> None:
    pool = scheduler(max_waiting=1, batch_timeout=2.0)
    pool.worker_ready(0, 0.0)
    assert nothing(pool.make_room(0.0))
    add(pool, request())
    assert pool.full
    assert only(pool.make_room(0.0)).rows == 1
    add(pool, request())
    assert pool.full
    assert nothing(pool.make_room(0.0))  # the worker is busy


# --- limits ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_max_waiting_is_exact(limit: int) -> None:
    pool = scheduler(max_waiting=limit)
    assert pool.full == (limit == 0)
    pool.worker_ready(0, 0.0)
    add(pool, request(), 0.0)  # runs, does not wait
    for waiting in range(limit):
        assert pool.waiting == waiting
        assert not pool.full
        add(pool, request(), 0.0)
    assert pool.full
    pool.refuse()
    assert (pool.counters.refused, pool.counters.submitted) == (1, limit + 2)


def test_a_place_in_the_queue_is_free_again_once_its_request_is_cancelled() -> None:
    pool = scheduler(max_waiting=1)
    one = request()
    add(pool, one, 0.0)
    assert pool.full
    pool.cancel(one)
    assert not pool.full


# --- deadlines ---------------------------------------------------------------------


def test_a_deadline_holds_in_the_queue() -> None:
    pool = scheduler()
    one = request(at=0.5, timeout=2.0)
    add(pool, one, 0.5)
    assert pool.next_deadline() == 2.5
    assert nothing(pool.expire(2.4))
    ((expired, error),) = pool.expire(2.5).fail
    assert expired is one
    assert isinstance(error, PoolTimeout)
    assert (error.timeout, error.waited, error.ran) == (2.0, 2.0, 0.0)
    assert "timeout=2 s: the request waited 2.000 s in the queue and ran 0.000 s" in str(error)
    assert pool.next_deadline() == math.inf
    assert nothing(pool.worker_ready(0, 2.5))


def test_a_deadline_holds_in_a_worker_and_the_late_answer_goes_nowhere() -> None:
    pool = scheduler()
    one, mate = request(timeout=2.0), request()
    first = waiting_behind(pool, one, mate)
    batch = only(serve(pool, first, 0.5))
    ((expired, error),) = pool.expire(2.0).fail
    assert expired is one
    assert isinstance(error, PoolTimeout)
    assert (error.waited, error.ran) == (0.5, 1.5)
    assert pool.answered(0, batch.id, 3.0) is batch
    assert not pool.answer(one)
    assert pool.answer(mate)


def test_an_expired_request_never_reaches_a_worker_however_late_the_timer_is() -> None:
    pool = scheduler()
    one, other = request(timeout=2.0), request()
    first = waiting_behind(pool, one, other)
    pool.answered(0, first.id, 7.0)
    todo = pool.dispatch(7.0)
    assert [expired for expired, _ in todo.fail] == [one]
    assert [batch.requests for batch in todo.send] == [[other]]


def test_each_expired_request_gets_its_error_once() -> None:
    pool = scheduler()
    for _ in range(3):
        add(pool, request(timeout=1.0), 0.0)
    errors = [error for _, error in pool.expire(1.0).fail]
    assert len(set(map(id, errors))) == 3
    assert nothing(pool.expire(9.0))
    assert pool.counters.timed_out == 3


# --- cancelling --------------------------------------------------------------------


def test_a_cancelled_request_never_reaches_a_worker() -> None:
    pool = scheduler()
    one, other = request(), request()
    first = waiting_behind(pool, one, other)
    pool.cancel(one)
    assert only(serve(pool, first)).requests == [other]


def test_the_mates_of_a_cancelled_request_notice_nothing() -> None:
    pool = scheduler()
    one, mate = request(), request()
    first = waiting_behind(pool, one, mate)
    batch = only(serve(pool, first))
    pool.cancel(one)
    assert batch.requests == [one, mate]  # whose rows still are where they were
    pool.answered(0, batch.id, 1.0)
    assert not pool.answer(one)
    assert pool.answer(mate)
    assert (pool.counters.cancelled, pool.counters.answered) == (1, 2)


def test_cancelling_what_has_ended_does_nothing() -> None:
    pool = scheduler()
    pool.worker_ready(0, 0.0)
    one = request()
    serve(pool, only(add(pool, one, 0.0)))
    pool.cancel(one)
    assert (pool.counters.cancelled, pool.counters.answered) == (0, 1)


# --- a model that refuses ----------------------------------------------------------


def run_model(pool: Scheduler, batch: Batch, guilty: Iterable[Request]) -> tuple[set[Request], int]:
    """Run batches on one worker until all is done: who failed, in how many calls."""
    failed: set[Request] = set()
    calls = 0
    batches = [batch]
    while batches:
        (batch,) = batches
        calls += 1
        if set(batch.requests) & set(guilty):
            todo = pool.failed(batch.slot, batch.id, Refused, 0.0)
        else:
            todo = serve(pool, batch)
        for each, error in todo.fail:
            assert isinstance(error, Refused)
            failed.add(each)
        batches = todo.send
    return failed, calls


@pytest.mark.parametrize("where", [[0], [63], [17], [0, 63], [5, 6, 40], range(64)])
def test_a_refused_batch_is_halved_until_only_the_guilty_fail(where: Iterable[int]) -> None:
    pool = scheduler(max_batch_size=64)
    requests = [request() for _ in range(64)]
    guilty = {requests[index] for index in where}
    batch = only(serve(pool, waiting_behind(pool, *requests)))
    assert len(batch.requests) == 64
    failed, calls = run_model(pool, batch, guilty)
    assert failed == guilty
    assert calls <= 1 + 2 * 6 * len(guilty)
    assert (pool.counters.answered, pool.counters.failed) == (65 - len(guilty), len(guilty))


def test_halves_run_before_what_came_later() -> None:
    pool = scheduler(max_batch_size=2)
    requests = [request(), request(), request()]
    batch = only(serve(pool, waiting_behind(pool, *requests)))
    order = []
    todo = pool.failed(0, batch.id, Refused, 0.0)
    while todo.send:
        order.append(todo.send[0].requests)
        todo = serve(pool, todo.send[0])
    assert order == [[requests[0]], [requests[1]], [requests[2]]]


def test_halves_run_at_once_where_workers_are_idle() -> None:
    pool = scheduler(max_batch_size=4)
    requests = [request() for _ in range(4)]
    batch = only(serve(pool, waiting_behind(pool, *requests)))
    pool.worker_ready(1, 0.0)
    todo = pool.failed(0, batch.id, Refused, 0.0)
    assert [half.requests for half in todo.send] == [requests[:2], requests[2:]]
    assert {half.slot for half in todo.send} == {0, 1}


def test_a_refused_batch_can_be_run_one_by_one() -> None:
    pool = scheduler(max_batch_size=4)
    requests = [request() for _ in range(4)]
    batch = only(serve(pool, waiting_behind(pool, *requests)))
    todo = pool.failed(0, batch.id, Refused, 0.0, alone=True)
    for each in requests:
        batch = only(todo)
        assert batch.requests == [each]
        todo = serve(pool, batch)


def test_a_cancelled_request_can_be_guilty_of_a_refused_batch() -> None:
    pool = scheduler(max_batch_size=2)
    gone, mate = request(), request()
    batch = only(serve(pool, waiting_behind(pool, gone, mate)))
    pool.cancel(gone)
    again = only(pool.failed(0, batch.id, Refused, 0.0))
    assert again.requests == [mate]
    serve(pool, again)
    assert (pool.counters.answered, pool.counters.failed) == (2, 0)


# --- workers that die or hang ------------------------------------------------------


def test_the_requests_of_a_lost_worker_run_again_alone_and_first() -> None:
    pool = scheduler()
    one, mate, later = request(2), request(2), request(1)
    batch = only(serve(pool, waiting_behind(pool, one, mate, later)))
    assert batch.requests == [one, mate]
    assert nothing(pool.worker_lost(0, Lost, 0.0))
    assert (pool.waiting, pool.running) == (3, 0)
    second = only(pool.worker_ready(1, 0.0))
    third = only(serve(pool, second))
    fourth = only(serve(pool, third))
    assert [second.requests, third.requests, fourth.requests] == [[one], [mate], [later]]


def test_a_request_that_is_to_run_again_has_not_started() -> None:
    pool = scheduler()
    one = request()
    add(pool, one, 1.0)
    pool.worker_ready(0, 2.0)
    assert one.started_at == 2.0
    pool.worker_lost(0, Lost, 3.0)
    assert one.started_at == 0.0
    pool.worker_ready(1, 4.0)
    assert one.started_at == 4.0


def test_the_requests_of_a_lost_worker_run_again_at_once_where_workers_are_idle() -> None:
    pool = scheduler()
    requests = [request() for _ in range(3)]
    only(serve(pool, waiting_behind(pool, *requests)))
    for slot in (1, 2):
        pool.worker_ready(slot, 0.0)
    todo = pool.worker_lost(0, Lost, 0.0)
    assert [batch.requests for batch in todo.send] == [requests[:1], requests[1:2]]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_request_runs_again_at_most_retries_times(retries: int) -> None:
    pool = scheduler(retries=retries)
    one = request()
    add(pool, one, 0.0)
    for slot in range(retries):
        assert only(pool.worker_ready(slot, 0.0)).requests == [one]
        assert nothing(pool.worker_lost(slot, Lost, 0.0))
    assert only(pool.worker_ready(9, 0.0)).requests == [one]
    ((failed, error),) = pool.worker_lost(9, Lost, 0.0).fail
    assert failed is one
    assert isinstance(error, Lost)
    assert pool.quiet


def test_each_request_of_a_lost_worker_gets_an_error_of_its_own() -> None:
    pool = scheduler(retries=0)
    only(serve(pool, waiting_behind(pool, request(), request())))
    errors = [error for _, error in pool.worker_lost(0, Lost, 0.0).fail]
    assert len(set(map(id, errors))) == 2


def test_a_lost_worker_gets_nothing_more() -> None:
    pool = scheduler()
    pool.worker_ready(0, 0.0)
    assert nothing(pool.worker_lost(0, Lost, 0.0))
    assert nothing(add(pool, request(), 0.0))
    assert nothing(pool.worker_lost(0, Lost, 0.0))


def test_a_hung_worker_is_killed_once_and_its_request_runs_again() -> None:
    pool = scheduler(hang_timeout=5.0)
    one = request()
    add(pool, one, 0.0)
    pool.worker_ready(0, 1.0)
    assert pool.next_deadline() == 6.0
    assert nothing(pool.expire(5.9))
    todo = pool.expire(6.0)
    assert todo.kill == [(0, "ran longer than hang_timeout=5 s")]
    assert not todo.fail
    assert nothing(pool.expire(7.0))
    assert pool.next_deadline() == math.inf
    pool.worker_lost(0, Lost, 7.0)
    assert only(pool.worker_ready(0, 8.0)).requests == [one]


def test_a_hung_worker_is_killed_though_its_caller_has_gone() -> None:
    pool = scheduler(hang_timeout=5.0)
    pool.worker_ready(0, 0.0)
    one = request()
    add(pool, one, 0.0)
    pool.cancel(one)
    assert pool.next_deadline() == 5.0
    assert [slot for slot, _ in pool.expire(5.0).kill] == [0]


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_that_is_being_killed_gets_nothing_more_though_it_answers(answers: bool) -> None:
    pool = scheduler(hang_timeout=5.0, retries=0)
    innocent = request(at=0.0)
    batch = waiting_behind(pool, innocent)
    pool.expire(5.0)
    if answers:
        assert nothing(serve(pool, batch, 5.1))
        assert pool.counters.answered == 1
    else:
        todo = pool.failed(0, batch.id, Refused, 5.1)
        assert len(todo.fail) == 1
        assert not todo.send
    assert nothing(pool.worker_lost(0, Lost, 5.2))
    assert only(pool.worker_ready(0, 6.0)).requests == [innocent]


def test_the_late_answer_of_a_replaced_worker_is_ignored() -> None:
    pool = scheduler()
    one = request()
    add(pool, one, 0.0)
    old = only(pool.worker_ready(0, 0.0))
    pool.worker_lost(0, Lost, 0.0)
    new = only(pool.worker_ready(0, 0.0))
    assert new.id != old.id
    assert pool.answered(0, old.id, 0.0) is None
    assert nothing(pool.failed(0, old.id, Refused, 0.0))
    assert one.state is State.RUNNING
    assert pool.batch_of(0) is new


def test_a_pool_that_ends_fails_every_request_once() -> None:
    pool = scheduler(max_batch_size=2)
    one, mate, gone, later = request(), request(), request(), request()
    batch = only(serve(pool, waiting_behind(pool, one, mate, gone, later)))
    pool.cancel(gone)
    todo = pool.fail_all(Lost)
    assert [failed for failed, _ in todo.fail] == [one, mate, later]
    assert pool.quiet
    assert nothing(pool.fail_all(Lost))
    pool.answered(0, batch.id, 0.0)
    assert nothing(pool.dispatch(0.0))
    assert not pool.answer(one)
    assert total(pool) == pool.counters.submitted


# --- what is counted and kept ------------------------------------------------------


def test_seconds_are_counted() -> None:
    pool = scheduler(max_batch_size=2)
    one, mate = request(at=1.0), request(3, at=2.0)
    add(pool, one, 1.0)
    add(pool, mate, 2.0)
    batch = only(pool.worker_ready(0, 5.0))
    todo = serve(pool, batch, 5.5)
    serve(pool, only(todo), 6.5)
    counters = pool.counters
    assert counters.waiting_seconds == (5.0 - 1.0) + (5.5 - 2.0)
    assert counters.running_seconds == 0.5 + 1.0
    assert (counters.rows, counters.batches) == (4, 2)


@pytest.mark.parametrize("end", ["answered", "cancelled while waiting", "cancelled while running"])
def test_memory_is_flat_over_100_000_requests_with_long_deadlines(end: str) -> None:
    pool = scheduler()
    if end != "cancelled while waiting":
        pool.worker_ready(0, 0.0)
    forgotten = request(timeout=3600.0, key="forgotten")
    if end == "cancelled while waiting":
        add(pool, forgotten, 0.0)
    for number in range(100_000):
        one = request(key=number % 1000, timeout=3600.0 + number % 7)
        todo = add(pool, one, 0.0)
        if end == "answered":
            serve(pool, only(todo))
            continue
        pool.cancel(one)
        for batch in todo.send:
            pool.answered(0, batch.id, 0.0)
    assert pool.counters.submitted == total(pool)
    assert len(pool._deadlines) < 100
    assert len(pool._lines) <= 1
    assert pool.waiting <= 1
    assert len(pool._again) == len(pool._running) == 0


# --- the state machine -------------------------------------------------------------


class Nature(Enum):
    """What a request does to the model."""

    GOOD = "good"
    POISON = "poison"  # the model refuses every batch that it is in
    KILLER = "killer"  # the worker dies of every batch that it is in


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED_BY_MODEL = "refused by the model"
    LOST = "lost"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


SLOTS = range(3)


class PoolMachine(RuleBasedStateMachine):
    """A pool without processes: whatever callers, workers and the clock may do."""

    @initialize(
        max_batch_size=st.integers(1, 6),
        max_waiting=st.sampled_from([0, 1, 4, math.inf]),
        retries=st.integers(0, 2),
        hang_timeout=st.sampled_from([4.0, math.inf]),
        batch_timeout=st.sampled_from([0.0, 0.0, 1.0, 2.5]),
        natures=st.lists(st.sampled_from(Nature), max_size=8),
        ready=st.sets(st.sampled_from(SLOTS)),
    )
    def begin(
        self,
        *,
        max_batch_size: int,
        max_waiting: float,
        retries: int,
        hang_timeout: float,
        batch_timeout: float,
        natures: list[Nature],
        ready: set[int],
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_waiting = max_waiting
        self.retries = retries
        self.hang_timeout = hang_timeout
        self.batch_timeout = batch_timeout
        self.pool = scheduler(
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            retries=retries,
            hang_timeout=hang_timeout,
            batch_timeout=batch_timeout,
        )
        self.pool.routes = self.routes()
        self.now = 0.0
        self.turn_ended_at: float | None = 0.0  # None while requests of a turn are coming in
        self.holding = True
        self.requests: list[Request] = []
        self.natures: dict[Request, Nature] = {}
        self.outcomes: dict[Request, Outcome] = {}
        self.fresh: list[Request] = []  # waiting, never sent, oldest first
        self.again: dict[Request, int] = {}  # waiting, sent before → how many may run together
        self.deaths: dict[Request, int] = {}
        self.working: dict[int, Batch] = {}
        self.idle: set[int] = set()
        self.killed: set[int] = set()
        self.retired: set[int] = set()
        self.alone: set[int] = set()
        self.old_ids: list[int] = []
        self.refused = self.batches = 0
        self.running_seconds = self.waiting_seconds = 0.0
        self.pool.reject()
        self.rejected = 1
        self.submit_many_that_fit_together(natures)
        for slot in sorted(ready):
            self.worker_becomes_ready(slot, row_wise=True)

    def routes(self) -> Routes | None:
        """Return what chooses workers, where they are not equal."""
        return None

    # --- callers

    @rule(
        key=st.sampled_from(["a", "b", "c"]),
        rows=st.sampled_from([0, 1, 1, 1, 2, 3, 8]),
        timeout=st.sampled_from([math.inf, math.inf, 0.0, 2.0, 5.0]),
        nature=st.sampled_from([*Nature, Nature.GOOD, Nature.GOOD]),
    )
    def submit(self, key: Hashable, rows: int, timeout: float, nature: Nature) -> None:
        assert self.pool.full == (self.waiting() >= self.max_waiting)
        self.holding = False
        self.carry_out(self.pool.make_room(self.now))
        self.holding = True
        if self.waiting() >= self.max_waiting:
            # All the same there is room in a worker, if it has nothing to do.
            assert not self.idle or not self.waiting()
            assert self.pool.idle == bool(self.idle)
            if not self.idle:
                self.pool.refuse()
                self.refused += 1
                return
        one = Request(key, rows, self.now, self.now + timeout, timeout)
        self.natures[one] = nature
        self.requests.append(one)
        self.fresh.append(one)
        self.deaths[one] = 0
        self.turn_ended_at = None
        self.pool.add(one)
        assert self.pool.due == bool(self.idle)
        alone = self.waiting() == 1 and not self.working
        assert self.pool.lonely == alone

    def waiting(self) -> int:
        return len(self.fresh) + len(self.again)

    @rule()
    def turn_of_the_loop_ends(self) -> None:
        self.turn_ended_at = self.now
        self.carry_out(self.pool.dispatch(self.now))

    @rule(natures=st.lists(st.sampled_from(Nature), min_size=1, max_size=5))
    def submit_many_that_fit_together(self, natures: list[Nature]) -> None:
        for nature in natures:
            self.submit(key="a", rows=1, timeout=math.inf, nature=nature)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.requests))
        self.pool.cancel(one)
        if one not in self.outcomes:
            self.finish(one, Outcome.CANCELLED)

    # --- the clock

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes_while_the_timer_is_late(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.0, 1.0]))
    def timer(self, seconds: float) -> None:
        if self.pool.next_deadline() < math.inf:
            self.now = max(self.now, self.pool.next_deadline()) + seconds
        self.turn_ended_at = self.now
        self.carry_out(self.pool.expire(self.now))
        assert self.pool.next_deadline() > self.now
        for one in self.live():
            assert one.deadline > self.now
        for slot, batch in self.working.items():
            assert slot in self.killed or batch.started_at + self.hang_timeout > self.now

    # --- workers

    def empty_slots(self) -> list[int]:
        there = {*self.working, *self.idle, *self.killed, *self.retired}
        return [slot for slot in SLOTS if slot not in there]

    @precondition(lambda self: self.empty_slots())
    @rule(data=st.data(), row_wise=st.booleans())
    def some_worker_becomes_ready(self, data: st.DataObject, row_wise: bool) -> None:
        self.worker_becomes_ready(data.draw(st.sampled_from(self.empty_slots())), row_wise)

    def worker_becomes_ready(self, slot: int, row_wise: bool) -> None:
        self.idle.add(slot)
        self.alone.discard(slot)
        if not row_wise:
            self.alone.add(slot)
        self.turn_ended_at = self.now
        self.carry_out(self.pool.worker_ready(slot, self.now, row_wise=row_wise))

    @rule(slot=st.sampled_from(SLOTS))
    def some_worker_is_found_not_to_be_row_wise(self, slot: int) -> None:
        self.alone.add(slot)
        self.pool.run_alone(slot)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), alone=st.booleans())
    def some_worker_runs_its_batch(self, data: st.DataObject, alone: bool) -> None:
        self.worker_runs_its_batch(data.draw(st.sampled_from(sorted(self.working))), alone)

    def worker_runs_its_batch(self, slot: int, alone: bool) -> None:
        natures = {self.natures[one] for one in self.working[slot].requests}
        if Nature.KILLER in natures:
            self.worker_is_lost(slot)
        elif Nature.POISON in natures:
            self.worker_refuses(slot, alone)
        else:
            self.worker_answers(slot)

    def worker_answers(self, slot: int) -> None:
        batch = self.end_batch(slot)
        assert self.pool.answered(slot, batch.id, self.now) is batch
        self.turn_ended_at = None
        for one in batch.requests:
            wanted = one not in self.outcomes
            assert self.pool.answer(one) == wanted
            assert not self.pool.answer(one)
            if wanted:
                self.waiting_seconds += batch.started_at - one.submitted_at
                self.finish(one, Outcome.ANSWERED)

    def worker_refuses(self, slot: int, alone: bool) -> None:
        batch = self.end_batch(slot)
        live = [one for one in batch.requests if one not in self.outcomes]
        together = 1 if alone else (len(live) + 1) // 2
        guilty = set(live) if len(batch.requests) == 1 else set()
        self.again |= {one: together for one in live if one not in guilty}
        todo = self.pool.failed(slot, batch.id, Refused, self.now, alone=alone)
        assert {one for one, error in todo.fail if isinstance(error, Refused)} == guilty
        self.turn_ended_at = self.now
        self.carry_out(todo)

    @precondition(lambda self: len(self.empty_slots()) < len(SLOTS))
    @rule(data=st.data())
    def some_worker_is_lost(self, data: st.DataObject) -> None:
        there = sorted(set(SLOTS) - set(self.empty_slots()))
        self.worker_is_lost(data.draw(st.sampled_from(there)))

    def worker_is_lost(self, slot: int) -> None:
        guilty = set()
        if slot in self.working:
            for one in self.end_batch(slot).requests:
                if one in self.outcomes:
                    continue
                self.deaths[one] += 1
                if self.deaths[one] > self.retries:
                    guilty.add(one)
                else:
                    self.again[one] = 1
        self.idle.discard(slot)
        self.killed.discard(slot)
        self.retired.discard(slot)
        todo = self.pool.worker_lost(slot, Lost, self.now)
        assert {one for one, error in todo.fail if isinstance(error, Lost)} == guilty
        self.turn_ended_at = self.now if todo.send else self.turn_ended_at
        self.carry_out(todo)

    def serving(self) -> list[int]:
        return sorted({*self.idle, *self.working} - self.retired - self.killed)

    @precondition(lambda self: self.serving())
    @rule(data=st.data())
    def some_worker_is_to_be_replaced(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.serving()))
        self.idle.discard(slot)
        self.retired.add(slot)
        self.turn_ended_at = self.now
        self.carry_out(self.pool.retire(slot, self.now))

    @precondition(lambda self: self.retired - set(self.working))
    @rule(data=st.data(), row_wise=st.booleans())
    def some_worker_is_replaced(self, data: st.DataObject, row_wise: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.retired - set(self.working))))
        self.retired.remove(slot)
        self.worker_becomes_ready(slot, row_wise)

    @precondition(lambda self: self.retired - set(self.working))
    @rule(data=st.data())
    def some_slot_is_done_away_with(self, data: st.DataObject) -> None:
        self.worker_is_lost(data.draw(st.sampled_from(sorted(self.retired - set(self.working)))))

    @precondition(lambda self: self.retired)
    @rule(data=st.data())
    def some_worker_is_not_replaced_after_all(self, data: st.DataObject) -> None:
        self.worker_goes_on(data.draw(st.sampled_from(sorted(self.retired))))

    def worker_goes_on(self, slot: int) -> None:
        self.retired.remove(slot)
        if slot not in self.working:
            self.idle.add(slot)
        self.turn_ended_at = self.now
        self.carry_out(self.pool.unretire(slot, self.now))

    @precondition(lambda self: self.old_ids)
    @rule(slot=st.sampled_from(SLOTS), data=st.data())
    def answer_comes_late(self, slot: int, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.old_ids))
        assert self.pool.answered(slot, old, self.now) is None
        assert nothing(self.pool.failed(slot, old, Refused, self.now))

    # --- what follows

    def carry_out(self, todo: Todo) -> None:
        errors: dict[type[BaseException], Outcome] = {
            Refused: Outcome.REFUSED_BY_MODEL,
            Lost: Outcome.LOST,
        }
        for one, error in todo.fail:
            if isinstance(error, PoolTimeout):
                assert one.deadline <= self.now
                self.finish(one, Outcome.TIMED_OUT)
            else:
                self.finish(one, errors[type(error)])
        for slot, _ in todo.kill:
            assert slot not in self.killed
            assert self.working[slot].started_at + self.hang_timeout <= self.now
            self.killed.add(slot)
            self.retired.discard(slot)
        for batch in todo.send:
            self.start_batch(batch)

    def start_batch(self, batch: Batch) -> None:
        idle = len(self.idle)
        self.idle.remove(batch.slot)
        assert batch.slot not in self.killed
        assert batch.id not in self.old_ids
        assert batch.requests
        (key,) = {one.key for one in batch.requests}
        assert batch.slot not in self.alone or len(batch.requests) == 1
        with_rows = [one for one in batch.requests if one.rows]
        assert batch.rows <= self.max_batch_size or len(with_rows) == 1
        assert all(one.deadline > self.now for one in batch.requests)
        if self.again:  # goes first, and with nothing else
            for one in batch.requests:
                assert len(batch.requests) <= self.again.pop(one)
        else:
            self.check_choice(batch, [one for one in self.fresh if one.key == key], idle)
            self.fresh = [one for one in self.fresh if one not in batch.requests]
        self.working[batch.slot] = batch
        self.batches += 1

    def check_choice(self, batch: Batch, same: list[Request], idle: int) -> None:
        """Check that a batch has those requests that it should, of all that fit together."""
        ready = [one for one in self.fresh if batch.slot in self.alone or self.is_ready(one.key)]
        assert batch.requests[0] is ready[0]
        assert batch.requests == same[: len(batch.requests)]
        left = same[len(batch.requests) :]
        if left and batch.slot not in self.alone:
            assert batch.rows + left[0].rows > self.share(same, idle)
        if sum(one.rows > 0 for one in batch.requests) > 1:
            assert batch.rows <= self.share(same, idle)

    def is_ready(self, key: Hashable) -> bool:
        """Whether a batch of these requests is not held any more, for others to fill it."""
        same = [one for one in self.fresh if one.key == key]
        return (
            not self.holding
            or not self.batch_timeout
            or sum(one.rows for one in same) >= self.max_batch_size
            or any(self.held_until(one) <= self.now for one in same)
        )

    def held_until(self, one: Request) -> float:
        would_expire = one.timeout <= self.batch_timeout
        return one.submitted_at + (0.0 if would_expire else self.batch_timeout)

    def share(self, same: list[Request], idle: int) -> int:
        """Return how many rows of requests that fit together one of the idle workers gets."""
        if self.batch_timeout:
            return self.max_batch_size
        others = {one.key for one in self.fresh} - {same[0].key}
        workers = max(1, idle - len(others))
        return min(self.max_batch_size, math.ceil(sum(one.rows for one in same) / workers))

    def end_batch(self, slot: int) -> Batch:
        batch = self.working.pop(slot)
        self.old_ids.append(batch.id)
        self.running_seconds += self.now - batch.started_at
        if slot not in self.killed | self.retired:
            self.idle.add(slot)
        return batch

    def finish(self, one: Request, outcome: Outcome) -> None:
        assert one not in self.outcomes
        self.outcomes[one] = outcome
        self.again.pop(one, None)
        if one in self.fresh:
            self.fresh.remove(one)

    def live(self) -> list[Request]:
        return [one for one in self.requests if one not in self.outcomes]

    # --- what always holds

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        waiting = [*self.fresh, *self.again]
        running = [
            one
            for batch in self.working.values()
            for one in batch.requests
            if one not in self.outcomes
        ]
        places = [*waiting, *running]
        assert len(places) == len(set(places))
        assert set(places) == set(self.live())
        assert self.pool.waiting == len(waiting)
        assert self.pool.running == len(running)
        assert self.pool.quiet == (not places)
        rows = sum(one.rows for one in self.fresh)
        enough = rows >= self.max_batch_size * len(self.idle)
        if enough or self.again:
            assert self.pool.filled
        for slot in SLOTS:
            assert self.pool.batch_of(slot) is self.working.get(slot)

    @invariant()
    def no_worker_is_idle_while_a_request_waits(self) -> None:
        if self.turn_ended_at != self.now or not self.idle:
            return  # requests of this turn come in, or the timer is late
        assert not self.again
        for one in self.fresh:
            assert not self.is_ready(one.key)

    @invariant()
    def the_counters_add_up(self) -> None:
        counters = self.pool.counters
        assert counters.submitted == total(self.pool)
        assert counters.submitted == len(self.requests) + self.refused + self.rejected
        ended = [*self.outcomes.values()]
        refused_by_model = ended.count(Outcome.REFUSED_BY_MODEL)
        assert counters.answered == ended.count(Outcome.ANSWERED)
        assert counters.failed == refused_by_model + ended.count(Outcome.LOST) + self.rejected
        assert counters.cancelled == ended.count(Outcome.CANCELLED)
        assert counters.timed_out == ended.count(Outcome.TIMED_OUT)
        assert counters.refused == self.refused
        assert counters.batches == self.batches
        answered = [one for one, how in self.outcomes.items() if how is Outcome.ANSWERED]
        assert counters.rows == sum(one.rows for one in answered)
        assert counters.waiting_seconds == pytest.approx(self.waiting_seconds)
        assert counters.running_seconds == pytest.approx(self.running_seconds)

    @invariant()
    def the_next_deadline_is_that_of_the_first_thing_to_expire(self) -> None:
        hangs = [
            batch.started_at + self.hang_timeout
            for slot, batch in self.working.items()
            if slot not in self.killed
        ]
        deadlines = [one.deadline for one in self.live()]
        held = self.fresh if self.idle and self.batch_timeout else []
        keys = {one.key for one in held}
        ends = [min(self.held_until(one) for one in held if one.key == key) for key in keys]
        self.check_next_deadline([*hangs, *deadlines], ends)

    def check_next_deadline(self, expire: list[float], ends: list[float]) -> None:
        """Check when the scheduler wants to be asked again.

        Args:
            expire: when something is killed or fails.
            ends: until when the requests of each key are held.
        """
        assert self.pool.next_deadline() == min([*expire, *ends], default=math.inf)

    @invariant()
    def only_the_guilty_fail(self) -> None:
        for one, outcome in self.outcomes.items():
            if outcome is Outcome.ANSWERED:
                assert self.natures[one] is Nature.GOOD
            if outcome is Outcome.REFUSED_BY_MODEL:
                assert self.natures[one] is Nature.POISON
            assert (outcome is Outcome.LOST) == (self.deaths[one] > self.retries)

    def teardown(self) -> None:
        """Let the workers go on: every request comes to its end."""
        if not hasattr(self, "pool"):
            return
        for slot in list(self.killed):
            self.worker_is_lost(slot)
        for slot in list(self.retired):
            self.worker_goes_on(slot)
        # Each request at most once in every size of batch, and once for each retry.
        for _ in range(10 * len(self.requests)):
            if not self.live():
                break
            for slot in self.empty_slots():
                self.worker_becomes_ready(slot, row_wise=True)
            for slot in list(self.working):
                self.worker_runs_its_batch(slot, alone=False)
            self.now += self.batch_timeout
            self.turn_of_the_loop_ends()
        assert not self.live()
        for check in (
            self.every_request_is_in_one_place,
            self.the_counters_add_up,
            self.the_next_deadline_is_that_of_the_first_thing_to_expire,
            self.only_the_guilty_fail,
        ):
            check()
        assert self.pool.quiet


PoolMachine.TestCase.settings = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=set(Phase) - {Phase.explain},  # which takes minutes for a machine of this size
    max_examples=300,
    stateful_step_count=60,
)
TestPoolMachine = PoolMachine.TestCase
