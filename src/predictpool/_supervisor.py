"""Keeps slots filled: start, ready, crash, back-off, stop."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import anyio

from predictpool._devices import Device
from predictpool._dispatcher import Dispatcher
from predictpool._errors import BrokenWorkerError, PoolClosed, WorkerStartError
from predictpool._launcher import End, Launcher, WorkerHandle
from predictpool._scheduler import ErrorFactory
from predictpool._signature import Signature
from predictpool._wire import Frame
from predictpool._worker import Failure, Ready, Start

logger = logging.getLogger("predictpool")

# How long a killed worker's end may take to be noticed.
_END_WAIT = 5.0


class Backoff:
    """How long to wait before the next try to fill a slot, and when to give it up.

    The first restart is immediate; then the delays double, each with a random part so
    that slots which failed together do not start together.
    """

    def __init__(self, *, first: float = 0.25, longest: float = 10.0, tries: int = 6) -> None:
        self._first = first
        self._longest = longest
        self._tries = tries
        self.failures = 0

    def reset(self) -> None:
        """Forget the failures: the worker has answered."""
        self.failures = 0

    def failed(self) -> float | None:
        """Count a failure. Returns the seconds to wait, or None to give up."""
        self.failures += 1
        if self.failures >= self._tries:
            return None
        if self.failures == 1:
            return 0.0
        delay = min(self._longest, self._first * 2.0 ** (self.failures - 2))
        return delay * random.uniform(0.5, 1.0)


class SlotState(Enum):
    """What a slot is doing."""

    EMPTY = "empty"
    STARTING = "starting"
    READY = "ready"
    GIVEN_UP = "given up"


@dataclass(frozen=True)
class Recipe:
    """What all workers of a pool are started with."""

    predictor: bytes
    warmup: bytes | None
    start_timeout: float | None


class Slot:
    """A place for a worker; listens to the worker that fills it."""

    def __init__(self, number: int, device: Device, dispatcher: Dispatcher) -> None:
        self.number = number
        self.device = device
        self.state = SlotState.EMPTY
        self.backoff = Backoff()
        self.handle: WorkerHandle | None = None
        self.last_error = ""
        self._dispatcher = dispatcher
        self._changed = anyio.Event()
        self._ready: Ready | None = None
        self._failure: Failure | None = None
        self._end: End | None = None
        self._pid: int | None = None

    async def fill(self, launcher: Launcher, recipe: Recipe) -> Ready:
        """Start a worker and wait until it is ready.

        Raises:
            WorkerStartError: it failed, or took longer than ``start_timeout``.
        """
        signature = self._dispatcher.signature
        known = signature if isinstance(signature, Signature) else None
        start = Start(recipe.predictor, self.device, recipe.warmup, known)
        self._ready = self._failure = self._end = self._pid = self.handle = None
        self._changed = anyio.Event()
        self.state = SlotState.STARTING
        ready: Ready | None = None
        try:
            with anyio.fail_after(recipe.start_timeout):
                self.handle = await launcher.start(start, self)
                self._pid = self.handle.pid
                await self._until(lambda: self._ready or self._end)
            if self._end is None:
                ready = self._ready
        except TimeoutError:
            raise self._start_error(
                f"was not ready within start_timeout={recipe.start_timeout:g} s"
            ) from None
        except OSError as error:
            raise self._start_error(f"could not be started: {error}") from error
        finally:
            if ready is None:
                await self.empty("failed to start")
        if ready is None:
            raise self._failed_start()
        return ready

    def serve(self, ready: Ready) -> None:
        """Let the worker have requests from now on."""
        assert self.handle is not None
        self.state = SlotState.READY
        self._dispatcher.worker_ready(self.number, self.handle, ready)

    async def until_ended(self) -> End:
        """Wait until the worker is gone."""
        await self._until(lambda: self._end)
        assert self._end is not None
        return self._end

    async def empty(self, why: str) -> None:
        """Kill the worker, if there is one, and wait for its end."""
        if self.handle is not None and self._end is None:
            self.handle.kill(why)
            with anyio.move_on_after(_END_WAIT, shield=True) as scope:
                await self.until_ended()
            if scope.cancelled_caught:
                logger.error("worker %d cannot be killed: left alone", self.handle.pid)
        self.handle = None
        if self.state is not SlotState.GIVEN_UP:
            self.state = SlotState.EMPTY

    # --- what the worker says ------------------------------------------------------

    def ready(self, ready: Ready) -> None:
        """Take note that the worker is ready; see `Listener`."""
        self._ready = ready
        self._changed.set()

    def start_failed(self, failure: Failure) -> None:
        """Take note of why the worker ends."""
        self._failure = failure

    def answered(self, frame: Frame) -> None:
        """Pass on an answer."""
        self.backoff.reset()
        self._dispatcher.answered(self.number, frame)

    def failed(self, batch_id: int, failure: Failure) -> None:
        """Pass on an exception of the model, which is an answer too."""
        self.backoff.reset()
        self._dispatcher.failed(self.number, batch_id, failure)

    def ending(self) -> None:
        """Keep further requests from a worker that cannot run them any more."""
        self._dispatcher.worker_ending(self.number)

    def ended(self, end: End) -> None:
        """Take note of the worker's end; its requests go elsewhere at once."""
        self._end = end
        if self.state is SlotState.READY:
            self.state = SlotState.EMPTY
            pid = self._pid
            self._dispatcher.worker_lost(self.number, lambda: self._broken_error(pid, end))
        self._changed.set()

    # --- inside --------------------------------------------------------------------

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()

    def _failed_start(self) -> WorkerStartError:
        failure = self._failure
        if failure is not None:
            return self._start_error(
                f"could not load its predictor: {failure.type_name}: {failure.text}",
                failure.traceback,
            )
        return self._start_error(f"{self._end} while it started", self._report())

    def _report(self) -> str:
        return self._end.crash_report if self._end is not None else ""

    def _start_error(self, what: str, traceback: str = "") -> WorkerStartError:
        self.last_error = what
        name = f"the worker of slot {self.number}" + (f" (pid {self._pid})" if self._pid else "")
        text = f"{name} {what}" + (f"\n\n{traceback}" if traceback else "")
        return WorkerStartError(text, slot=self.number, pid=self._pid, traceback=traceback)

    def _broken_error(self, pid: int | None, end: End) -> BrokenWorkerError:
        text = f"worker {pid} of slot {self.number} {end} while it ran this request"
        if end.crash_report:
            text += f"\n\n{end.crash_report}"
        return BrokenWorkerError(
            text,
            slot=self.number,
            pid=pid,
            exitcode=end.exitcode,
            signal=end.signal,
            crash_report=end.crash_report,
        )


class Supervisor:
    """Fills the slots of one pool, in the background, for as long as it is open."""

    def __init__(
        self, launcher: Launcher, dispatcher: Dispatcher, devices: list[Device], recipe: Recipe
    ) -> None:
        self.slots = [Slot(number, device, dispatcher) for number, device in enumerate(devices)]
        self.restarts = 0
        self.start_error: WorkerStartError | None = None
        self._launcher = launcher
        self._dispatcher = dispatcher
        self._recipe = recipe
        self._closing = False
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
        try:
            with self._scope:
                try:
                    await self._fill(self.slots[0])
                except WorkerStartError as error:
                    self.start_error = error
                    return
                async with anyio.create_task_group() as group:
                    for slot in self.slots:
                        group.start_soon(self._keep_filled, slot)
        finally:
            if not self._closing:
                # The event loop ends without us, nothing ever started, or no slot is left.
                self.kill(_closed if self.filling else self._no_worker_error)
            self._ended.set()
            self._note_progress()

    async def wait_ready(self, workers: int) -> None:
        """Wait until so many workers are ready.

        Raises:
            WorkerStartError: they cannot be any more.
            PoolClosed: the pool was closed meanwhile.
        """
        while self.ready < workers:
            if self.start_error is not None:
                raise self.start_error
            if self.filling < workers:
                raise self._no_worker_error()
            if self._closing or self._ended.is_set():
                raise PoolClosed("the pool was closed while its workers were awaited")
            if self._progress.is_set():
                self._progress = anyio.Event()
            await self._progress.wait()

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

    # --- inside --------------------------------------------------------------------

    async def _part(self) -> None:
        serving = [slot for slot in self.slots if slot.state is SlotState.READY]
        for slot in serving:
            if slot.handle is not None:
                slot.handle.stop()
        for slot in serving:
            await slot.until_ended()

    async def _fill(self, slot: Slot) -> None:
        ready = await slot.fill(self._launcher, self._recipe)
        if ready.warning:
            logger.warning("slot %d: %s", slot.number, ready.warning)
        slot.serve(ready)
        logger.info(
            "slot %d: worker %d is ready after %.2f s",
            slot.number,
            slot.handle.pid if slot.handle else -1,
            ready.load_seconds,
        )
        self._note_progress()

    async def _keep_filled(self, slot: Slot) -> None:
        while not self._closing:
            try:
                if slot.state is not SlotState.READY:
                    await self._fill(slot)
                end = await slot.until_ended()
            except WorkerStartError as error:
                logger.error("%s", error)  # noqa: TRY400 - its text has the worker's traceback
            else:
                if self._closing:
                    return
                slot.last_error = str(end)
                logger.warning("slot %d: worker %s", slot.number, end)
            delay = slot.backoff.failed()
            if delay is None:
                self._give_up(slot)
                return
            await anyio.sleep(delay)
            self.restarts += 1

    def _give_up(self, slot: Slot) -> None:
        slot.state = SlotState.GIVEN_UP
        logger.error(
            "slot %d is given up after %d failures in a row; the last: %s",
            slot.number,
            slot.backoff.failures,
            slot.last_error,
        )
        self._note_progress()  # and `run` tells all callers once no slot is left

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


def _closed() -> PoolClosed:
    return PoolClosed("the pool was closed before this request was answered")
