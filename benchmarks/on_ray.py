"""``python -m benchmarks ray``: a pool whose workers are Ray actors, and calls of bare actors.

Both call the same model with the same arrays, from one process and one event loop, in turn: one
caller for what a call takes, 256 for what batches are worth, with as many actors on either side.
Then a node of a cluster is killed under load, and every request is counted.
"""

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np

from benchmarks import contenders, figures, harness, load
from benchmarks.figures import Goal, Spread
from benchmarks.harness import Contender, Orders
from benchmarks.report import Paper
from predictpool import FunctionPredictor, PredictorPool, RayLauncher

WIDTH = 13  # numbers in a row, as the demo's census has features
ACTORS = 2
CALLERS = 256
WAYS = ("bare actors", "pool")
FEATURES = ("one array", "13 arrays")

Ask = Callable[[Any], Awaitable[Any]]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each way has its turn.
        calls: of one caller in each round; a tenth as many to warm up.
        seconds: of many callers in each round; half as many to warm up.
        least: how many answers there are at least around a node's death.
    """

    rounds: int
    calls: int
    seconds: float
    least: int


FULL = Size(rounds=9, calls=500, seconds=2.0, least=20_000)
QUICK = Size(rounds=2, calls=10, seconds=0.2, least=500)


@dataclass(frozen=True)
class Line:
    """What came of one caller with one row, or of many.

    Attributes:
        features: what a row is.
        bare, pool: seconds of a call, the median within a round; or calls per second.
        ratio: pool to bare, round by round.
    """

    features: str
    bare: Spread
    pool: Spread
    ratio: Spread


@dataclass(frozen=True)
class Death:
    """What became of the requests around the death of a node.

    Attributes:
        nodes, workers: how many there were before.
        died: how many workers the pool has lost with the node.
        asked, answered, failed: requests.
        lost: those that got neither an answer nor an error.
        longest_seconds: of a request.
    """

    nodes: int
    workers: int
    died: int
    asked: int
    answered: int
    failed: int
    lost: int
    longest_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found."""

    size: Size
    calls: list[Line]
    throughput: Line
    death: Death


# --- the model ---------------------------------------------------------------------


def load_model() -> Any:
    """Load the model: the sum of each row, whether its numbers come as one array or as many."""
    return total


def total(rows: Any) -> Any:
    """Return the sums."""
    return sum(rows.values()) if isinstance(rows, dict) else rows.sum(axis=1)


class Bare:
    """An actor without a pool."""

    def total(self, rows: Any) -> Any:
        """Return the sums."""
        return total(rows)


def _row(features: str, number: int) -> Any:
    numbers = np.arange(number, number + WIDTH, dtype=np.float32)[np.newaxis]
    if features == "one array":
        return numbers
    return {f"x{column}": numbers[:, column] for column in range(WIDTH)}


def _predictor(features: str) -> FunctionPredictor[Any]:
    named: Any = {f"x{column}": ("f4", ()) for column in range(WIDTH)}
    signature = ("f4", (WIDTH,)) if features == "one array" else named
    return FunctionPredictor(load_model, row_wise=True, signature=signature)


# --- in a process of its own: calls ------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Have Ray leave nothing behind, find nothing of others, and say nothing on stdout."""
    os.dup2(2, 1)  # where it describes a node that died; the result of the run goes there
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": directory}
        yield


def serve(orders: Orders) -> None:
    """Be the only contender, with both ways; see `harness.Contender`.

    It understands ``("calls", way, features, calls)``, which returns how many seconds each took,
    and ``("throughput", way, seconds)``, which returns calls per second.
    """
    import ray

    with _quiet():
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        contenders.on_loop("asyncio", _serve, orders)
        ray.shutdown()


async def _serve(orders: Orders) -> None:
    async with AsyncExitStack() as stack:
        ask: dict[tuple[str, str], Ask] = {}
        for features in FEATURES:
            ask["bare actors", features] = await _bare()
            ask["pool", features] = await stack.enter_async_context(_pooled(features))
        orders.reply(None)
        while (order := await contenders.next_order(orders)) is not None:
            what, way, features, amount = order
            measure = _one_caller if what == "calls" else _many_callers
            orders.reply(await measure(ask[way, features], features, amount))


async def _bare() -> Ask:
    import ray

    actors = [ray.remote(num_cpus=0)(Bare).remote() for _ in range(ACTORS)]
    for actor in actors:
        await actor.total.remote(_row("one array", 0))
    next_call = itertools.cycle([actor.total.remote for actor in actors]).__next__

    async def ask(row: Any) -> Any:
        return await next_call()(row)

    return ask


@asynccontextmanager
async def _pooled(features: str) -> AsyncIterator[Ask]:
    launcher = RayLauncher(num_cpus=0)
    pool: PredictorPool[Any] = PredictorPool(
        _predictor(features), workers=ACTORS, launcher=launcher
    )
    async with pool:
        await pool.wait_ready()
        yield pool.predict


async def _one_caller(ask: Ask, features: str, calls: int) -> list[float]:
    row = _row(features, 1)
    taken = []
    for call in range(-calls // 10, calls):
        began = time.perf_counter()
        answer = await ask(row)
        if call >= 0:
            taken.append(time.perf_counter() - began)
    _check(answer, 1)
    return taken


async def _many_callers(ask: Ask, features: str, seconds: float) -> float:
    rows = [_row(features, number) for number in range(2 * CALLERS)]
    found = await load.closed_loop(
        ask, rows, callers=CALLERS, seconds=seconds, warm_up_seconds=seconds / 2
    )
    return found.calls_per_second


def _check(answer: Any, number: int) -> None:
    if answer.tolist() != [sum(range(number, number + WIDTH))]:
        raise RuntimeError(f"{answer} is not the sum of {WIDTH} numbers from {number} on")


# --- in a process of its own: a node dies ------------------------------------------

NODES = 3


def node_death(least: int) -> Death:
    """Kill one of three nodes while 64 callers ask, and count."""
    import ray
    from ray.cluster_utils import Cluster

    with _quiet():
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]
        cluster.connect()
        try:
            return asyncio.run(_ask_until(least, lambda: cluster.remove_node(nodes[0], False)))
        finally:
            ray.shutdown()
            cluster.shutdown()


async def _ask_until(least: int, kill: Callable[[], None]) -> Death:
    asked = answered = 0
    longest = 0.0
    under_load, killed = anyio.Event(), anyio.Event()
    pool: PredictorPool[Any] = PredictorPool(
        _predictor("one array"), workers=NODES, launcher=RayLauncher(num_cpus=1), retries=3
    )

    async def ask(number: int) -> None:
        nonlocal asked, answered, longest
        row = _row("one array", number)
        while not killed.is_set() or answered < least or pool.statistics().ready == NODES:
            asked += 1
            began = time.perf_counter()
            _check(await pool.predict(row), number)
            longest = max(longest, time.perf_counter() - began)
            answered += 1
            if answered >= least // 2:
                under_load.set()

    async with pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(ask, number)
            await under_load.wait()
            await anyio.to_thread.run_sync(kill)
            killed.set()
        now = pool.statistics()
    died = NODES - now.ready
    lost = asked - now.answered - now.failed
    return Death(NODES, NODES, died, asked, answered, now.failed, lost, longest)


# --- all of it ---------------------------------------------------------------------


def run(*, quick: bool, note: Note) -> Outcome:
    """Let both ways work in turn, then kill a node.

    Raises:
        ContenderFailed: something failed, or an answer was wrong.
    """
    size = QUICK if quick else FULL
    both = Contender("Ray", serve)
    taken: dict[tuple[str, str, str], list[float]] = {}
    with harness.all_ended([both]):
        note("starting Ray")
        both.result()
        for number in range(size.rounds):
            note(f"round {number + 1} of {size.rounds}")
            for way in harness.in_turn(WAYS, number):
                for features in FEATURES:
                    p50 = figures.percentile(both.order("calls", way, features, size.calls), 50)
                    taken.setdefault(("calls", way, features), []).append(p50)
                many = both.order("throughput", way, FEATURES[0], size.seconds)
                taken.setdefault(("throughput", way, FEATURES[0]), []).append(many)
    note("killing a node")
    death = harness.in_child(node_death, size.least)
    calls = [_line("calls", features, taken) for features in FEATURES]
    return Outcome(size, calls, _line("throughput", FEATURES[0], taken), death)


def _line(what: str, features: str, taken: dict[tuple[str, str, str], list[float]]) -> Line:
    bare, pool = (taken[what, way, features] for way in WAYS)
    return Line(features, Spread.of(bare), Spread.of(pool), figures.ratios(pool, bare))


def goals(found: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    return [
        *(
            Goal(f"one caller, {line.features}: p50 / bare actor", line.ratio.median, 1.2)
            for line in found.calls
        ),
        Goal(
            f"{CALLERS} callers: calls/s / bare actors",
            found.throughput.ratio.median,
            5.0,
            at_least=True,
        ),
        *promises(found),
    ]


def promises(found: Outcome) -> list[Goal]:
    """Return what no busy machine excuses."""
    return [
        Goal("requests lost with a node", found.death.lost, 0),
        Goal("requests failed with a node", found.death.failed, 0),
        Goal("workers that died with it", found.death.died, 1, at_least=True),
    ]


def show(paper: Paper, found: Outcome) -> None:
    """Print how the pool and bare actors compare, and what a node's death did."""
    size = found.size
    table = paper.table(
        f"Ray: a row of {WIDTH} numbers; {ACTORS} actors on either side",
        f"median of {size.rounds} rounds (lowest–highest round)",
        "",
        *("bare actors", "pool", "pool / bare"),
    )
    for line in found.calls:
        name = f"one caller, {line.features}: p50, ms"
        table.add_row(name, line.bare.text(1e3), line.pool.text(1e3), line.ratio.text())
    many = found.throughput
    name = f"{CALLERS} callers, {many.features}: calls/s"
    table.add_row(name, many.bare.text(), many.pool.text(), many.ratio.text())
    paper.print(table)
    death = found.death
    paper.print(
        f"one of {death.nodes} nodes killed: {death.asked:,} requests, {death.answered:,} "
        f"answered, {death.failed} failed, {death.lost} lost; {death.died} of {death.workers} "
        f"workers died; the longest request took {death.longest_seconds:.2f} s"
    )
