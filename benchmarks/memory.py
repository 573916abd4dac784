"""``python -m benchmarks memory``: what a pool's processes take, with workers forked and afresh.

It is the proportional set size (PSS): a process's own pages, and of each page that it shares with
others its share. Every worker has answered requests before.
"""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from benchmarks import harness, pss, starts
from benchmarks.figures import Goal
from benchmarks.models import Model
from benchmarks.pss import Memory
from benchmarks.report import Paper
from benchmarks.starts import STARTS, Start

Note = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many pools are started, of each size and each way.
        workers: of the smaller and of the larger pool.
        requests: how many each pool answers before its memory is taken.
    """

    rounds: int
    workers: tuple[int, int]
    requests: int


FULL = Size(rounds=5, workers=(2, 4), requests=400)
QUICK = Size(rounds=1, workers=(1, 2), requests=40)


@dataclass(frozen=True)
class Footprint:
    """The memory of one pool's processes, after every worker has answered requests."""

    application: Memory
    template: Memory
    workers: list[Memory]

    @property
    def without_template(self) -> int:
        """Bytes of all processes but the template."""
        return self.application.pss + sum(worker.pss for worker in self.workers)


def take_footprint(model: Model, start: Start, workers: int, requests: int) -> Footprint:
    """Start a pool and return its memory; for `harness.in_child`."""
    return anyio.run(_take_footprint, model, start, workers, requests)


async def _take_footprint(model: Model, start: Start, workers: int, requests: int) -> Footprint:
    async with starts.pool(model, start, workers) as pool:
        await pool.wait_ready()
        await starts.have_all_answer(pool, model, requests)
        template, children = starts.processes()
        return Footprint(
            pss.of(os.getpid()), pss.of(template.pid), [pss.of(child.pid) for child in children]
        )


# --- all of it ---------------------------------------------------------------------


@dataclass(frozen=True)
class PoolMemory:
    """PSS in bytes of a pool's processes; medians.

    Attributes:
        application, template: one process each.
        worker, worker_private: the worker that was started last; its PSS, and its own pages alone.
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
    """What the benchmark found, for "forked" and "afresh": the smaller pool, the larger one."""

    rounds: int
    pools: dict[Start, list[PoolMemory]]


def run(model: Model, *, quick: bool, note: Note) -> Outcome:
    """Start one pool after the other, each in a process of its own."""
    size = QUICK if quick else FULL
    taken: dict[tuple[Start, int], list[Footprint]] = {}
    for number in range(size.rounds):
        for workers in size.workers:
            note(f"round {number + 1} of {size.rounds}, {workers} workers")
            for start in STARTS:
                footprint = harness.in_child(take_footprint, model, start, workers, size.requests)
                taken.setdefault((start, workers), []).append(footprint)
    return Outcome(
        size.rounds,
        {
            start: [_sum_up(workers, taken[start, workers]) for workers in size.workers]
            for start in STARTS
        },
    )


def _sum_up(workers: int, taken: list[Footprint]) -> PoolMemory:
    def median(of: Callable[[Footprint], float]) -> float:
        return statistics.median(map(of, taken))

    return PoolMemory(
        workers,
        median(lambda footprint: footprint.application.pss),
        median(lambda footprint: footprint.template.pss),
        median(lambda footprint: footprint.workers[-1].pss),
        median(lambda footprint: footprint.workers[-1].private),
        median(lambda footprint: footprint.without_template + footprint.template.pss),
        median(lambda footprint: footprint.without_template),
    )


def goals(found: Outcome) -> list[Goal]:
    """Compare with what must be reached."""
    (forked, forked_large), (afresh, afresh_large) = (found.pools[start] for start in STARTS)
    return [
        Goal(
            "memory of a further worker, PSS: forked / afresh",
            forked.worker / afresh.worker,
            0.5,
            aim=0.35,
        ),
        Goal(
            f"memory with {forked_large.workers} workers, all processes: forked / interpreters",
            forked_large.total / afresh_large.total_without_template,
            0.75,
            aim=0.6,
        ),
    ]


def show(paper: Paper, found: Outcome) -> None:
    """Print what each kind of process takes."""
    table = paper.table(
        "Memory",
        f"PSS in MB; median of {found.rounds} pools each",
        "workers",
        *("application", "template", "a worker", "… of its own", "all", "all but the template"),
    )
    for start, pools in found.pools.items():
        for pool in pools:
            sizes = (
                pool.application,
                pool.template,
                pool.worker,
                pool.worker_private,
                pool.total,
                pool.total_without_template,
            )
            table.add_row(f"{pool.workers} {start}", *(f"{size / 1e6:,.0f}" for size in sizes))
    paper.print(table)
