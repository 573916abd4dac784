"""What is done to a pool's workers while it is asked: ``kill -9``, SIGSTOP, reloads, at random."""

import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import psutil

from benchmarks import harness
from predictpool import BrokenWorkerError, PredictorPool, WorkerError, WorkerStartError

POLL = 0.002
LONGEST_FOLLOW_UP = 0.005
NOTICED_WITHIN = 1.0
_REMEMBERED = 1024
_SHOWN = 5


@dataclass(frozen=True)
class Pace:
    """Mean seconds between two disturbances of a kind; the gaps are exponential."""

    kill: float
    stop: float
    reload: float


@dataclass(frozen=True)
class Hit:
    """A worker that was killed or stopped, and when."""

    pid: int
    at: float
    stopped: bool


class Disturber:
    """Disturbs one pool, from the same event loop.

    Attributes:
        done: how often it has killed, stopped and reloaded; how many reloads failed because
            the new worker was hit; how many kills met a worker that a reload had replaced.
        unexplained: how many reloads and recoveries failed for no reason of ours.
        mistakes: what the first of these said.
        recoveries: seconds from a kill to all workers ready again; the last ones.
        reloading: whether a reload is under way.
    """

    def __init__(
        self, pool: PredictorPool[Any], pace: Pace, hang_timeout: float, seed: int
    ) -> None:
        self.done: Counter[str] = Counter()
        self.unexplained = 0
        self.mistakes: list[str] = []
        self.recoveries: deque[float] = deque(maxlen=_REMEMBERED)
        self.reloading = False
        self._pool = pool
        self._pace = pace
        self._hang_timeout = hang_timeout
        self._random = random.Random(seed)
        self._template = harness.template()
        self._hits: deque[Hit] = deque(maxlen=_REMEMBERED)

    async def run(self, may_go_on: Callable[[], Awaitable[None]]) -> None:
        """Disturb until cancelled.

        Args:
            may_go_on: waits while nothing must be disturbed.
        """
        acts = (
            (self._pace.kill * 1.5, self._kill),  # every second time it kills two
            (self._pace.stop, self._stop),
            (self._pace.reload, self._reload),
        )

        async def repeat(mean: float, act: Callable[[], Awaitable[None]]) -> None:
            due = time.monotonic()
            while True:
                # From when the last one was due: a busy loop must not make them rarer.
                due += self._random.expovariate(1 / mean)
                await anyio.sleep(max(0.0, due - time.monotonic()))
                await may_go_on()
                await act()

        async with anyio.create_task_group() as group:
            self._group = group
            for mean, act in acts:
                group.start_soon(repeat, mean, act)

    def explains(self, error: WorkerError) -> bool:
        """Return whether the worker that an error is about was hit."""
        return any(hit.pid == error.pid for hit in self._hits)

    def explains_request(self, error: BrokenWorkerError, sent: float, retries: int) -> bool:
        """Return whether a request may have lost more than ``retries`` workers to hits.

        Its last worker was hit, and enough others were while it was under way.
        """
        early = sent - NOTICED_WITHIN
        hits = sum(
            hit.at >= early - (self._hang_timeout if hit.stopped else 0.0) for hit in self._hits
        )
        return self.explains(error) and hits > retries

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes that there are, whatever they are doing."""
        return self._template.children()

    # --- the disturbances ----------------------------------------------------------

    async def _kill(self) -> None:
        # Requests of a dead worker run again on another one, which every second time dies too.
        for worker in self._choose(1 + (self._random.random() < 0.5), stopped=False):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                self.done["kills"] += 1
                self._group.start_soon(self._recover)
            await anyio.sleep(self._random.uniform(0, LONGEST_FOLLOW_UP))

    async def _stop(self) -> None:
        for worker in self._choose(1, stopped=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.suspend()
                self.done["stops"] += 1

    def _choose(self, count: int, *, stopped: bool) -> list[psutil.Process]:
        """Choose workers that were not hit before, and remember them."""
        known = {hit.pid for hit in self._hits}
        fresh = [worker for worker in self.workers() if worker.pid not in known]
        chosen = self._random.sample(fresh, min(count, len(fresh)))
        now = time.monotonic()
        self._hits.extend(Hit(worker.pid, now, stopped) for worker in chosen)
        return chosen

    async def _reload(self) -> None:
        self.reloading = True
        try:
            await self._pool.reload()
            self.done["reloads"] += 1
        except WorkerStartError as error:
            if self.explains(error):
                self.done["reloads hit"] += 1
            else:
                self._mistake(f"reload: {error}")
        finally:
            self.reloading = False

    async def _recover(self) -> None:
        began = time.monotonic()
        pool = self._pool
        workers = pool.statistics().workers
        while pool.statistics().ready == workers:
            if time.monotonic() > began + NOTICED_WITHIN:
                self.done["kills of replaced workers"] += 1
                return
            await anyio.sleep(POLL)
        try:
            await pool.wait_ready()
        except WorkerError as error:
            self._mistake(f"recovery: {error}")
        else:
            self.recoveries.append(time.monotonic() - began)

    def _mistake(self, what: str) -> None:
        self.unexplained += 1
        if len(self.mistakes) < _SHOWN:
            self.mistakes.append(what)
