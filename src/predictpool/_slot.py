"""A slot and the workers that fill it, one after another."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import anyio

from predictpool._devices import Device
from predictpool._dispatcher import Dispatcher
from predictpool._errors import BrokenWorkerError, WorkerStartError
from predictpool._features._signature import Signature
from predictpool._launcher import End, Launcher, WorkerHandle
from predictpool._statistics import WorkerInfo
from predictpool._wire import Frame
from predictpool._worker import Failure, Ready, Start
from predictpool.predictors._source import ModelSource

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


@dataclass(frozen=True, eq=False)
class Recipe:
    """What workers are started with; one for each time that the pool loads a model."""

    predictor: bytes
    warmup: bytes | None
    start_timeout: float | None


class SlotState(Enum):
    """What a slot is doing."""

    EMPTY = "empty"
    READY = "ready"
    GIVEN_UP = "given up"


class Slot:
    """A place for a worker.

    Attributes:
        worker: the one whose answers count, or None.
        filling: held by whoever starts a worker for this slot.
        keeping: what ends the work of keeping it filled.
        last_error: how the last worker failed, in words.
    """

    def __init__(self, number: int, device: Device, dispatcher: Dispatcher) -> None:
        self.number = number
        self.device = device
        self.dispatcher = dispatcher
        self.state = SlotState.EMPTY
        self.worker: Worker | None = None
        self.filling = anyio.Lock()
        self.keeping = anyio.CancelScope()
        self.backoff = Backoff()
        self.last_error = ""
        self._filled = anyio.Event()
        self._lost = anyio.Event()

    def take(self, worker: Worker, ready: Ready) -> None:
        """Let a worker that is ready have the requests from now on."""
        assert worker.handle is not None
        self.worker, self.state = worker, SlotState.READY
        self._filled.set()
        if self.dispatcher.teller is not None:
            self.dispatcher.teller.worker_ready(worker.info())
        self.dispatcher.worker_ready(self.number, worker.handle, ready, worker.recipe)

    def lose(self, worker: Worker, end: End) -> None:
        """Take note of a worker's end; its requests go elsewhere at once."""
        if self.worker is worker:
            self.worker, self.state = None, SlotState.EMPTY
            self.last_error = str(end)
            self._filled = anyio.Event()
            self._lost.set()
            self._lost = anyio.Event()
            self._tell_lost(worker, end)
            self.dispatcher.worker_lost(self.number, lambda: worker.broken_error(end))

    def _tell_lost(self, worker: Worker, end: End) -> None:
        dispatcher = self.dispatcher
        # What ends as the pool wants it, in good order or with all requests, is no loss.
        if dispatcher.teller is None or end.goodbye or dispatcher.broken:
            return
        assert worker.pid is not None
        dispatcher.teller.worker_lost(self.number, worker.pid, end)

    def vacate(self) -> Worker | None:
        """Have no worker any more. Returns the last one, which runs nothing."""
        worker, self.worker, self.state = self.worker, None, SlotState.EMPTY
        self.dispatcher.forget(self.number)
        return worker

    def give_up(self) -> None:
        """Start no more workers, until somebody else does."""
        self.state = SlotState.GIVEN_UP

    async def until_filled(self) -> None:
        """Wait until there is a worker."""
        await self._filled.wait()

    async def until_lost(self) -> None:
        """Wait until a worker ends that has not been replaced."""
        await self._lost.wait()


class Worker:
    """One worker process, from its start to its end; listens to what it says.

    Attributes:
        handle, pid: set as soon as the process is there.
        recipe: what it was started with.
        end: how it ended, or None.
    """

    def __init__(self, slot: Slot) -> None:
        self.handle: WorkerHandle | None = None
        self.recipe: Recipe | None = None
        self.end: End | None = None
        self.pid: int | None = None
        self._slot = slot
        self._changed = anyio.Event()
        self._ready: Ready | None = None
        self._failure: Failure | None = None
        self._waits_for = ""

    async def start(self, launcher: Launcher, recipe: Recipe) -> Ready:
        """Start the process and wait until it is ready.

        Raises:
            WorkerStartError: it failed, or took longer than ``start_timeout``.
        """
        slot, self.recipe = self._slot, recipe
        signature = slot.dispatcher.signature
        known = signature if isinstance(signature, Signature) else None
        start = Start(recipe.predictor, slot.device, recipe.warmup, known)
        ready: Ready | None = None
        try:
            with anyio.fail_after(recipe.start_timeout):
                self.handle = await launcher.start(start, self)
                self.pid = self.handle.pid
                await self._until(lambda: self._ready or self.end)
            if self.end is None:
                ready = self._ready
        except TimeoutError:
            waiting = f": it waits for {self._waits_for}" if self._waits_for else ""
            raise self._start_error(
                f"was not ready within start_timeout={recipe.start_timeout:g} s{waiting}"
            ) from None
        except OSError as error:
            raise self._start_error(f"could not be started: {error}") from error
        finally:
            if ready is None:
                await self.kill("failed to start")
        if ready is None:
            raise self.start_failure()
        return ready

    def info(self) -> WorkerInfo:
        """Return what is known of it, once it is ready."""
        ready, slot = self._ready, self._slot
        assert ready is not None
        assert self.pid is not None
        return WorkerInfo(
            slot=slot.number,
            pid=self.pid,
            device=slot.device,
            method=ready.method,
            row_wise=ready.row_wise,
            load_seconds=ready.load_seconds,
            warning=ready.warning,
        )

    @property
    def source(self) -> ModelSource | None:
        """Where newer versions of its model come from, as far as it has said so."""
        return None if self._ready is None else self._ready.source

    def stop(self) -> None:
        """Ask it to let go of the model and end."""
        if self.handle is not None and self.end is None:
            self.handle.stop()

    async def until_ended(self) -> End:
        """Wait until it is gone."""
        await self._until(lambda: self.end)
        assert self.end is not None
        return self.end

    async def kill(self, why: str) -> None:
        """End it, if it has not ended, and wait for that."""
        if self.handle is not None and self.end is None:
            self.handle.kill(why)
            with anyio.move_on_after(_END_WAIT, shield=True) as scope:
                await self.until_ended()
            if scope.cancelled_caught:
                logger.error("worker %d cannot be killed: left alone", self.handle.pid)

    # --- what it says --------------------------------------------------------------

    def waits_for(self, what: str) -> None:
        """Take note of what keeps it from starting; see `Listener`."""
        self._waits_for = what

    def ready(self, ready: Ready) -> None:
        """Take note that it is ready; see `Listener`."""
        self._ready = ready
        self._changed.set()

    def start_failed(self, failure: Failure) -> None:
        """Take note of why it ends."""
        self._failure = failure

    def answered(self, frame: Frame) -> None:
        """Pass on an answer."""
        self._slot.backoff.reset()
        self._slot.dispatcher.answered(self._slot.number, frame)

    def failed(self, batch_id: int, failure: Failure) -> None:
        """Pass on an exception of the model, which is an answer too."""
        self._slot.backoff.reset()
        self._slot.dispatcher.failed(self._slot.number, batch_id, failure)

    def ending(self) -> None:
        """Keep further requests from a worker that cannot run them any more."""
        if self._slot.worker is self:
            self._slot.dispatcher.worker_ending(self._slot.number)

    def ended(self, end: End) -> None:
        """Take note of its end."""
        self.end = end
        self._slot.lose(self, end)
        self._changed.set()

    # --- errors --------------------------------------------------------------------

    def start_failure(self) -> WorkerStartError:
        """Return why it is of no use, where it ended before it had requests."""
        failure = self._failure
        if failure is not None:
            return self._start_error(
                f"could not load its predictor: {failure.type_name}: {failure.text}",
                failure.traceback,
            )
        report = self.end.crash_report if self.end is not None else ""
        return self._start_error(f"{self.end} while it started", report)

    def broken_error(self, end: End) -> BrokenWorkerError:
        """Return what the callers of its requests are told."""
        text = f"worker {self.pid} of slot {self._slot.number} {end} while it ran this request"
        if end.crash_report:
            text += f"\n\n{end.crash_report}"
        return BrokenWorkerError(
            text,
            slot=self._slot.number,
            pid=self.pid,
            exitcode=end.exitcode,
            signal=end.signal,
            crash_report=end.crash_report,
            cause=end.cause,
        )

    def _start_error(self, what: str, traceback: str = "") -> WorkerStartError:
        slot = self._slot
        slot.last_error = what
        name = f"the worker of slot {slot.number}" + (f" (pid {self.pid})" if self.pid else "")
        text = f"{name} {what}" + (f"\n\n{traceback}" if traceback else "")
        return WorkerStartError(text, slot=slot.number, pid=self.pid, traceback=traceback)

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()
