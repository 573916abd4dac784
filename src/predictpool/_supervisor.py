"""Keeps slots filled: start, ready, crash, back-off, reload, resize, stop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from predictpool._devices import Device
from predictpool._dispatcher import Dispatcher
from predictpool._errors import PoolClosed, WorkerStartError
from predictpool._launcher import Launcher
from predictpool._scheduler import ErrorFactory
from predictpool._slot import Recipe, Slot, SlotState, Worker
from predictpool._watch import Watcher, not_watchable
from predictpool._worker import Ready
from predictpool.predictors._source import ModelSource

logger = logging.getLogger("predictpool")

# How long a worker that was replaced may take to let go of its model.
_PARTING_SECONDS = 10.0


class Supervisor:
    """Fills the slots of one pool, in the background, for as long as it is open.

    Attributes:
        slots: in the order of their numbers.
        restarts: how many workers were started in place of one that died.
        start_error: why the first worker could not be started, or None.
        source: where newer versions of the model come from that was loaded last, or None.
    """

    def __init__(
        self,
        launcher: Launcher,
        dispatcher: Dispatcher,
        devices: list[Device],
        recipe: Recipe,
        watch: float | None = None,
    ) -> None:
        self.slots = [Slot(number, device, dispatcher) for number, device in enumerate(devices)]
        self.restarts = 0
        self.start_error: WorkerStartError | None = None
        self.source: ModelSource | None = None
        self._launcher = launcher
        self._dispatcher = dispatcher
        self._recipe = recipe
        self._closing = False
        self._changing = anyio.Lock()  # held by a reload or a resize
        self._group: TaskGroup | None = None
        self._watch = watch
        self._watcher = None if watch is None else Watcher(watch, self._sources, self.reload)
        self._progress = anyio.Event()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(slot.state is SlotState.READY for slot in self.slots)

    @property
    def filling(self) -> int:
        """How many slots have not been given up."""
        return sum(slot.state is not SlotState.GIVEN_UP for slot in self.slots)

    async def run(self) -> None:
        """Fill the first slot, then the others; refill them until `stop`.

        The first starts alone, so that a wrong path is one clear error and not one for
        each worker.
        """
        mistaken = False
        try:
            with self._scope:
                try:
                    await self._fill(self.slots[0])
                except WorkerStartError as error:
                    self.start_error = error
                    return
                async with anyio.create_task_group() as self._group:
                    for slot in self.slots:
                        self._keep(slot)
                    if self._watcher is not None:
                        self._group.start_soon(self._watcher.run)
        except Exception:
            mistaken = True  # of ours: whoever guards this work ends all and says so
            raise
        finally:
            # The event loop ends without us, or nothing ever started.
            if not (self._closing or mistaken):
                self.kill(_closed)
            self._ended.set()
            self._note_progress()

    async def wait_ready(self, workers: int | None) -> None:
        """Wait until so many workers are ready; with None, all that there are meant to be.

        Raises:
            WorkerStartError: they cannot be any more.
            ValueError: the pool is not that large, or not any more.
            PoolClosed: the pool was closed meanwhile.
        """
        while self.ready < (wanted := len(self.slots) if workers is None else workers):
            if self.start_error is not None:
                raise self.start_error
            if wanted > len(self.slots):
                raise ValueError(
                    f"workers is {wanted}, but the pool has {len(self.slots)}: so many will "
                    "never be ready"
                )
            if self.filling < wanted:
                raise self._no_worker_error()
            if self._closing or self._ended.is_set():
                raise PoolClosed("the pool was closed while its workers were awaited")
            if self._progress.is_set():
                self._progress = anyio.Event()
            await self._progress.wait()

    async def reload(self, recipe: Recipe | None = None) -> None:
        """Put a freshly loaded worker into every slot, one after another.

        The old worker of a slot goes on until the new one is ready, and then until it has
        answered. A slot that was given up is filled again.

        Args:
            recipe: what the new workers load; None for what the last ones loaded.

        Raises:
            WorkerStartError: a new worker failed; from its slot on, the old ones stay.
            ValueError: the new predictor does not fit the pool; as above.
            PoolClosed: the pool was closed meanwhile.
        """
        async with self._changing:
            self._check_open()
            recipe = recipe or replace(self._recipe)  # another one: its model may differ
            for slot in self.slots:
                try:
                    old = await self._replace(slot, recipe)
                except WorkerStartError as error:
                    if self._closing:
                        raise _closed() from error
                    raise
                self._recipe = recipe
                if old is not None:
                    await _part_with(old)

    async def resize(self, workers: int, plan: Callable[[], list[Device]]) -> None:
        """Have so many slots.

        Args:
            plan: returns a device for each; asked only where more are needed than there are.

        Raises:
            Exception: what ``plan`` raises.
            WorkerStartError: a new worker failed; those that are ready stay.
            PoolClosed: the pool was closed meanwhile.
        """
        async with self._changing:
            self._check_open()
            if workers > len(self.slots):
                await self._grow(plan())
            else:
                await self._shrink(workers)

    def check_source(self, source: ModelSource | None) -> None:
        """Raise ValueError if there is nothing to watch and should be."""
        if self._watch is not None and source is None:
            raise not_watchable(self._watch)

    def stop_watching(self) -> None:
        """Begin no reload by ourselves any more, and end one that goes on."""
        if self._watcher is not None:
            self._watcher.stop()

    async def stop(self, deadline: float) -> None:
        """Have workers let go of their models and end; kill them after the deadline.

        Args:
            deadline: in the event loop's time, as of ``anyio.current_time()``.
        """
        self._closing = True
        self._note_progress()
        try:
            with anyio.CancelScope(deadline=deadline):
                await self._part()
            self._scope.cancel()
            await self._ended.wait()
            self._dispatcher.fail_all(_closed)
            self._dispatcher.stop_timer()
            await self._launcher.aclose()
        except BaseException:
            self.kill(_closed)
            raise

    def kill(self, error: ErrorFactory) -> None:
        """End all workers now, without waiting, and give every caller an error."""
        self._closing = True
        self._dispatcher.stop_timer()
        try:
            # First, so that no caller is told of the end of a worker that we kill.
            self._dispatcher.fail_all(error)
        finally:
            self._launcher.kill()

    def stop_filling(self) -> None:
        """Have `run` end, whatever it waits for; in the event loop only."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and it has ended
            self._scope.cancel()

    # --- inside --------------------------------------------------------------------

    async def _part(self) -> None:
        serving = [slot.worker for slot in self.slots if slot.worker is not None]
        for worker in serving:
            worker.stop()
        for worker in serving:
            await worker.until_ended()

    def _keep(self, slot: Slot) -> None:
        """Have a slot kept filled, in the background."""
        if self._group is not None and not self._closing:
            slot.keeping = anyio.CancelScope()
            self._group.start_soon(self._keep_filled, slot, slot.keeping)

    async def _keep_filled(self, slot: Slot, scope: anyio.CancelScope) -> None:
        with scope:
            await self._refill(slot)

    async def _refill(self, slot: Slot) -> None:
        while not self._closing:
            if slot.state is SlotState.GIVEN_UP:
                await slot.until_filled()
            try:
                await self._fill(slot)
            except WorkerStartError as error:
                if not self._closing:  # or else it was we who ended it
                    logger.error("%s", error)  # noqa: TRY400 - its text has the worker's traceback
            else:
                await self._until_lost(slot)
            if not self._closing:
                await self._back_off(slot)

    async def _fill(self, slot: Slot) -> None:
        async with slot.filling:
            if slot.worker is None:
                worker = Worker(slot)
                ready = await worker.start(self._launcher, self._recipe)
                self._let_serve(slot, worker, ready)

    def _let_serve(self, slot: Slot, worker: Worker, ready: Ready) -> None:
        if ready.warning:
            logger.warning("slot %d: %s", slot.number, ready.warning)
        slot.take(worker, ready)
        self.source = ready.source
        logger.info(
            "slot %d: worker %d is ready after %.2f s",
            slot.number,
            worker.pid,
            ready.load_seconds,
        )
        self._note_progress()

    async def _until_lost(self, slot: Slot) -> None:
        """Wait until a slot has no worker: one that was replaced is no loss."""
        while slot.worker is not None:
            await slot.until_lost()
        if not self._closing:
            logger.warning("slot %d: worker %s", slot.number, slot.last_error)

    async def _back_off(self, slot: Slot) -> None:
        delay = slot.backoff.failed()
        if delay is None:
            self._give_up(slot)
        else:
            await anyio.sleep(delay)
            self.restarts += 1

    async def _replace(self, slot: Slot, recipe: Recipe) -> Worker | None:
        """Fill a slot with a new worker, and return the old one."""
        async with slot.filling:
            worker = Worker(slot)
            ready = await worker.start(self._launcher, recipe)
            try:
                self._dispatcher.check_signature(ready)
                self.check_source(ready.source)
                await self._dispatcher.retire(slot.number)
                self._check_still_wanted(worker)
            except BaseException:
                self._dispatcher.unretire(slot.number)
                await worker.kill("was not needed after all")
                raise
            # Nothing runs in the slot now, and nothing can begin before the next await.
            old = slot.worker
            slot.backoff.reset()
            self._let_serve(slot, worker, ready)
            return old

    async def _grow(self, devices: list[Device]) -> None:
        taken = {slot.number for slot in self.slots}
        free = [number for number in range(len(devices)) if number not in taken]
        failures: list[WorkerStartError] = []
        async with anyio.create_task_group() as group:
            for number in free[: len(devices) - len(self.slots)]:
                group.start_soon(self._add, number, devices[number], failures)
        self._check_open()
        if failures:
            raise failures[0]

    async def _add(self, number: int, device: Device, failures: list[WorkerStartError]) -> None:
        """Add a slot as soon as it has a worker."""
        slot = Slot(number, device, self._dispatcher)
        worker = Worker(slot)
        try:
            ready = await worker.start(self._launcher, self._recipe)
        except WorkerStartError as error:
            failures.append(error)
            return
        if self._closing:
            await worker.kill("was not needed after all")
            return
        self.slots.append(slot)
        self.slots.sort(key=lambda slot: slot.number)
        self._let_serve(slot, worker, ready)
        self._keep(slot)

    async def _shrink(self, workers: int) -> None:
        # Those that were given up go first: what stays is to serve.
        slots = sorted(self.slots, key=lambda slot: slot.state is SlotState.GIVEN_UP)
        async with anyio.create_task_group() as group:
            for slot in slots[workers:]:
                group.start_soon(self._remove, slot)
        self._check_open()

    async def _remove(self, slot: Slot) -> None:
        """Have a slot's worker finish what it runs, and do away with both."""
        slot.keeping.cancel()
        try:
            async with slot.filling:  # whoever starts a worker for it has given way
                await self._dispatcher.retire(slot.number)
                # Nothing runs in the slot now, and nothing can begin before the next await.
                self.slots.remove(slot)
                worker = slot.vacate()
        except BaseException:
            self._dispatcher.unretire(slot.number)
            self._keep(slot)
            raise
        logger.info("slot %d is done away with", slot.number)
        self._note_progress()
        if worker is not None:
            await _part_with(worker)

    def _sources(self) -> list[ModelSource]:
        """Return the source of what was loaded last, and those of all workers."""
        workers = [slot.worker for slot in self.slots if slot.worker is not None]
        sources = [self.source, *(worker.source for worker in workers)]
        return [] if self._closing else [source for source in sources if source is not None]

    def _check_open(self) -> None:
        if self._closing:
            raise _closed()

    def _check_still_wanted(self, worker: Worker) -> None:
        self._check_open()
        if worker.end is not None:
            raise worker.start_failure()

    def _give_up(self, slot: Slot) -> None:
        slot.give_up()
        logger.error(
            "slot %d is given up after %d failures in a row; the last: %s",
            slot.number,
            slot.backoff.failures,
            slot.last_error,
        )
        self._note_progress()
        if not self.filling:
            self._dispatcher.fail_all(self._no_worker_error)

    def _no_worker_error(self) -> WorkerStartError:
        given_up = [slot for slot in self.slots if slot.state is SlotState.GIVEN_UP]
        last = given_up[-1]
        return WorkerStartError(
            f"{len(given_up)} of {len(self.slots)} slots were given up after "
            f"{last.backoff.failures} failures in a row; the last worker {last.last_error}",
            slot=last.number,
            pid=None,
        )

    def _note_progress(self) -> None:
        self._progress.set()


async def _part_with(worker: Worker) -> None:
    """Have a worker that runs nothing any more let go of its model and end."""
    worker.stop()
    try:
        with anyio.move_on_after(_PARTING_SECONDS):
            await worker.until_ended()
    finally:
        await worker.kill("did not end when its slot had no use for it any more")


def _closed() -> PoolClosed:
    return PoolClosed("the pool was closed before this request was answered")
