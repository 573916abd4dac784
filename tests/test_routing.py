"""Mixed pools: what is learnt of each worker, who gets what, and what comes of it."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from predictpool._costs import MOST_KEYS, Costs, Curve
from predictpool._devices import Device
from predictpool._routing import Routes, _give, _Place, mixed
from predictpool._scheduler import Batch, Request, Scheduler, Todo
from tests.test_scheduler import Nature, PoolMachine, add, nothing, only, request, scheduler

CPU, GPU = 0, 1
# Seconds of a batch: fixed, and for each row. What takes 2 rows or more the GPU does sooner.
COSTS = {CPU: (0.0, 1.0), GPU: (1.5, 0.0)}


def seconds(slot: int, rows: int) -> float:
    """Return what a batch takes."""
    fixed, per_row = COSTS[slot]
    return fixed + per_row * rows


# --- what a batch costs ------------------------------------------------------------


def curve(observed: Iterable[tuple[int, float]]) -> Curve:
    """Return what was learnt of batches of so many rows that took so long."""
    (rows, took), *more = observed
    learnt = Curve(rows, took)
    for rows, took in more:
        learnt.learn(rows, took)
    return learnt


@given(fixed=st.floats(1e-4, 0.1), per_row=st.floats(1e-6, 1e-2), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_the_cost_of_a_batch_is_found_in_spite_of_noise(
    fixed: float, per_row: float, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    sizes = [int(rows) for rows in chance.choice([1, 2, 5, 20, 64], 200)]
    noise = np.exp(chance.normal(0, 0.1, len(sizes)))
    learnt = curve(
        (n, (fixed + per_row * n) * float(by)) for n, by in zip(sizes, noise, strict=True)
    )
    for rows in (1, 8, 64, 128):
        assert learnt.cost(rows) == pytest.approx(fixed + per_row * rows, rel=0.35)


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 100)), min_size=1, max_size=60))
def test_no_cost_is_ever_negative_or_falls_with_the_rows(
    observed: list[tuple[int, float]],
) -> None:
    learnt = curve(observed)
    costs = [learnt.cost(rows) for rows in range(70)]
    assert costs[0] > 0
    assert all(less <= more * (1 + 1e-9) for less, more in itertools.pairwise(costs))
    assert min(learnt.fixed, learnt.per_row) >= 0


def test_before_there_is_a_second_size_many_rows_are_tried_and_few_rows_too() -> None:
    learnt = Curve(8, 8.0)
    assert learnt.cost(8) == pytest.approx(8.0)
    assert learnt.cost(1) == pytest.approx(1.0)
    assert learnt.cost(64) < 16.0


def test_what_is_known_of_large_batches_stays_while_only_small_ones_come() -> None:
    learnt = curve([(1, 1.51), (64, 2.14)] * 10)
    for _ in range(10_000):
        learnt.learn(1, 1.51)
    assert learnt.cost(64) == pytest.approx(2.14, rel=0.1)


@pytest.mark.parametrize(("fixed", "per_row"), [(1.5, 0.01), (0.25, 0.25)])
def test_noise_of_small_batches_does_not_change_what_is_known_of_large_ones(
    fixed: float, per_row: float
) -> None:
    chance = np.random.default_rng(1)
    learnt = curve([(1, fixed + per_row), (64, fixed + 64 * per_row)] * 20)
    for noise in np.exp(chance.normal(-(0.15**2) / 2, 0.15, 100_000)).tolist():
        learnt.learn(1, (fixed + per_row) * noise)
    assert learnt.cost(64) == pytest.approx(fixed + 64 * per_row, rel=0.25)


def test_one_batch_that_was_disturbed_changes_little_and_soon_nothing() -> None:
    learnt = curve([(1, 1.0), (8, 2.0)] * 20)
    before = learnt.cost(8)
    learnt.learn(8, 200.0)
    assert learnt.cost(8) < 2 * before
    for _ in range(10):
        learnt.learn(8, 2.0)
    assert learnt.cost(8) == pytest.approx(before, rel=0.1)


def test_a_disturbed_first_batch_is_forgotten_with_the_second() -> None:
    assert curve([(1, 100.0), (1, 1.0), (1, 1.0)]).cost(1) < 2.0


def test_costs_that_changed_for_good_are_believed_within_ten_batches() -> None:
    learnt = curve([(1, 1.0), (8, 2.0)] * 20)
    for _ in range(5):
        learnt.learn(1, 10.0)
        learnt.learn(8, 20.0)
    assert learnt.cost(8) == pytest.approx(20.0, rel=0.2)


def test_so_many_keys_are_remembered_and_those_that_were_asked_last() -> None:
    costs = Costs()
    for number in range(MOST_KEYS + 10):
        costs.learn(CPU, "often", 1, 1.0)
        costs.learn(CPU, number, 1, 1.0)
    assert CPU in costs.of("often")
    assert not costs.of(5)
    assert sum(bool(costs.of(number)) for number in range(MOST_KEYS + 10)) == MOST_KEYS - 1


def test_the_first_keys_are_tried_and_later_ones_guessed() -> None:
    costs = Costs()
    assert costs.guess(CPU) is None
    for number in range(16):
        assert costs.guess(CPU) is None
        costs.learn(CPU, number, 1, 2.0)
    guess = costs.guess(CPU)
    assert guess is not None
    assert guess.cost(1) == pytest.approx(2.0)
    costs.forget(CPU)
    assert costs.guess(CPU) is None
    assert not costs.of(3)


# --- who gets what -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "are"),
    [
        ([Device()], False),
        ([Device(cores=(0,)), Device(cores=(1,))], False),
        ([Device(cores=(0,)), Device(cores=(1, 2), threads=2)], True),
        ([Device(), Device("gpu", gpu="GPU-a")], True),
        # Two GPUs are taken for equal, whatever cores are left for them.
        ([Device("gpu", gpu="GPU-a"), Device("gpu", threads=2, gpu="GPU-b")], False),
    ],
)
def test_a_pool_is_mixed_where_its_devices_differ_in_kind_or_in_threads(
    devices: list[Device], are: bool
) -> None:
    assert mixed(devices) is are


class Model:
    """What workers have loaded."""


class Mixed:
    """A scheduler with a CPU worker and a GPU worker, and a clock."""

    def __init__(self, *, max_batch_size: int = 8, max_waiting: float = math.inf) -> None:
        self.pool = Scheduler(
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            retries=1,
            hang_timeout=math.inf,
        )
        self.pool.routes = Routes(max_batch_size)
        self.model = Model()
        self.now = 0.0
        for slot in COSTS:
            assert nothing(self.ready(slot))

    def ready(self, slot: int, *, row_wise: bool = True) -> Todo:
        return self.pool.worker_ready(slot, self.now, row_wise=row_wise, model=self.model)

    def answer(self, batch: Batch, took: float | None = None) -> list[Batch]:
        """Let a batch take what it costs, if nothing else is said; return what is sent next."""
        took = seconds(batch.slot, batch.rows) if took is None else took
        self.now = max(self.now, batch.started_at + took)
        assert self.pool.answered(batch.slot, batch.id, self.now) is batch
        for each in batch.requests:
            self.pool.answer(each)
        return self.pool.dispatch(self.now).send

    def ask(self, rows: int = 1, key: Hashable = "key") -> list[Batch]:
        """Have one more request; return what is sent."""
        return add(self.pool, request(rows, key=key, at=self.now), self.now).send

    def ask_many(self, count: int, rows: int = 1) -> list[Batch]:
        """Have so many requests in one turn of the event loop; return what is sent."""
        for _ in range(count):
            self.pool.add(request(rows, at=self.now))
        return self.pool.dispatch(self.now).send

    def learn(self) -> None:
        """Have both workers known, for small batches and large ones."""
        for rows in (1, 4, 8) * 4:
            for batch in self.both_busy(rows):
                assert not self.answer(batch)

    def both_busy(self, rows: int, key: Hashable = "key") -> list[Batch]:
        """Have each run so many rows, whoever would be chosen; return who ends first first."""
        sent = []
        for slot in COSTS:
            self.pool.retire(1 - slot, self.now)
            sent += self.ask(rows, key)
            self.pool.unretire(1 - slot, self.now)
        assert [batch.slot for batch in sent] == list(COSTS)
        return sorted(sent, key=lambda batch: seconds(batch.slot, rows))


def known(**options: float) -> Mixed:
    """Return a pool that knows its workers."""
    pool = Mixed(**options)  # type: ignore[arg-type]
    pool.learn()
    return pool


def test_a_row_goes_to_the_cpu_and_many_to_the_gpu() -> None:
    pool = known()
    for rows, slot in ((1, CPU), (8, GPU), (1, CPU), (4, GPU)):
        (batch,) = pool.ask(rows)
        assert batch.slot == slot
        assert not pool.answer(batch)


def test_what_comes_together_is_divided_so_that_all_is_finished_early() -> None:
    pool = known()
    sent = {batch.slot: batch.rows for batch in pool.ask_many(8)}
    assert sent == {CPU: 1, GPU: 7}


def test_a_request_waits_for_a_busy_worker_that_answers_it_sooner_than_an_idle_one() -> None:
    pool = known()
    (large,) = pool.ask(8)
    assert large.slot == GPU
    assert pool.ask(8) == []  # the CPU would take 8 s
    (next_one,) = pool.answer(large)
    assert (next_one.slot, next_one.rows) == (GPU, 8)


def test_a_large_request_that_waits_for_its_worker_holds_up_no_small_ones() -> None:
    pool = known()
    pool.ask(8)
    assert pool.ask(8) == []
    (small,) = pool.ask(1)
    assert (small.slot, small.rows) == (CPU, 1)


def test_a_request_is_not_held_for_a_worker_that_takes_longer_than_expected() -> None:
    pool = known()
    (large,) = pool.ask(8)
    assert pool.ask(8) == []
    assert pool.pool.holds
    until = pool.pool.next_deadline()
    assert large.started_at + 1.5 < until < large.started_at + 3.0
    assert nothing(pool.pool.expire(until - 0.01))
    assert only(pool.pool.expire(until)).slot == CPU
    assert pool.pool.next_deadline() == math.inf
    assert not pool.pool.holds


def test_nothing_is_held_for_a_worker_that_is_to_be_replaced() -> None:
    pool = known()
    pool.ask(8)
    pool.pool.retire(GPU, pool.now)
    (batch,) = pool.ask(8)
    assert batch.slot == CPU


def test_what_waits_for_a_worker_that_is_to_be_replaced_goes_to_another_at_once() -> None:
    pool = known()
    pool.ask(8)
    assert pool.ask(8) == []
    (batch,) = pool.pool.retire(GPU, pool.now).send
    assert (batch.slot, batch.rows) == (CPU, 8)


def test_no_timer_is_set_for_what_is_not_held_any_more_but_waits_for_a_busy_worker() -> None:
    pool = known()
    pool.pool._batch_timeout = 0.25
    pool.ask(8)
    assert pool.ask(6) == []
    now = pool.pool.next_deadline()
    assert now == pool.now + 0.25
    assert nothing(pool.pool.expire(now))  # the GPU will have it sooner
    assert pool.pool.holds
    assert pool.pool.next_deadline() > pool.now + 1.5


def test_a_worker_that_is_done_away_with_keeps_no_model_alive() -> None:
    pool = known()
    model = weakref.ref(pool.model)
    pool.pool.retire(GPU, pool.now)
    pool.pool.forget(GPU)
    pool.model = Model()
    pool.ready(GPU)
    assert model() is not None  # for the CPU's worker
    pool.pool.retire(CPU, pool.now)
    pool.pool.forget(CPU)
    assert model() is None


def test_a_worker_of_which_nothing_is_known_gets_one_request_the_smallest() -> None:
    pool = Mixed()
    waiting = [request(4), request(2), request(1), request(8), request(1)]
    for each in waiting:
        pool.pool.add(each)
    sent = pool.pool.dispatch(0.0).send
    assert [batch.requests for batch in sent] == [[waiting[2]], [waiting[4]]]


def test_a_worker_gets_not_many_more_rows_than_it_was_seen_with() -> None:
    pool = Mixed(max_batch_size=64)
    pool.pool.retire(GPU, pool.now)
    (first,) = pool.ask()
    assert pool.ask_many(100) == []
    sizes: list[int] = []
    (batch,) = pool.answer(first)
    while len(sizes) < 4:
        sizes.append(batch.rows)
        (batch,) = pool.answer(batch) or [batch]
    assert sizes == [1, 8, 64, 27]


def test_equal_workers_share_evenly() -> None:
    pool = Scheduler(max_batch_size=64, max_waiting=math.inf, retries=1, hang_timeout=math.inf)
    pool.routes = Routes(64)
    for slot in range(3):
        pool.worker_ready(slot, 0.0)
    for now in range(0, 40, 2):
        for _ in range(24):
            pool.add(request(at=now))
        sent = pool.dispatch(now).send
        while sent:
            batch = sent.pop(0)
            rows = [batch.rows, *(other.rows for other in sent)]
            pool.answered(batch.slot, batch.id, now + 1.0)
            sent += pool.dispatch(now + 1.0).send
    for _ in range(8):
        pool.add(request(at=50.0))
    rows = sorted(batch.rows for batch in pool.dispatch(50.0).send)
    assert rows == [2, 3, 3]


def test_no_worker_is_left_idle_however_small_a_batch_is() -> None:
    pool = Scheduler(max_batch_size=1, max_waiting=math.inf, retries=1, hang_timeout=math.inf)
    pool.routes = Routes(1)
    for slot in range(5):
        pool.worker_ready(slot, 0.0)
    for _ in range(6):
        pool.add(request())
    assert len(pool.dispatch(0.0).send) == 5


def test_a_worker_that_looked_slow_once_is_tried_again_and_that_costs_little() -> None:
    pool = Mixed()
    for _ in COSTS:  # the first batches do not count
        for batch in pool.both_busy(1):
            pool.answer(batch, took=20.0 if batch.slot == CPU else 1.5)
    began = pool.now
    for _ in range(2000):
        (batch,) = pool.ask()
        if batch.slot == CPU:
            break
        pool.answer(batch)
    assert batch.slot == CPU
    # So it could not cost more than a hundredth.
    assert pool.now - began >= 0.95 * 100 * (20.0 - 1.5)
    pool.answer(batch)
    (batch,) = pool.ask()
    assert batch.slot == CPU


def test_a_cold_start_is_not_taken_for_what_batches_cost() -> None:
    pool = Mixed()
    for batch in pool.both_busy(1):
        pool.answer(batch, took=2000.0 if batch.slot == CPU else None)
    tried = []
    for _ in range(3):
        (batch,) = pool.ask()
        pool.answer(batch)
        tried.append(batch.slot)
    assert set(tried[:2]) == {CPU, GPU}
    assert tried[2] == CPU


def test_a_worker_with_another_model_begins_cold_again() -> None:
    costs = Costs()
    for _ in range(2):
        costs.learn(CPU, "key", 1, 1.0)
    assert costs.of("key")[CPU] is not None
    costs.forget(CPU)
    costs.learn(CPU, "key", 1, 1.0)
    assert costs.of("key")[CPU] is None


def serve(costs: list[float], timeout: float, count: int) -> list[int]:
    """Ask for one row again and again; return how many batches each worker had.

    Each looks slow when it is tried first.
    """
    pool = scheduler()
    pool.routes = Routes(4)
    now, batches = 0.0, [0] * len(costs)
    for slot in range(len(costs)):
        pool.worker_ready(slot, now)
    for _ in range(count):
        (batch,) = add(pool, request(at=now, timeout=timeout), now).send
        batches[batch.slot] += 1
        now += costs[batch.slot] if batches[batch.slot] > 2 else max(costs[batch.slot], 0.3)
        pool.answered(batch.slot, batch.id, now)
        pool.answer(batch.requests[0])
    return batches


@pytest.mark.parametrize("timeout", [0.2, math.inf])
def test_a_worker_is_tried_again_though_it_is_expected_to_take_longer_than_the_timeout(
    timeout: float,
) -> None:
    slow, fast = serve([0.01, 0.001], timeout, 5000)
    assert slow < 3500
    assert fast > 1500


def test_a_worker_is_tried_again_though_another_was_passed_over_for_longer() -> None:
    slow, fast, slowest = serve([0.01, 0.001, 40.0], math.inf, 5000)
    assert slow < 3500
    assert fast > 1500
    assert slowest == 2


def test_a_rare_key_goes_to_its_better_worker_however_many_others_came_meanwhile() -> None:
    pool = known()
    for _ in range(4):
        for batch in pool.both_busy(8, "rare"):
            pool.answer(batch, took=1.5 if batch.slot == GPU else 1.9)
    for _ in range(20):
        for _ in range(40):
            (batch,) = pool.ask()
            pool.answer(batch)
        (batch,) = pool.ask(8, "rare")
        assert batch.slot == GPU
        pool.answer(batch, took=1.5)


def test_a_worker_that_became_slower_is_asked_less_and_one_that_became_faster_again() -> None:
    pool = known()
    for _ in range(20):
        (batch,) = pool.ask()
        pool.answer(batch, took=30.0 if batch.slot == CPU else 1.5)
    assert batch.slot == GPU
    for _ in range(5000):
        (batch,) = pool.ask()
        pool.answer(batch, took=1.0 if batch.slot == CPU else 1.5)
    assert batch.slot == CPU


def test_a_slow_worker_is_not_idle_while_more_waits_than_the_fast_one_does_meanwhile() -> None:
    pool = Mixed(max_batch_size=64)
    costs = {CPU: (9.35, 0.072), GPU: (0.83, 0.0386)}
    for rows in (1, 8, 64) * 4:
        for batch in pool.both_busy(rows):
            fixed, per_row = costs[batch.slot]
            pool.answer(batch, took=fixed + per_row * rows)
    (first,) = pool.ask(64)
    assert first.slot == GPU
    assert pool.ask_many(64) == []
    (batch,) = pool.ask_many(512)
    assert (batch.slot, batch.rows) == (CPU, 64)


class OneByOne(_Place):
    """A worker to which no more than one request is planned at once."""

    __slots__ = ()

    def fill(self, rows: int, count: int, before: float) -> int:
        return 0


@pytest.mark.parametrize("seed", range(10))
def test_what_is_planned_a_batch_at_a_time_is_the_same_as_one_by_one(seed: int) -> None:
    chance = np.random.default_rng(seed)
    prices = [curve([(1, f + p), (8, f + 8 * p)] * 9) for f, p in chance.uniform(0, 1, (4, 2))]
    begins = [0.0, *chance.uniform(0, 30, 3)]
    limits = chance.choice([0, 5, 8], 4)
    rows = int(chance.integers(0, 4))
    requests = [request(rows) for _ in range(300)]

    def planned(kind: type[_Place], begins_at: float) -> list[tuple[float, list[Request]]]:
        known = [kind(slot, int(limits[slot]), begins[slot], idle=not slot) for slot in range(4)]
        for place, price in zip(known, prices, strict=True):
            place.turn_to(price, None)
        known[0].begins = begins_at  # as if it were that much slower
        _give(requests, known)
        return [(place.end_with(rows), place.first) for place in known]

    for begins_at in range(0, 100, 7):
        assert planned(_Place, begins_at) == planned(OneByOne, begins_at)


def test_nothing_waits_for_a_worker_that_gets_what_it_was_never_asked() -> None:
    pool = known()
    for slot in (CPU, GPU):  # so the GPU is the first to be planned
        pool.pool.retire(slot, pool.now)
        pool.pool.unretire(slot, pool.now)
    pool.pool.add(request(key="new", at=pool.now))
    pool.pool.add(request(8, at=pool.now))  # the GPU would be the better one
    new, large = pool.pool.dispatch(pool.now).send
    assert (new.slot, new.requests[0].key) == (GPU, "new")
    assert (large.slot, large.rows) == (CPU, 8)


def test_a_batch_that_begins_with_a_request_without_rows_is_no_larger_than_others() -> None:
    pool = known(max_batch_size=2)
    pool.pool.retire(CPU, pool.now)
    pool.pool.add(request(0, at=pool.now))
    pool.pool.add(request(9, at=pool.now))
    (batch,) = pool.pool.dispatch(pool.now).send
    assert batch.rows == 0


def test_what_was_learnt_outlives_a_worker_but_not_its_model() -> None:
    pool = known()
    pool.pool.worker_lost(GPU, RuntimeError, pool.now)
    pool.ready(GPU)
    (large,) = pool.ask(8)
    assert large.slot == GPU
    pool.answer(large)
    pool.pool.retire(GPU, pool.now)
    pool.model = Model()
    pool.ready(GPU)
    (first,) = pool.ask()
    assert first.slot == GPU  # to find out


def test_a_full_queue_gives_a_held_request_to_an_idle_worker() -> None:
    pool = known(max_waiting=1)
    pool.ask(8)
    assert nothing(pool.pool.make_room(pool.now))
    assert pool.ask(8) == []
    assert pool.pool.full
    batch = only(pool.pool.make_room(pool.now))
    assert (batch.slot, batch.rows) == (CPU, 8)


def test_a_worker_that_is_not_row_wise_gets_one_request_at_a_time() -> None:
    pool = known()
    for slot in COSTS:
        pool.pool.run_alone(slot)
    sent = pool.ask_many(5)
    assert sorted((batch.slot, batch.rows) for batch in sent) == [(CPU, 1), (GPU, 1)]


# --- the state machine -------------------------------------------------------------


class MixedPoolMachine(PoolMachine):
    """A pool whose workers are not equal: all that `PoolMachine` says of others, but who waits."""

    def routes(self) -> Routes:
        return Routes(self.max_batch_size)

    def carry_out(self, todo: Todo) -> None:
        # What filled a batch may go to several workers.
        self.ready = {one.key for one in self.fresh if self.is_ready(one.key)}
        super().carry_out(todo)

    def check_choice(self, batch: Batch, same: list[Request], idle: int) -> None:
        assert batch.requests == [one for one in same if one in batch.requests]
        assert batch.requests[0].key in self.ready or self.alone
        assert batch.rows <= self.max_batch_size or len(batch.requests) == 1

    @rule(rows=st.sampled_from([0, 1, 2, 8]))
    def submit_something_new(self, rows: int) -> None:
        self.submit(("new", len(self.requests)), rows, math.inf, Nature.GOOD)
        self.submit("a", 1, math.inf, Nature.GOOD)
        self.turn_of_the_loop_ends()

    @invariant()
    def no_worker_is_idle_while_a_request_waits(self) -> None:
        if self.turn_ended_at != self.now or not self.idle:
            return
        assert not self.again
        for one in self.fresh:
            if self.is_ready(one.key):
                sooner = [slot for slot in self.idle if not self.has_better(slot, one)]
                assert not sooner

    def has_better(self, slot: int, one: Request) -> bool:
        """Whether a busy worker is expected to answer a request sooner than an idle one."""
        ours = self.cost(slot, one)
        return ours < math.inf and any(
            max(self.now, expected.end) + self.cost(other, one) <= ours + self.now + 1e-9
            for other, expected in self.counted_on()
        )

    def counted_on(self) -> list[tuple[int, Any]]:
        assert self.pool.routes is not None
        return [
            (slot, expected)
            for slot, expected in self.pool.routes._expected.items()
            if slot in self.working
            and slot not in self.killed | self.retired
            and expected.until > self.now
        ]

    def cost(self, slot: int, one: Request) -> float:
        """Return what is expected of a request; inf where nothing is known."""
        assert self.pool.routes is not None
        costs = self.pool.routes._costs
        known = costs.of(one.key).get(slot) or costs.guess(slot)
        return math.inf if known is None else known.cost(one.rows)

    def check_next_deadline(self, expire: list[float], ends: list[float]) -> None:
        # Too early does no harm: what it was counted on for may be over. But not at once again.
        found = self.pool.next_deadline()
        ended = self.turn_ended_at == self.now
        assert found > self.now or found in expire or not ended
        since = self.now if ended else self.pool._planned_at
        later = [end for end in ends if end > since]
        assert found <= min([*expire, *later], default=math.inf)
        if ended and self.idle and self.fresh:
            assert all(found <= expected.until for _, expected in self.counted_on())


MixedPoolMachine.TestCase.settings = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=set(Phase) - {Phase.explain},
    max_examples=200,
    stateful_step_count=60,
)
TestMixedPoolMachine = MixedPoolMachine.TestCase
