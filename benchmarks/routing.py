"""Mixed pools, in simulated time: the pool's scheduler against other ways to choose a worker.

Everything but the clock and the workers is the pool's own. What a batch costs a worker is stated;
requests and noise are drawn by chance with a seed, so each run finds the same. What the scheduler
has to learn it learns within the run, which counts from its first request.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Goal, percentile
from benchmarks.report import Paper
from predictpool._routing import Routes
from predictpool._scheduler import Batch, Request, Scheduler

MAX_BATCH_SIZE = 64
NOISE = 0.15  # standard deviation of the logarithm of what a batch takes
# How many times better than the better kind of worker alone routing has to be: always (which is
# 5 % worse at most), and where each kind is the better one for a part of what is asked, or neither
# can do all of it.
AT_LEAST, WHERE_BOTH = 0.953, 1.5

Note = Callable[[str], None]
# Milliseconds of a batch of so many rows: fixed, and for each row.
Cost = tuple[float, float]
Arrival = tuple[float, Hashable, int]


@dataclass(frozen=True)
class Scenario:
    """What is asked, and what it costs.

    Attributes:
        costs: what a batch costs a worker by its key: on the CPU, on the GPU.
        requests: returns their moments in seconds, keys and rows; or
        callers: how many ask for one row each, again and again.
        both: whether each kind of worker is the better one for a part of what is asked.
        more: whether more is asked than each kind can do alone.
        cpus: how many CPU workers there are.
        slower: from the middle of the run on the GPU takes so many times as long.
        cold: seconds that the first batch of each key takes longer on each worker.
    """

    name: str
    costs: tuple[dict[Hashable, Cost], dict[Hashable, Cost]]
    requests: Callable[[np.random.Generator, int], list[Arrival]] | None = None
    callers: int = 0
    both: bool = False
    more: bool = False
    cpus: int = 1
    slower: float = 1.0
    cold: float = 0.0

    @property
    def slots(self) -> dict[str, list[int]]:
        """The workers of each kind."""
        return {"cpu": list(range(self.cpus)), "gpu": [self.cpus]}

    def seconds(self, slot: int, batch: Batch, late: bool) -> float:
        """Return what a batch takes, but for the noise."""
        on_gpu = slot == self.cpus
        fixed, per_row = self.costs[on_gpu][batch.requests[0].key]
        slower = self.slower if on_gpu and late else 1.0
        return slower * (fixed + per_row * batch.rows) / 1e3


def poisson(
    rate: float, rows: Sequence[int] = (1,), keys: Sequence[Hashable] = ("rows",), burst: int = 1
) -> Callable[[np.random.Generator, int], list[Arrival]]:
    """Return what draws requests that come by chance, so many a second, or bursts of them."""

    def draw(chance: np.random.Generator, count: int) -> list[Arrival]:
        moments = np.repeat(chance.exponential(burst / rate, -(-count // burst)).cumsum(), burst)
        sizes = chance.choice(rows, count)
        chosen = chance.integers(len(keys), size=count)
        return [
            (float(moment), keys[key], int(size))
            for moment, key, size in zip(moments[:count], chosen, sizes, strict=True)
        ]

    return draw


def one_key(cpu: Cost, gpu: Cost) -> tuple[dict[Hashable, Cost], dict[Hashable, Cost]]:
    """Return the costs where all requests are alike."""
    return {"rows": cpu}, {"rows": gpu}


# The post that this project comes from: one row takes 0.5 ms on the CPU and 1.5 ms on the GPU.
POST = one_key((0.25, 0.25), (1.5, 0.01))
GPU_BETTER = one_key((0.5, 0.5), (0.3, 0.01))
CPU_BETTER = one_key((0.5, 0.01), (5, 0.05))
TWO: tuple[dict[Hashable, Cost], dict[Hashable, Cost]] = (
    {"small": (0.4, 0.1), "large": (30, 2)},
    {"small": (2, 0.05), "large": (3, 0.01)},
)
OVERLOAD = one_key((9.35, 0.072), (0.83, 0.0386))
LARGE = (1,) * 19 + (256,)
SCENARIOS = (
    Scenario("1 row", POST, requests=poisson(500)),
    Scenario("1 row, more of them", POST, requests=poisson(1600)),
    Scenario("1 row or 256", POST, requests=poisson(300, LARGE), both=True),
    Scenario("… after cold starts", POST, requests=poisson(300, LARGE), cold=0.5),
    Scenario("… and 4 CPU workers", POST, requests=poisson(1000, LARGE), cpus=4, both=True),
    Scenario("64 at once, 1 row each", POST, requests=poisson(1000, burst=64)),
    Scenario("256 callers", POST, callers=256),
    Scenario("two signatures", TWO, requests=poisson(600, keys=("small", "large")), both=True),
    Scenario("GPU slow from half way", GPU_BETTER, requests=poisson(1000), slower=10, both=True),
    Scenario("GPU always better", GPU_BETTER, requests=poisson(1000)),
    Scenario("… 256 callers", GPU_BETTER, callers=256),
    Scenario("CPU always better", CPU_BETTER, requests=poisson(500)),
    Scenario("more than each can do", OVERLOAD, requests=poisson(22_000), more=True),
)


@dataclass(frozen=True)
class Size:
    """How many requests a scenario has."""

    requests: int


FULL = Size(40_000)
QUICK = Size(8_000)


@dataclass(frozen=True)
class Line:
    """What came of a scenario.

    Attributes:
        way: how a worker was chosen.
        mean_seconds, p99_seconds: from a request to its answer.
        rows_per_second: that were answered.
    """

    scenario: str
    way: str
    mean_seconds: float
    p99_seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    size: Size
    lines: list[Line]


# --- who chooses -------------------------------------------------------------------


class Way:
    """Schedulers, and who gets a request: each scheduler has some of the workers.

    Args:
        groups: the slots of each scheduler.
        choose: returns which one gets a request, by the rows that each has not answered.
        routed: whether they choose by cost.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        choose: Callable[[Sequence[int]], int] = lambda _: 0,
        *,
        routed: bool = False,
    ) -> None:
        self._choose = choose
        self.schedulers = [_scheduler(slots, routed=routed) for slots in groups]
        self.by_slot = {
            slot: scheduler
            for slots, scheduler in zip(groups, self.schedulers, strict=True)
            for slot in slots
        }
        self._rows = [0] * len(groups)

    def add(self, request: Request) -> None:
        """Put a request in a queue."""
        chosen = self._choose(self._rows)
        self._rows[chosen] += request.rows
        self.schedulers[chosen].add(request)

    def dispatch(self, now: float) -> list[Batch]:
        """Return what goes to workers now."""
        return [batch for one in self.schedulers for batch in one.dispatch(now).send]

    def answered(self, batch: Batch, now: float) -> None:
        """Take note of a worker's answer."""
        scheduler = self.by_slot[batch.slot]
        self._rows[self.schedulers.index(scheduler)] -= batch.rows
        scheduler.answered(batch.slot, batch.id, now)
        for request in batch.requests:
            scheduler.answer(request)

    def next_deadline(self) -> float:
        """Return when it has to be asked again."""
        return min(one.next_deadline() for one in self.schedulers)


def _scheduler(slots: Sequence[int], *, routed: bool) -> Scheduler:
    scheduler = Scheduler(
        max_batch_size=MAX_BATCH_SIZE, max_waiting=math.inf, retries=0, hang_timeout=math.inf
    )
    if routed:
        scheduler.routes = Routes(MAX_BATCH_SIZE)
    for slot in slots:
        scheduler.worker_ready(slot, 0.0)
    return scheduler


def ways(scenario: Scenario) -> dict[str, Way]:
    """Return the ways that are compared; each worker has a queue of its own in two of them."""
    cpus, gpus = scenario.slots["cpu"], scenario.slots["gpu"]
    everyone = [*cpus, *gpus]
    each = [[slot] for slot in everyone]
    turn = itertools.cycle(range(len(everyone)))
    return {
        "routed": Way([everyone], routed=True),
        "CPU only": Way([cpus]),
        "GPU only": Way([gpus]),
        "whoever is idle": Way([everyone]),
        "round robin": Way(each, lambda _: next(turn)),
        "fewest rows": Way(each, lambda rows: min(range(len(rows)), key=rows.__getitem__)),
    }


# --- simulated time ----------------------------------------------------------------


class Simulation:
    """A scenario in one way; it is over when so many requests are answered."""

    def __init__(self, scenario: Scenario, way: Way, count: int, seed: int) -> None:
        self._scenario = scenario
        self._way = way
        self._count = count
        self._chance = np.random.default_rng(seed)
        draw = scenario.requests
        self._arrivals = deque(draw(np.random.default_rng(seed + 1), count) if draw else ())
        self._ends: list[tuple[float, int, Batch]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._latencies: list[float] = []
        self._rows = 0
        self._warm: set[tuple[int, Hashable]] = set()

    def run(self) -> tuple[list[float], float]:
        """Return how long each request took, and how many rows a second were answered."""
        for _ in range(self._scenario.callers):
            self._ask("rows", 1)
        self._send()
        while len(self._latencies) < self._count:
            self._go_on()
        return self._latencies, self._rows / self._now

    def _go_on(self) -> None:
        """Do what is next, and all else that is at the same moment."""
        arrival = self._arrivals[0][0] if self._arrivals else math.inf
        end = self._ends[0][0] if self._ends else math.inf
        now = self._now = max(self._now, min(arrival, end, self._way.next_deadline()))
        while self._arrivals and self._arrivals[0][0] <= now:
            self._ask(*self._arrivals.popleft()[1:])
        while self._ends and self._ends[0][0] <= now:
            self._answer(heapq.heappop(self._ends)[2])
        self._send()

    def _ask(self, key: Hashable, rows: int) -> None:
        self._way.add(Request(key, rows, self._now, math.inf, math.inf))

    def _answer(self, batch: Batch) -> None:
        self._way.answered(batch, self._now)
        self._rows += batch.rows
        for request in batch.requests:
            self._latencies.append(self._now - request.submitted_at)
            if self._scenario.callers:
                self._ask(request.key, request.rows)

    def _send(self) -> None:
        late = 2 * len(self._latencies) > self._count
        for batch in self._way.dispatch(self._now):
            noise = float(np.exp(self._chance.normal(-(NOISE**2) / 2, NOISE)))
            end = self._now + noise * self._scenario.seconds(batch.slot, batch, late)
            end += self._cold_start(batch)
            heapq.heappush(self._ends, (end, next(self._numbers), batch))

    def _cold_start(self, batch: Batch) -> float:
        first = (batch.slot, batch.requests[0].key)
        if first in self._warm:
            return 0.0
        self._warm.add(first)
        return self._scenario.cold


def run(*, quick: bool, note: Note, seed: int = 1) -> Outcome:
    """Run every scenario in every way."""
    size = QUICK if quick else FULL
    lines = []
    for scenario in SCENARIOS:
        note(scenario.name)
        for name, way in ways(scenario).items():
            latencies, rate = Simulation(scenario, way, size.requests, seed).run()
            mean, p99 = float(np.mean(latencies)), percentile(latencies, 99)
            lines.append(Line(scenario.name, name, mean, p99, rate))
    return Outcome(size, lines)


def gains(found: Outcome) -> dict[tuple[str, str], float]:
    """Return how many times better each way is than the better kind of worker alone.

    In mean latency, or in rows a second where callers come back as soon as they are answered.
    """
    lines = {(line.scenario, line.way): line for line in found.lines}
    gained = {}
    for scenario in SCENARIOS:
        single = [lines[scenario.name, way] for way in ("CPU only", "GPU only")]
        rate = max(line.rows_per_second for line in single)
        mean = min(line.mean_seconds for line in single)
        for (name, way), line in lines.items():
            if name == scenario.name:
                by_rate, by_mean = line.rows_per_second / rate, mean / line.mean_seconds
                gained[name, way] = by_rate if scenario.callers else by_mean
    return gained


def goals(found: Outcome) -> list[Goal]:
    """Return what routing has to reach."""
    gained = gains(found)
    return [
        Goal(
            f"{scenario.name}: times better than the better kind alone",
            gained[scenario.name, "routed"],
            WHERE_BOTH if scenario.both or scenario.more else AT_LEAST,
            at_least=True,
        )
        for scenario in SCENARIOS
    ]


def show(paper: Paper, found: Outcome) -> None:
    """Print what came of each scenario."""
    names = list(ways(SCENARIOS[0]))
    table = paper.table(
        "Mixed pools in simulated time",
        f"ms, mean (p99), of {found.size.requests:,} requests, and rows a second where there are "
        "256 callers; compared: how many times better routing is than the better of CPU only and "
        "GPU only, in mean latency or in rows a second",
        "scenario",
        *(*names, "compared"),
    )
    lines = {(line.scenario, line.way): line for line in found.lines}
    gained = gains(found)
    for scenario in SCENARIOS:
        cells = [_cell(scenario, lines[scenario.name, name]) for name in names]
        table.add_row(scenario.name, *cells, f"{gained[scenario.name, 'routed']:.2f}")
    paper.print(table)


def _cell(scenario: Scenario, line: Line) -> str:
    rate = f"; {line.rows_per_second:,.0f} rows/s" if scenario.callers else ""
    return f"{line.mean_seconds * 1e3:,.2f} ({line.p99_seconds * 1e3:,.2f}){rate}"
