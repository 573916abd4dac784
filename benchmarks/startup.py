"""``python -m benchmarks startup``: how soon a further worker is ready, and what memory it takes.

Three ways to get one, in turn: forked from the template, started afresh by the same pool
(``LocalLauncher(fork=False)``), and a bare interpreter that does what a worker does and nothing
else. "Ready" means the same for all: the predictor is loaded and has answered one row and two
rows, which is the pool's warm-up.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import cloudpickle
import psutil

from benchmarks import figures, harness
from benchmarks.figures import Goal, Spread
from benchmarks.models import METHODS, Arrays, Model
from predictpool import LocalLauncher, PredictorPool

Start = Literal["forked", "afresh"]
STARTS: tuple[Start, ...] = ("forked", "afresh")
METHOD = METHODS[0]
READY_GOAL = 0.4
MEMORY_GOAL = 0.5
TOTAL_GOAL = 0.75
POLL = 0.002

Note = Callable[[str], None]

_BARE = """
import os, pickle, sys
os.sched_setaffinity(0, {cores})
sys.path[:] = {path}
import tensorflow
with open({predictor!r}, "rb") as file:
    predictor = pickle.load(file)
from predictpool import Device
predictor.load(Device(cores=tuple({cores})))
example = predictor.signature.example()
for rows in (1, 2):
    predictor.predict({{name: values.repeat(rows, 0) for name, values in example.items()}})
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each way has its turn.
        large: workers in the larger pool whose memory is taken.
        memory_rounds: how many such pools are started, each way.
        requests: how many each pool answers before its memory is taken.
    """

    rounds: int
    large: int
    memory_rounds: int
    requests: int


FULL = Size(rounds=5, large=4, memory_rounds=2, requests=400)
QUICK = Size(rounds=1, large=3, memory_rounds=0, requests=40)


@dataclass(frozen=True)
class Memory:
    """Bytes that a process takes.

    Attributes:
        pss: its own pages, and of each shared one its share.
        private: its own pages alone.
    """

    pss: int
    private: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.pss + other.pss, self.private + other.private)


@dataclass(frozen=True)
class Footprint:
    """The memory of one pool's processes, after every worker has answered requests."""

    application: Memory
    template: Memory
    workers: list[Memory]


@dataclass(frozen=True)
class PoolStart:
    """What one pool of two workers showed.

    Attributes:
        first: seconds from ``open()`` to a ready worker: the template's start is in it.
        second: seconds from the first worker's being ready, when the second is ordered, to the
            second's being ready.
        again: seconds from ``kill -9`` of a worker to two ready workers.
        footprint: the memory, taken before the kill.
    """

    first: float
    second: float
    again: float
    footprint: Footprint


# --- in a process of its own -------------------------------------------------------


def start_pool(model: Model, start: Start, requests: int) -> PoolStart:
    """Start a pool of two workers and look at it; for `harness.in_child`."""
    return anyio.run(_start_pool, model, start, requests)


def take_footprint(model: Model, start: Start, workers: int, requests: int) -> Footprint:
    """Start a pool and return its memory; for `harness.in_child`."""
    return anyio.run(_take_footprint, model, start, workers, requests)


async def _start_pool(model: Model, start: Start, requests: int) -> PoolStart:
    pool = _pool(model, start, 2)
    began = time.perf_counter()
    async with pool:
        first_ready = time.perf_counter()
        await pool.wait_ready(2)
        second_ready = time.perf_counter()
        footprint = await _footprint(pool, model, requests)
        _, workers = _processes()
        workers[-1].kill()
        killed = time.perf_counter()
        while pool.statistics().ready == 2:  # noqa: ASYNC110 - there is no event for a death
            await anyio.sleep(POLL)
        await pool.wait_ready(2)
        again = time.perf_counter() - killed
    return PoolStart(first_ready - began, second_ready - first_ready, again, footprint)


async def _take_footprint(model: Model, start: Start, workers: int, requests: int) -> Footprint:
    async with _pool(model, start, workers) as pool:
        await pool.wait_ready()
        return await _footprint(pool, model, requests)


def _pool(model: Model, start: Start, workers: int) -> PredictorPool[Arrays]:
    launcher = LocalLauncher(fork=start == "forked")
    return PredictorPool(model.predictor(METHOD), workers=workers, launcher=launcher)


async def _footprint(pool: PredictorPool[Arrays], model: Model, requests: int) -> Footprint:
    """Have all workers answer, then read their memory."""
    template, workers = _processes()
    before = [_wake_ups(worker) for worker in workers]
    rows = iter(model.rows(requests))

    async def call() -> None:
        for row in rows:
            await pool.predict(row)

    async with anyio.create_task_group() as group:
        # One more caller than a batch has rows, for each worker: so none is left idle.
        for _ in range(65 * len(workers)):
            group.start_soon(call)
    for worker, count in zip(workers, before, strict=True):
        if _wake_ups(worker) <= count:
            raise RuntimeError(f"a worker of {len(workers)} has answered nothing")
    return Footprint(
        memory(os.getpid()), memory(template.pid), [memory(worker.pid) for worker in workers]
    )


def _wake_ups(worker: psutil.Process) -> int:
    return int(worker.num_ctx_switches().voluntary)


def _processes() -> tuple[psutil.Process, list[psutil.Process]]:
    """Return the template and its workers, the oldest first."""
    template = harness.template()
    return template, sorted(template.children(), key=lambda worker: worker.create_time())


def memory(pid: int) -> Memory:
    """Read the memory of a process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        fields[name] = int(kilobytes) * 1024
    return Memory(fields["Pss:"], fields["Private_Clean:"] + fields["Private_Dirty:"])


# --- the bare interpreter ----------------------------------------------------------


def start_bare(model: Model, file: Path) -> float:
    """Start an interpreter that becomes what a worker is; return the seconds it took."""
    file.write_bytes(cloudpickle.dumps(model.predictor(METHOD)))
    script = _BARE.format(
        cores=[max(os.sched_getaffinity(0))], path=sys.path, predictor=os.fspath(file)
    )
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **harness.WORKER_ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - began
    if said != b"ready\n":
        raise harness.ContenderFailed("the bare interpreter failed; what it said is on stderr")
    return seconds


# --- all of it ---------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds until workers of one way are ready; `PoolStart` says which is which."""

    first: Spread | None
    second: Spread
    again: Spread | None


@dataclass(frozen=True)
class PoolMemory:
    """PSS in bytes of a pool's processes; medians.

    Attributes:
        application, template: one process each.
        worker, worker_private: one worker; its PSS, and its own pages alone.
        total: all processes.
        total_without_template: what as many interpreters and the application would take.
    """

    workers: int
    application: float
    template: float
    worker: float
    worker_private: float
    total: float
    total_without_template: float


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found.

    Attributes:
        times: for "forked", "afresh" and "bare interpreter".
        second_to_afresh, second_to_bare: the forked second worker's time, round by round.
        memory: for "forked" and "afresh", by number of workers.
    """

    rounds: int
    times: dict[str, Times]
    second_to_afresh: Spread
    second_to_bare: Spread
    memory: dict[Start, list[PoolMemory]]


def run(model: Model, *, quick: bool, note: Note) -> Outcome:
    """Start pools and interpreters in turn, never two things at a time."""
    size = QUICK if quick else FULL
    pools: dict[Start, list[PoolStart]] = {start: [] for start in STARTS}
    bare: list[float] = []
    for number in range(size.rounds):
        note(f"round {number + 1} of {size.rounds}")
        # The order changes, so that none always comes after the same neighbour.
        for start in STARTS[:: 1 if number % 2 else -1]:
            pools[start].append(harness.in_child(start_pool, model, start, size.requests))
        bare.append(harness.in_child(start_bare, model, Path(model.directory, "predictor")))
    footprints = {start: [pool.footprint for pool in pools[start]] for start in STARTS}
    for number in range(size.memory_rounds):
        note(f"memory with {size.large} workers, {number + 1} of {size.memory_rounds}")
        for start in STARTS:
            footprints[start].append(
                harness.in_child(take_footprint, model, start, size.large, size.requests)
            )
    second = {start: [pool.second for pool in pools[start]] for start in STARTS}
    return Outcome(
        size.rounds,
        {start: _times(pools[start]) for start in STARTS}
        | {"bare interpreter": Times(None, Spread.of(bare), None)},
        figures.ratios(second["forked"], second["afresh"]),
        figures.ratios(second["forked"], bare),
        {start: _memory(footprints[start]) for start in STARTS},
    )


def _times(pools: list[PoolStart]) -> Times:
    return Times(
        Spread.of(pool.first for pool in pools),
        Spread.of(pool.second for pool in pools),
        Spread.of(pool.again for pool in pools),
    )


def _memory(footprints: list[Footprint]) -> list[PoolMemory]:
    """Sum up footprints of pools of one way, by their number of workers."""
    by_workers: dict[int, list[Footprint]] = {}
    for footprint in footprints:
        by_workers.setdefault(len(footprint.workers), []).append(footprint)
    return [_pool_memory(workers, taken) for workers, taken in by_workers.items()]


def _pool_memory(workers: int, taken: list[Footprint]) -> PoolMemory:
    def median(of: Callable[[Footprint], float]) -> float:
        return statistics.median(map(of, taken))

    def without_template(footprint: Footprint) -> float:
        return footprint.application.pss + sum(worker.pss for worker in footprint.workers)

    return PoolMemory(
        workers,
        median(lambda footprint: footprint.application.pss),
        median(lambda footprint: footprint.template.pss),
        median(lambda footprint: footprint.workers[-1].pss),
        median(lambda footprint: footprint.workers[-1].private),
        median(lambda footprint: without_template(footprint) + footprint.template.pss),
        median(without_template),
    )


def goals(outcome: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    forked, afresh = outcome.memory["forked"], outcome.memory["afresh"]
    worker = forked[0].worker / afresh[0].worker
    listed = [
        Goal(
            "second worker ready: forked / afresh by the pool",
            outcome.second_to_afresh.median,
            READY_GOAL,
        ),
        Goal(
            "second worker ready: forked / bare interpreter",
            outcome.second_to_bare.median,
            READY_GOAL,
        ),
        Goal("memory of a further worker, PSS: forked / afresh", worker, MEMORY_GOAL),
    ]
    if len(forked) > 1:
        name = f"memory with {forked[1].workers} workers, all processes: forked / interpreters"
        total = forked[1].total / afresh[1].total_without_template
        listed.append(Goal(name, total, TOTAL_GOAL))
    return listed
