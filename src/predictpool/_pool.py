"""The pool that users hold."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, cast

import anyio
import anyio.to_thread
import cloudpickle

from predictpool._backend import Backend, Waiter, current_backend
from predictpool._devices import Device, parse_devices
from predictpool._dispatcher import Call, Dispatcher, Failed
from predictpool._errors import PoolClosed, PredictorPoolError
from predictpool._features._signature import Signature
from predictpool._hooks import Hooks, Teller, checked_hooks
from predictpool._launcher import Launcher
from predictpool._local_launcher import LocalLauncher
from predictpool._routing import Routes, mixed
from predictpool._scheduler import Scheduler
from predictpool._slot import Recipe
from predictpool._statistics import PoolStatistics, WorkerInfo
from predictpool._supervisor import Supervisor
from predictpool._worker import LOADING
from predictpool.predictors._base import Predictor

OutputsT = TypeVar("OutputsT")

PREDICTOR_NAMES: Final = ("load", "predict", "close", "preload", "row_wise", "signature")


class _PoolsOwn:
    def __repr__(self) -> str:
        return "the pool's"


_POOLS_OWN: Final = _PoolsOwn()


class _Phase(Enum):
    NEW = "not opened"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class PredictorPool(Generic[OutputsT]):
    """Worker processes, each with its own loaded predictor, behind one awaitable call.

    ::

        async with PredictorPool(EstimatorPredictor(build_estimator), workers=2) as pool:
            outputs = await pool.predict({"age": [39, 52]})

    Constructing a pool does nothing; ``async with``, or `open` and `aclose`, start and
    end it. A pool belongs to the event loop that opened it (asyncio, uvloop or trio) and
    is opened once.

    Args:
        predictor: what every worker loads.
        workers: how many workers; None for one for each core that this process may use, or
            for each GPU where there are any, or as many as ``devices`` lists.
        devices: where the workers are: ``"auto"``, ``"cpu"``, ``"cpu:0-3"``, ``"gpu:0"``,
            ``"gpu:GPU-<uuid>"``, ``"gpu:MIG-<uuid>"``; one for all of them, or a list with one
            for each. ``"auto"`` is the GPUs in turn, where there are any, or else ``"cpu"``, which
            is one core for each worker, in turn. GPUs are numbered as in ``nvidia-smi``, each
            part of a divided one counting, or within the CUDA_VISIBLE_DEVICES of this process.
            `plan` says what comes of it.
            Where they are not alike, each request goes to the worker expected to answer it first.
        max_batch_size: at most so many rows run in one call of the model. A request with
            more rows runs alone.
        batch_timeout: seconds for which a batch that is not full may be held, counted from its
            oldest request, for others to come and fill it. With 0.0 nobody waits while a worker
            is idle, but for the end of the event loop's turn: under load batches grow by
            themselves, from what comes while all workers are busy. Requests whose own timeout
            is not longer are not held.
        timeout: seconds that a request may take, waiting and running together; each call
            can have its own.
        max_waiting: how many requests may wait; one more is refused at once with
            `TooManyRequests`.
        retries: how many times a request runs again after its worker died.
        start_timeout: seconds that a worker may take to start, load and warm up.
        hang_timeout: seconds that a batch may run; its worker is killed after that.
        grace_period: seconds that requests, and then workers, get to finish in `aclose`.
        watch: seconds from one look for a newer version of the model to the next: where there
            is one the pool reloads by itself, see `reload`. It must have been there unchanged
            for one of these times, so a half-written one is never taken (and one that is
            followed sooner by the next is passed over); if it fails the log says why, and
            the running model goes on.
        warmup: features that every worker runs before it is ready. Without them a
            predictor whose signature is known runs one row of zeros and empty text.
        launcher: where the workers live; processes on this machine by default, see also
            `RayLauncher`.
        name: what the pool is called in its ``repr`` and by hooks.
        hooks: who is told what happens, such as ``[PrometheusHooks()]``; see `Hooks`.

    For all limits in seconds and for ``max_waiting`` None means no limit; ``watch=None``
    means that nobody looks.

    Raises:
        TypeError: ``predictor`` is no predictor, or an option has the wrong type.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        predictor: Predictor[OutputsT],
        *,
        workers: int | None = None,
        devices: str | Sequence[str] = "auto",
        max_batch_size: int = 64,
        batch_timeout: float = 0.0,
        timeout: float | None = 30.0,
        max_waiting: int | None = 1024,
        retries: int = 1,
        start_timeout: float | None = 120.0,
        hang_timeout: float | None = 60.0,
        grace_period: float | None = 10.0,
        watch: float | None = None,
        warmup: Any = None,
        launcher: Launcher | None = None,
        name: str = "",
        hooks: Sequence[Hooks] = (),
    ) -> None:
        _check_predictor(predictor)
        _check_count("workers", workers, 1, optional=True)
        wishes = parse_devices(devices, workers)
        _check_count("max_batch_size", max_batch_size, 1)
        _check_count("max_waiting", max_waiting, 0, optional=True)
        _check_count("retries", retries, 0)
        _check_seconds("batch_timeout", batch_timeout, optional=False)
        for option, limit in (
            ("timeout", timeout),
            ("start_timeout", start_timeout),
            ("hang_timeout", hang_timeout),
            ("grace_period", grace_period),
            ("watch", watch),
        ):
            _check_seconds(option, limit)
        if watch == 0:
            raise ValueError("watch is 0, expected more than 0 seconds, or None")
        if timeout is not None and batch_timeout and batch_timeout >= timeout:
            raise ValueError(
                f"batch_timeout is {batch_timeout} and timeout is {timeout}: a batch can be held "
                "only for less than the time that its requests have"
            )
        _check_launcher(launcher)
        if not isinstance(name, str):
            raise TypeError(f"name is {name!r}, expected text")
        told = checked_hooks(hooks)
        self._name = name
        self._phase = _Phase.NEW
        self._predictor = predictor
        self._workers = len(wishes) if isinstance(wishes, tuple) else workers
        self._wishes = wishes
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._grace_period = grace_period
        self._watch = watch
        self._warmup = warmup
        self._launcher = self._launcher_for(launcher)
        self._max_batch_size = max_batch_size
        self._scheduler = Scheduler(
            max_batch_size=max_batch_size,
            max_waiting=math.inf if max_waiting is None else max_waiting,
            retries=retries,
            hang_timeout=math.inf if hang_timeout is None else hang_timeout,
            batch_timeout=batch_timeout,
        )
        self._teller = Teller(told, name) if told else None
        self._backend: Backend | None = None
        self._dispatcher: Dispatcher | None = None
        self._supervisor: Supervisor | None = None
        self._closed = anyio.Event()

    # --- opening and closing -------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Start the workers, and return when the first one is ready.

        Raises:
            WorkerStartError: the first worker could not load or warm up the predictor;
                the worker's traceback is in it.
            ValueError: ``devices`` has what is not there, or ``watch`` is given, and the
                predictor does not say where its model comes from.
            RuntimeError: the pool was opened before; or a worker opens one while it loads its
                predictor, as a module does that has no `__main__` guard.
            OSError: this system lacks what the processes need.
            ModuleNotFoundError: ``devices`` has a GPU, and nvidia-ml-py is not installed.
        """
        self._check_new()
        if LOADING.is_set():
            raise RuntimeError(
                "a worker that loads its predictor opens a pool itself: the predictor's module "
                "does so whenever it is imported. Put what the module does as a program "
                'under `if __name__ == "__main__":`'
            )
        recipe = self._recipe(self._predictor)
        backend = current_backend(_weakly(self))
        devices = await self._planned()
        self._launcher.bind(backend, tuple(self._predictor.preload), devices)
        if mixed(devices):
            self._scheduler.routes = Routes(self._max_batch_size)
        self._phase = _Phase.OPENING
        self._backend = backend
        self._dispatcher = Dispatcher(self._scheduler, backend, teller=self._teller)
        self._dispatcher.signature = self._predictor.signature
        self._supervisor = Supervisor(
            self._launcher, self._dispatcher, devices, recipe, self._watch
        )
        if self._teller is not None:
            self._teller.pool_opened(_weak_statistics(self))
        backend.spawn(self._supervisor.run, repr(self))
        try:
            await self._supervisor.wait_ready(1)
            self._supervisor.check_source(self._supervisor.source)
        except BaseException:
            if self._phase is _Phase.OPENING:
                await self._end(-math.inf)
            raise
        if self._phase is not _Phase.OPENING:
            raise PoolClosed("the pool was closed while it was opening")
        self._phase = _Phase.OPEN

    def plan(self) -> tuple[Device, ...]:
        """Return where the workers go, or are, in the order of the slots; it starts no worker.

        The first call before `open` may look for GPUs, which can take a second; with a
        `RayLauncher` and without ``workers`` it looks into the cluster, which may have to be begun.

        Raises:
            ValueError, OSError, ModuleNotFoundError: as `open`.
        """
        if self._supervisor is not None:
            return tuple(slot.device for slot in self._supervisor.slots)
        return tuple(self._launcher.plan(self._wishes, self._workers))

    async def aclose(self) -> None:
        """Finish what was asked for, then end the workers.

        New requests are refused from now on. Those that wait or run have
        ``grace_period`` seconds to be answered, and workers what is left of it to let go
        of their models; then they are killed. Cancelled, it kills at once. Closing a
        pool that was never opened, or again, does nothing; from several places at once,
        all wait for the same end. A pool that is still opening ends at once, and `open`
        raises `PoolClosed`.
        """
        if self._phase is _Phase.NEW:
            self._phase = _Phase.CLOSED
        if self._phase is _Phase.CLOSED:
            return
        self._check_loop()
        if self._phase is _Phase.CLOSING:
            await self._closed.wait()
        elif self._phase is _Phase.OPENING:
            await self._end(-math.inf)
        else:
            grace = math.inf if self._grace_period is None else self._grace_period
            await self._end(anyio.current_time() + grace)

    async def _end(self, deadline: float) -> None:
        assert self._supervisor is not None
        assert self._dispatcher is not None
        self._phase = _Phase.CLOSING
        self._supervisor.stop_watching()
        try:
            with anyio.CancelScope(deadline=deadline):
                await self._dispatcher.drained()
            await self._supervisor.stop(deadline)
        finally:
            self._supervisor.kill(_closed_error)
            self._supervisor.stop_filling()
            self._phase = _Phase.CLOSED
            self._closed.set()
            if self._teller is not None:
                self._teller.pool_closed()

    async def wait_ready(self, workers: int | None = None) -> None:
        """Wait until so many workers are ready, all of them by default.

        Raises:
            WorkerStartError: so many will not be ready any more.
            ValueError: the pool is smaller than that.
            PoolClosed: the pool is not open.
        """
        supervisor = self._open_supervisor()
        _check_count("workers", workers, 0, optional=True)
        await supervisor.wait_ready(workers)

    async def reload(self, predictor: Predictor[OutputsT] | None = None) -> None:
        """Load the model anew in every slot, one after another, while the pool serves on.

        A new worker loads and warms up beside the old one, which goes on answering until
        then; no request is lost or refused for it. Once this has returned every answer is
        the new model's. Slots that were given up are filled again, so this also brings
        back a pool that has no worker left.

        Args:
            predictor: what to load from now on; by default what the pool has loaded so
                far, which finds the newest checkpoint of an estimator.

        Raises:
            WorkerStartError: a new worker could not load or warm up; its slot and those
                behind it keep the model they have.
            ValueError: the new predictor's signature is not the pool's, or the pool is to
                ``watch`` and it does not say where its model comes from.
            PoolClosed: the pool is not open, or was closed meanwhile.
        """
        supervisor = self._open_supervisor()
        if predictor is not None:
            _check_predictor(predictor)
        await supervisor.reload(None if predictor is None else self._recipe(predictor))

    async def resize(self, workers: int) -> None:
        """Have more or fewer workers, while the pool serves on.

        New workers take the next cores in turn, and this returns when they are ready. Those
        that are too many, the ones in the highest slots, get nothing new, finish what they
        run and end. Reloads and resizes that overlap are made one after the other; cancelled,
        the pool stays as large as it is by then.

        Args:
            workers: how many from now on, at least one.

        Raises:
            WorkerStartError: a new worker could not load or warm up. Those that are ready
                stay: `statistics` has the number that was reached.
            ValueError: ``devices`` lists fewer.
            PoolClosed: the pool is not open, or was closed meanwhile.
        """
        supervisor = self._open_supervisor()
        _check_count("workers", workers, 1)
        await supervisor.resize(workers, lambda: self._launcher.plan(self._wishes, workers))

    # --- predicting ----------------------------------------------------------------

    async def predict(
        self, features: Any, *, timeout: float | _PoolsOwn | None = _POOLS_OWN
    ) -> OutputsT:
        """Predict for one or more rows.

        Args:
            features: a mapping of name to array-like, or one array-like, as the model
                takes it; the first axis is the row. Arrays beyond 64 KB must not be
                changed until this returns.
            timeout: seconds, waiting and running together; None for no limit.

        Returns:
            what the predictor returns for these rows, the first axis the same rows in
            the same order.

        Raises:
            InvalidFeatures: the features do not fit the signature.
            TooManyRequests: ``max_waiting`` requests are waiting.
            PoolTimeout: there was no answer in time.
            BrokenWorkerError: the request's workers died more than ``retries`` times.
            PredictionError: the model raised an exception whose type is not known here;
                an exception of a known type is raised as it is.
            PoolClosed: the pool is not open, or was closed meanwhile.
        """
        outputs: OutputsT = await self._outcome(*self._submit(features, False, timeout))
        return outputs

    async def predict_one(
        self, example: Any, *, timeout: float | _PoolsOwn | None = _POOLS_OWN
    ) -> OutputsT:
        """Predict for one example without the row axis; the outputs have none either.

        Args, errors: as `predict`.
        """
        outputs: OutputsT = await self._outcome(*self._submit(example, True, timeout))
        return outputs

    async def map(
        self,
        batches: Iterable[Any] | AsyncIterable[Any],
        *,
        timeout: float | _PoolsOwn | None = _POOLS_OWN,
    ) -> AsyncGenerator[OutputsT, None]:
        """Predict for many batches of rows, and yield the outputs in order.

        At most ``2 × workers`` requests are under way, fewer where the queue is full, so
        that an endless iterable needs no more memory than a short one. The first error is
        raised in its place; what was under way behind it is cancelled.

        Args:
            batches: yields features as for `predict`.
            timeout: seconds for each request.
        """
        slots, dispatcher = self._open_supervisor().slots, self._dispatcher
        assert dispatcher is not None
        pending: deque[tuple[Call, Waiter]] = deque()
        error: Exception | None = None
        try:
            async with aclosing(_iterate(batches)) as source:
                async for features, broken in source:
                    while pending and (len(pending) >= 2 * len(slots) or not dispatcher.has_room()):
                        yield cast(OutputsT, await self._outcome(*pending.popleft()))
                    error = broken or self._try_submit(features, timeout, pending)
                    if error is not None:
                        break
            while pending:
                yield cast(OutputsT, await self._outcome(*pending.popleft()))
            if error is not None:
                raise error
        finally:
            for call, _ in pending:
                self._forget(call)

    @property
    def signature(self) -> Signature | None:
        """What the pool takes, as far as it is known.

        None until a worker or the first answered request has told it, and where the
        predictor takes whatever it is given.
        """
        source = self._dispatcher.signature if self._dispatcher else self._predictor.signature
        return source if isinstance(source, Signature) else None

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the workers that are ready, in the order of their slots; none once closed."""
        if self._supervisor is None:
            return ()
        serving = (slot.worker for slot in self._supervisor.slots)
        return tuple(worker.info() for worker in serving if worker is not None)

    def statistics(self) -> PoolStatistics:
        """Return what the pool has done so far, and what it is doing."""
        counters, supervisor = self._scheduler.counters, self._supervisor
        return PoolStatistics(
            workers=len(supervisor.slots) if supervisor else self._workers or 0,
            ready=supervisor.ready if supervisor else 0,
            restarts=supervisor.restarts if supervisor else 0,
            submitted=counters.submitted,
            answered=counters.answered,
            failed=counters.failed,
            cancelled=counters.cancelled,
            timed_out=counters.timed_out,
            refused=counters.refused,
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            rows=counters.rows,
            batches=counters.batches,
            waiting_seconds=counters.waiting_seconds,
            running_seconds=counters.running_seconds,
        )

    def __repr__(self) -> str:
        kind, name = type(self).__name__, f" {self._name!r}" if self._name else ""
        if self._phase in (_Phase.NEW, _Phase.CLOSED):
            return f"<{kind}{name} {self._phase.value}>"
        now = self.statistics()
        return (
            f"<{kind}{name} {self._phase.value}, {now.ready}/{now.workers} workers ready, "
            f"{now.waiting} waiting, {now.running} running>"
        )

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_phase", _Phase.NEW) in (_Phase.OPENING, _Phase.OPEN):
            _warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            if self._supervisor is not None:
                self._supervisor.kill(_closed_error)

    # --- inside --------------------------------------------------------------------

    def _launcher_for(self, given: Launcher | None) -> Launcher:
        """Return where the workers live."""
        return LocalLauncher() if given is None else given

    def _check_new(self) -> None:
        if self._phase is not _Phase.NEW:
            raise RuntimeError(
                f"this pool is {self._phase.value}; a pool is opened once: make another one"
            )

    async def _planned(self) -> list[Device]:
        launcher, wishes, workers = self._launcher, self._wishes, self._workers
        if not launcher.plan_blocks(wishes):
            return launcher.plan(wishes, workers)
        # It looks for what takes long to find; whoever does not wait for that leaves it behind.
        plan = launcher.plan
        devices = await anyio.to_thread.run_sync(plan, wishes, workers, abandon_on_cancel=True)
        if self._phase is _Phase.CLOSED:
            raise PoolClosed("the pool was closed while it was opening")
        self._check_new()
        # What another thread may use is not what this one may: once more, if it is quick by now.
        return devices if launcher.plan_blocks(wishes) else plan(wishes, workers)

    def _submit(
        self, features: Any, one: bool, timeout: float | _PoolsOwn | None
    ) -> tuple[Call, Waiter]:
        dispatcher = self._dispatcher
        if self._phase is not _Phase.OPEN or dispatcher is None:
            raise self._not_open()
        self._check_loop()
        if isinstance(timeout, _PoolsOwn):
            timeout = self._timeout
        else:
            _check_seconds("timeout", timeout)
        return dispatcher.submit(features, one=one, timeout=timeout)

    def _try_submit(
        self,
        features: Any,
        timeout: float | _PoolsOwn | None,
        pending: deque[tuple[Call, Waiter]],
    ) -> Exception | None:
        try:
            pending.append(self._submit(features, False, timeout))
        except Exception as error:  # noqa: BLE001 - `map` raises it, in its place
            return error
        return None

    async def _outcome(self, call: Call, waiter: Waiter) -> Any:
        try:
            result = await waiter
        except BaseException:
            self._forget(call)
            raise
        if type(result) is Failed:
            raise result.error
        return result

    def _forget(self, call: Call) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel(call)

    def _recipe(self, predictor: Predictor[OutputsT]) -> Recipe:
        return Recipe(
            _pickled("the predictor", predictor),
            None if self._warmup is None else _pickled("warmup", self._warmup),
            self._start_timeout,
        )

    def _open_supervisor(self) -> Supervisor:
        if self._phase is not _Phase.OPEN or self._supervisor is None:
            raise self._not_open()
        self._check_loop()
        return self._supervisor

    def _not_open(self) -> PoolClosed:
        if self._phase in (_Phase.NEW, _Phase.OPENING):
            return PoolClosed(
                f"the pool is {self._phase.value}: use `async with pool:` or `await pool.open()`"
            )
        return PoolClosed(f"the pool is {self._phase.value}, and a pool does not reopen")

    def _check_loop(self) -> None:
        if self._backend is not None and not self._backend.is_current():
            raise RuntimeError(
                "the pool belongs to the event loop that opened it, and this is another loop or "
                "thread: open a pool in each, or call it through that loop"
            )

    def _on_bug(self, error: Exception) -> None:
        """Tell everyone when our own code fails, instead of letting callers wait for ever."""
        text = f"a mistake in predictpool has broken the pool: {error!r}"

        def factory() -> PredictorPoolError:
            broken = PredictorPoolError(text)
            broken.__cause__ = error
            return broken

        if self._supervisor is not None:
            self._supervisor.kill(factory)


def _weakly(pool: PredictorPool[Any]) -> Callable[[Exception], None]:
    # The background keeps its backend; a pool that nobody holds any more has to be
    # collected all the same, so that its workers end.
    reference = weakref.ref(pool)

    def on_bug(error: Exception) -> None:
        held = reference()
        if held is not None:
            held._on_bug(error)  # noqa: SLF001 - a function of this module, not of another

    return on_bug


def _weak_statistics(pool: PredictorPool[Any]) -> Callable[[], PoolStatistics | None]:
    # As above: a registry of metrics may hold what hooks are given for ever.
    reference = weakref.ref(pool)

    def statistics() -> PoolStatistics | None:
        held = reference()
        return None if held is None else held.statistics()

    return statistics


# --- the checks of options ---------------------------------------------------------


def lacking(predictor: Any) -> list[str]:
    """Return the names that a predictor has and this does not."""
    return [name for name in PREDICTOR_NAMES if not hasattr(predictor, name)]


def _check_predictor(predictor: Any) -> None:
    if isinstance(predictor, type):  # which has all the names
        raise TypeError(
            f"predictor is the class {predictor.__name__}, expected one made from it: "
            f"{predictor.__name__}(...)"
        )
    if not isinstance(predictor, Predictor):
        raise TypeError(
            f"predictor is {predictor!r}, which lacks {', '.join(lacking(predictor))}: give an "
            "EstimatorPredictor, SavedModelPredictor, KerasPredictor, FunctionPredictor or a "
            "Predictor of your own"
        )
    signature = predictor.signature
    if signature is not None and signature != "infer" and not isinstance(signature, Signature):
        raise TypeError(
            f"the predictor's signature is {signature!r}, expected a Signature, 'infer' or None: "
            "Signature.declared({...}) makes one"
        )


def _check_launcher(launcher: Any) -> None:
    needed = ("plan_blocks", "plan", "bind", "start", "kill", "aclose")
    lacking = [name for name in needed if not hasattr(launcher, name)]
    if launcher is not None and lacking:
        raise TypeError(
            f"launcher is {launcher!r}, which lacks {', '.join(lacking)}: give a LocalLauncher "
            "or a RayLauncher, or None for workers on this machine"
        )


def _check_count(option: str, value: Any, least: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        expected = "a whole number" + (" or None" if optional else "")
        raise TypeError(f"{option} is {value!r}, expected {expected}")
    if value < least:
        raise ValueError(f"{option} is {value}, expected at least {least}")


def _check_seconds(option: str, value: Any, *, optional: bool = True) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        or_none = " or None" if optional else ""
        raise TypeError(f"{option} is {value!r}, expected seconds{or_none}")
    if not value >= 0:
        or_none = ", or None" if optional else ""
        raise ValueError(f"{option} is {value}, expected 0 or more seconds{or_none}")


def _pickled(what: str, value: Any) -> bytes:
    try:
        return cast(bytes, cloudpickle.dumps(value))
    except Exception as error:
        raise TypeError(
            f"{what} cannot be sent to a worker ({error}): make in the worker what does not "
            "pickle, in the function that builds or loads the model"
        ) from error


async def _iterate(
    batches: Iterable[Any] | AsyncIterable[Any],
) -> AsyncGenerator[tuple[Any, Exception | None], None]:
    """Yield features and, where the iterable fails, at last its error."""
    try:
        if isinstance(batches, AsyncIterable):
            async for features in batches:
                yield features, None
        else:
            for features in batches:
                yield features, None
    except Exception as error:  # noqa: BLE001 - whatever the user's iterable raises
        yield None, error


def _closed_error() -> PoolClosed:
    return PoolClosed("the pool was closed before this request was answered")
