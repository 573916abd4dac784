"""``python -m benchmarks soak``: minutes of mixed load while workers are killed, stopped, reloaded.

A few hundred callers ask for 1 to 64 rows each and check every row of every answer; some send what
is invalid or what the model cannot take, some leave, some are in a hurry. Every request ends in
exactly one bin, and at the end the bins are compared with the pool's own.

Memory, file descriptors and threads are taken twice, at the same point: all callers pause, all
workers are ready, nothing is reloaded.
"""

import gc
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import psutil

from benchmarks import contenders, figures, pss, rows
from benchmarks.contenders import Loop
from benchmarks.disturbance import Disturber, Pace
from benchmarks.figures import Goal
from benchmarks.rows import Arrays, Question, Rows
from predictpool import (
    BrokenWorkerError,
    FunctionPredictor,
    InvalidFeatures,
    PoolStatistics,
    PoolTimeout,
    PredictorPool,
    Signature,
    TooManyRequests,
)

MINUTES = 10.0
WORKERS = 2
RETRIES = 1
HANG_TIMEOUT = 1.0
START_TIMEOUT = 5.0
MAX_WAITING = 256
# An ordinary request waits a fraction of a second, or twice HANG_TIMEOUT at worst: one that has
# nothing after TIMEOUT was lost, though the pool's own deadline found it.
TIMEOUT = 20.0
LOST_AFTER = TIMEOUT + 5.0
LONGEST_CANCEL = 0.05
LONGEST_DEADLINE = 0.05
REFUSED_PAUSE = 0.05
MAP_BATCHES = 4
SHOWN = 5

REQUESTS_GOAL = 100_000  # a minute
MEMORY_GOAL = 5e6

Note = Callable[[str], None]

BINS = (
    "answered",
    "wrong",
    "refused",
    "invalid as expected",
    "poison as expected",
    "cancelled",
    "timed out",
    "broken",
    "unexpected",
    "late",
    "lost",
)


@dataclass(frozen=True)
class Size:
    """How much is done."""

    seconds: float
    callers: int
    pace: Pace

    @property
    def first(self) -> float:
        """Seconds before memory, descriptors and threads are taken for the first time."""
        return min(60.0, self.seconds / 10)


def full(minutes: float) -> Size:
    """Return the size of a run that counts."""
    return Size(minutes * 60, callers=240, pace=Pace(kill=1.0, stop=10.0, reload=15.0))


QUICK = Size(seconds=4.0, callers=40, pace=Pace(kill=0.4, stop=1.5, reload=1.0))


@dataclass(frozen=True)
class Usage:
    """What the application takes: bytes of its own, open file descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> "Usage":
        """Look at this process."""
        gc.collect()
        process = psutil.Process()
        return cls(pss.of(os.getpid()).private, process.num_fds(), process.num_threads())

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            self.memory - other.memory,
            self.descriptors - other.descriptors,
            self.threads - other.threads,
        )


@dataclass(frozen=True)
class Recovery:
    """Seconds from a kill to all workers ready again."""

    count: int
    median: float
    p99: float
    worst: float


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found.

    Attributes:
        bins: how many requests ended how; they are all requests.
        crossed: requests that the pool had ended when their callers left: cancelled here,
            in another bin there.
        unattributed: broken requests whose worker's end was none of our doing.
        unexplained: reloads and recoveries that failed for no reason of ours.
        disagreements: where the pool's statistics contradict the bins, in words.
        disturbances: how often workers were killed and stopped, and the pool reloaded.
        growth: from after the first minute (or tenth) to the end.
        processes_left: processes that outlived the pool.
    """

    loop: str
    seed: int
    seconds: float
    callers: int
    workers: int
    requests: int
    rows: int
    bins: dict[str, int]
    crossed: int
    unattributed: int
    disagreements: list[str]
    unexplained: int
    first_unexpected: list[str]
    first_broken: list[str]
    disturbances: dict[str, int]
    restarts: int
    recovery: Recovery | None
    usage: Usage
    growth: Usage
    processes_left: int


class Tally:
    """How requests ended; of what should not happen the first few texts."""

    def __init__(self) -> None:
        self.bins: Counter[str] = Counter()
        self.rows = 0
        self.unattributed = 0
        self.unexpected: list[str] = []
        self.broken: list[str] = []

    def keep(self, texts: list[str], error: BaseException) -> None:
        """Keep an error's text, unless there are enough."""
        if len(texts) < SHOWN:
            texts.append(f"{type(error).__name__}: {error}"[:500])


class Gate:
    """Lets callers and disturbances on, or holds them."""

    def __init__(self) -> None:
        self._open = anyio.Event()

    def open(self) -> None:
        """Let everyone on."""
        self._open.set()

    def shut(self) -> None:
        """Hold whoever comes from now on."""
        self._open = anyio.Event()

    async def passed(self) -> None:
        """Wait until it is open."""
        if not self._open.is_set():
            await self._open.wait()


# --- callers -----------------------------------------------------------------------


class Caller:
    """Asks for one thing after the other and puts every request into one bin.

    Attributes:
        due: when what it waits for is lost, in monotonic seconds; infinite while it waits for
            nothing.
    """

    def __init__(
        self,
        pool: PredictorPool[Arrays],
        supply: Rows,
        tally: Tally,
        disturber: Disturber,
        seed: int,
    ) -> None:
        self.due = float("inf")
        self._pool = pool
        self._supply = supply
        self._tally = tally
        self._disturber = disturber
        self._random = random.Random(seed)
        self._scope = anyio.CancelScope()
        self._under_way = 0
        self._sent = 0.0

    async def run(self, gate: Gate, ends: float) -> None:
        """Ask until the end."""
        kinds: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._ordinary, 80),
            (self._one, 4),
            (self._invalid, 3),
            (self._poisoned, 2),
            (self._cancelled, 4),
            (self._hurried, 4),
            (self._map, 3),
        )
        methods, weights = zip(*kinds, strict=True)
        while time.monotonic() < ends:
            with anyio.CancelScope() as self._scope:
                while time.monotonic() < ends:
                    await gate.passed()
                    await self._random.choices(methods, weights)[0]()
            if self._scope.cancelled_caught:
                self._tally.bins["lost"] += self._under_way
                self._under_way, self.due = 0, float("inf")

    def give_up(self) -> None:
        """Have what it waits for counted as lost."""
        self._scope.cancel()

    # --- what it asks for ----------------------------------------------------------

    async def _ordinary(self) -> None:
        await self._ask(self._supply.take(self._count()))

    async def _one(self) -> None:
        question = self._supply.take(1)
        self._begin()
        try:
            outputs = await self._pool.predict_one(question.example(), timeout=self._timeout())
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes into a bin
            await self._end_with(error)
        else:
            self._end("answered" if question.example_answered_by(outputs) else "wrong", 1)

    async def _invalid(self) -> None:
        await self._ask(self._supply.take_invalid(self._count()), expected=InvalidFeatures)

    async def _poisoned(self) -> None:
        await self._ask(self._supply.take_poisoned(self._count()))

    async def _cancelled(self) -> None:
        question = self._supply.take(self._count())
        with anyio.move_on_after(self._random.uniform(0, LONGEST_CANCEL)) as scope:
            await self._ask(question)
        if scope.cancelled_caught and self._under_way:
            self._end("cancelled")

    async def _hurried(self) -> None:
        # Every fifth has no time at all: such a request must not reach a worker.
        timeout = max(0.0, self._random.uniform(-LONGEST_DEADLINE / 4, LONGEST_DEADLINE))
        question = self._supply.take(self._count())
        self._begin()
        try:
            outputs = await self._pool.predict(question.features, timeout=timeout)
        except PoolTimeout:
            self._end("timed out")
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes into a bin
            await self._end_with(error)
        else:
            self._judge(question, outputs)

    async def _map(self) -> None:
        """Ask for a few batches; the first error ends it, what is behind is cancelled."""
        questions = [self._supply.take(self._count()) for _ in range(MAP_BATCHES - 1)]
        questions.append(self._supply.take_poisoned(self._count()))
        self._random.shuffle(questions)
        questions = questions[: self._random.randint(1, MAP_BATCHES)]
        current = 0
        try:
            async with aclosing(self._pool.map(self._begun(questions))) as answers:
                async for outputs in answers:
                    self._judge(questions[current], outputs)
                    current += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes into a bin
            if isinstance(error, TooManyRequests):
                self._begin()  # of this one `_begun` has not heard
            await self._end_with(error, questions[min(current, len(questions) - 1)])
        while self._under_way > 0:
            self._end("cancelled")

    # --- how it goes ---------------------------------------------------------------

    async def _ask(self, question: Question, expected: type[Exception] | None = None) -> None:
        self._begin()
        try:
            outputs = await self._pool.predict(question.features, timeout=self._timeout())
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes into a bin
            await self._end_with(error, question, expected)
        else:
            self._judge(question, outputs, expected)

    def _count(self) -> int:
        """Return 1 to 64, small counts as often as their logarithm: a mean of 15."""
        return int(2 ** self._random.uniform(0, 6.02))

    def _timeout(self) -> float | None:
        """Return the pool's, or none: then only `due` finds what is lost."""
        return TIMEOUT if self._random.random() < 0.5 else None

    def _begun(self, questions: list[Question]) -> Iterator[Arrays]:
        # What `map` has taken it may still drop, where one before it fails; when it comes for
        # the next it has sent the last.
        for question in questions:
            yield question.features
            self._begin()

    def _begin(self) -> None:
        now = time.monotonic()
        self.due = now + LOST_AFTER
        if not self._under_way:
            self._sent = now
        self._under_way += 1

    def _end(self, into: str, count: int = 0) -> None:
        self._tally.bins[into] += 1
        self._tally.rows += count
        self._under_way -= 1
        self.due = self.due if self._under_way else float("inf")

    def _judge(
        self, question: Question, outputs: Arrays, expected: type[Exception] | None = None
    ) -> None:
        if expected is None and question.answered_by(outputs):
            self._end("answered", question.rows)
        else:
            self._end("wrong")

    async def _end_with(
        self,
        error: Exception,
        question: Question | None = None,
        expected: type[Exception] | None = None,
    ) -> None:
        tally = self._tally
        if isinstance(error, TooManyRequests):
            self._end("refused")
            await anyio.sleep(self._random.uniform(0, REFUSED_PAUSE))
        elif isinstance(error, InvalidFeatures) and expected is InvalidFeatures:
            self._end("invalid as expected")
        elif isinstance(error, PoolTimeout):
            self._end("late")
        elif isinstance(error, BrokenWorkerError):
            if not self._disturber.explains_request(error, self._sent, RETRIES):
                tally.unattributed += 1
            tally.keep(tally.broken, error)
            self._end("broken")
        elif isinstance(error, FloatingPointError) and question and str(error) == question.poison:
            self._end("poison as expected")
        else:
            tally.keep(tally.unexpected, error)
            self._end("unexpected")


# --- the run -----------------------------------------------------------------------


def run(*, minutes: float, loop: Loop, seed: int, quick: bool, note: Note) -> Outcome:
    """Ask and disturb one pool for minutes."""
    size = QUICK if quick else full(minutes)
    outcome: Outcome = contenders.on_loop(loop, _run, size, loop, seed, note)
    return outcome


async def _run(size: Size, loop: Loop, seed: int, note: Note) -> Outcome:
    # NaN is the poison: it has to reach the model.
    signature = Signature.declared(rows.SIGNATURE).relaxed(allow_nan=["value"])
    predictor = FunctionPredictor(
        rows.load, row_wise=True, signature=signature, preload=("benchmarks.rows",)
    )
    pool = PredictorPool(
        predictor,
        workers=WORKERS,
        timeout=TIMEOUT,
        max_waiting=MAX_WAITING,
        retries=RETRIES,
        hang_timeout=HANG_TIMEOUT,
        start_timeout=START_TIMEOUT,
        grace_period=5.0,
    )
    tally = Tally()
    async with pool:
        await pool.wait_ready()
        disturber = Disturber(pool, size.pace, HANG_TIMEOUT, seed)
        supply = Rows(seed)
        callers = [
            Caller(pool, supply, tally, disturber, seed * 1000 + number)
            for number in range(size.callers)
        ]
        began = time.monotonic()
        first, last = await _soak(size, pool, callers, disturber, note)
        seconds = time.monotonic() - began
        statistics = pool.statistics()
    return Outcome(
        loop=loop,
        seed=seed,
        seconds=seconds,
        callers=size.callers,
        workers=WORKERS,
        requests=tally.bins.total(),
        rows=tally.rows,
        bins={name: tally.bins[name] for name in BINS},
        crossed=tally.bins["cancelled"] + tally.bins["lost"] - statistics.cancelled,
        unattributed=tally.unattributed,
        disagreements=disagreements(tally.bins, tally.rows, statistics),
        unexplained=disturber.unexplained,
        first_unexpected=[*tally.unexpected, *disturber.mistakes],
        first_broken=tally.broken,
        disturbances=dict(disturber.done),
        restarts=statistics.restarts,
        recovery=_recovery(list(disturber.recoveries)),
        usage=last,
        growth=last - first,
        processes_left=len(psutil.Process().children(recursive=True)),
    )


async def _soak(
    size: Size,
    pool: PredictorPool[Arrays],
    callers: list[Caller],
    disturber: Disturber,
    note: Note,
) -> tuple[Usage, Usage]:
    gate = Gate()
    ends = time.monotonic() + size.seconds
    async with anyio.create_task_group() as background:
        background.start_soon(disturber.run, gate.passed)
        background.start_soon(_watch, callers)
        gate.open()
        async with anyio.create_task_group() as group:
            for caller in callers:
                group.start_soon(caller.run, gate, ends)
            await anyio.sleep(size.first)
            gate.shut()
            await _quiet(pool, callers, disturber)
            first = Usage.now()
            gate.open()
            async for left in _countdown(ends):
                note(f"{left:.0f} s left; {pool!r}")
        gate.shut()
        await _quiet(pool, callers, disturber)
        last = Usage.now()
        background.cancel_scope.cancel()
    return first, last


async def _quiet(pool: PredictorPool[Arrays], callers: list[Caller], disturber: Disturber) -> None:
    """Wait until nothing is under way and every slot has its one worker.

    Raises:
        TimeoutError: it does not come to that, though whatever is lost has been given up.
    """
    with anyio.fail_after(2 * LOST_AFTER):
        while (  # noqa: ASYNC110 - there is no event for all of that
            any(caller.due < float("inf") for caller in callers)
            or disturber.reloading
            or pool.statistics().ready < WORKERS
            or len(disturber.workers()) != WORKERS
        ):
            await anyio.sleep(0.05)


async def _watch(callers: list[Caller]) -> None:
    """Find what is lost: one look a second costs less than a timer for each request."""
    while True:
        await anyio.sleep(1)
        now = time.monotonic()
        for caller in callers:
            if caller.due < now:
                caller.give_up()


async def _countdown(ends: float) -> AsyncIterator[float]:
    while (left := ends - time.monotonic()) > 0:
        yield left
        await anyio.sleep(min(left, 30))


def _recovery(seconds: list[float]) -> Recovery | None:
    if not seconds:
        return None
    return Recovery(
        len(seconds),
        figures.percentile(seconds, 50),
        figures.percentile(seconds, 99),
        max(seconds),
    )


# --- what came of it ---------------------------------------------------------------


def disagreements(bins: Counter[str], answered_rows: int, pool: PoolStatistics) -> list[str]:
    """Compare the pool's statistics with our bins, when nothing is under way.

    A caller that leaves in the moment in which its answer comes is cancelled here and something
    else there; by nothing else may they differ.
    """
    failed = ("invalid as expected", "poison as expected", "broken", "unexpected")
    ours = {
        "answered": bins["answered"] + bins["wrong"],
        "failed": sum(bins[name] for name in failed),
        "timed_out": bins["timed out"] + bins["late"],
    }
    left = bins["cancelled"] + bins["lost"]
    ended = pool.answered + pool.failed + pool.timed_out + pool.refused + pool.cancelled
    checks = {
        f"submitted {pool.submitted}, sent {bins.total()}": pool.submitted == bins.total(),
        f"submitted {pool.submitted}, ended {ended}": pool.submitted == ended,
        f"waiting {pool.waiting}, running {pool.running}": not pool.waiting + pool.running,
        f"refused {pool.refused}, here {bins['refused']}": pool.refused == bins["refused"],
        f"cancelled {pool.cancelled}, here {left}": pool.cancelled <= left,
        f"rows {pool.rows}, here {answered_rows}": pool.rows >= answered_rows or bins["wrong"] > 0,
    }
    for name, count in ours.items():
        theirs = getattr(pool, name)
        checks[f"{name} {theirs}, here {count}"] = 0 <= theirs - count <= left - pool.cancelled
    return [what for what, holds in checks.items() if not holds]


def correctness(found: Outcome) -> list[Goal]:
    """Return what must hold in every run, however short and wherever."""
    return [
        Goal("lost or late requests", found.bins["lost"] + found.bins["late"], 0),
        Goal("wrong answers", found.bins["wrong"], 0),
        Goal("unexpected errors", found.bins["unexpected"] + found.unexplained, 0),
        Goal("failures that no kill and no stop explains", found.unattributed, 0),
        Goal("disagreements with the pool's statistics", len(found.disagreements), 0),
        Goal("file descriptors more", found.growth.descriptors, 0),
        Goal("threads more", found.growth.threads, 0),
        Goal("processes that outlived the pool", found.processes_left, 0),
    ]


def goals(found: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    requests = REQUESTS_GOAL * found.seconds / 60
    return [
        *correctness(found),
        Goal("requests", found.requests, round(requests), at_least=True),
        Goal("memory more, in MB", found.growth.memory / 1e6, MEMORY_GOAL / 1e6),
    ]
