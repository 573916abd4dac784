"""``python -m benchmarks startup``: how soon a further worker is ready.

Three ways to get one, in turn: forked from the template, started afresh by the same pool
(``LocalLauncher(fork=False)``), and a bare interpreter that does what a worker does and nothing
else. "Ready" means the same for all: the predictor is loaded and has answered one row and two
rows, which is the pool's warm-up.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import cloudpickle

from benchmarks import figures, harness, starts
from benchmarks.figures import Goal, Spread
from benchmarks.models import Model
from benchmarks.report import Paper
from benchmarks.starts import METHOD, STARTS, Start

READY_GOAL = 0.4
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
        requests: how many a pool answers before a worker of it is killed.
    """

    rounds: int
    requests: int


FULL = Size(rounds=5, requests=400)
QUICK = Size(rounds=1, requests=40)


@dataclass(frozen=True)
class PoolStart:
    """What one pool of two workers showed.

    Attributes:
        first: seconds from ``open()`` to a ready worker: the template's start is in it.
        second: seconds from the first worker's being ready, when the second is ordered, to the
            second's being ready.
        again: seconds from ``kill -9`` of a worker to two ready workers.
    """

    first: float
    second: float
    again: float


# --- in a process of its own -------------------------------------------------------


def start_pool(model: Model, start: Start, requests: int) -> PoolStart:
    """Start a pool of two workers and look at it; for `harness.in_child`."""
    return anyio.run(_start_pool, model, start, requests)


async def _start_pool(model: Model, start: Start, requests: int) -> PoolStart:
    pool = starts.pool(model, start, 2)
    began = time.perf_counter()
    async with pool:
        first_ready = time.perf_counter()
        await pool.wait_ready(2)
        second_ready = time.perf_counter()
        await starts.have_all_answer(pool, model, requests)
        _, workers = starts.processes()
        workers[-1].kill()
        killed = time.perf_counter()
        while pool.statistics().ready == 2:  # noqa: ASYNC110 - there is no event for a death
            await anyio.sleep(POLL)
        await pool.wait_ready(2)
        again = time.perf_counter() - killed
    return PoolStart(first_ready - began, second_ready - first_ready, again)


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
class Outcome:
    """What the benchmark found.

    Attributes:
        times: for "forked", "afresh" and "bare interpreter".
        second_to_afresh, second_to_bare: the forked second worker's time, round by round.
        again_to_bare: from the ``kill -9`` of a forked worker, against the bare interpreter.
    """

    rounds: int
    times: dict[str, Times]
    second_to_afresh: Spread
    second_to_bare: Spread
    again_to_bare: Spread


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
    second = {start: [pool.second for pool in pools[start]] for start in STARTS}
    return Outcome(
        size.rounds,
        {start: _times(pools[start]) for start in STARTS}
        | {"bare interpreter": Times(None, Spread.of(bare), None)},
        figures.ratios(second["forked"], second["afresh"]),
        figures.ratios(second["forked"], bare),
        figures.ratios([pool.again for pool in pools["forked"]], bare),
    )


def _times(pools: list[PoolStart]) -> Times:
    return Times(
        Spread.of(pool.first for pool in pools),
        Spread.of(pool.second for pool in pools),
        Spread.of(pool.again for pool in pools),
    )


def goals(outcome: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    return [
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
        Goal(
            "ready again after kill -9: forked / bare interpreter",
            outcome.again_to_bare.median,
            READY_GOAL,
            aim=0.3,
        ),
    ]


def show(paper: Paper, found: Outcome) -> None:
    """Print how soon workers are ready."""
    table = paper.table(
        "Until a worker is ready",
        f"s; median of {found.rounds} rounds (lowest–highest round)",
        "worker",
        *("first, with template", "second", "again after kill -9"),
    )
    for name, times in found.times.items():
        spans = (times.first, times.second, times.again)
        table.add_row(name, *("" if span is None else span.text() for span in spans))
    table.add_row("forked / afresh", "", found.second_to_afresh.text(), "")
    table.add_row(
        "forked / bare interpreter", "", found.second_to_bare.text(), found.again_to_bare.text()
    )
    paper.print(table)
