"""Pools whose workers are forked from the template, and pools that start them afresh."""

from typing import Literal

import anyio
import psutil

from benchmarks import harness
from benchmarks.models import METHODS, Arrays, Model
from predictpool import LocalLauncher, PredictorPool

Start = Literal["forked", "afresh"]
STARTS: tuple[Start, ...] = ("forked", "afresh")
METHOD = METHODS[0]
PATIENCE = 10.0


def pool(model: Model, start: Start, workers: int) -> PredictorPool[Arrays]:
    """Return a pool that is not open yet."""
    launcher = LocalLauncher(fork=start == "forked")
    return PredictorPool(model.predictor(METHOD), workers=workers, launcher=launcher)


def processes() -> tuple[psutil.Process, list[psutil.Process]]:
    """Return the template of this process's pool, and its workers, the oldest first."""
    template = harness.template()
    return template, sorted(template.children(), key=lambda worker: worker.create_time())


async def have_all_answer(pool: PredictorPool[Arrays], model: Model, requests: int) -> None:
    """Ask so much at once that no worker is left idle.

    Raises:
        RuntimeError: one has answered nothing.
    """
    _, workers = processes()
    before = [_wake_ups(worker) for worker in workers]
    rows = iter(model.rows(requests))

    async def call() -> None:
        for row in rows:
            await pool.predict(row)

    async with anyio.create_task_group() as group:
        # One more caller than a batch has rows, for each worker.
        for _ in range(65 * len(workers)):
            group.start_soon(call)
    for worker, count in zip(workers, before, strict=True):
        await _sleeps_again(worker, count, f"a worker of {len(workers)} has answered nothing")


async def _sleeps_again(worker: psutil.Process, count: int, otherwise: str) -> None:
    # Its answer may be here before it waits for the next batch: it gives way to this process.
    with anyio.move_on_after(PATIENCE):
        while _wake_ups(worker) <= count:  # noqa: ASYNC110 - another process counts
            await anyio.sleep(0.01)
        return
    raise RuntimeError(otherwise)


def _wake_ups(worker: psutil.Process) -> int:
    return int(worker.num_ctx_switches().voluntary)
