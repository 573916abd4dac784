"""Starts workers as actors of a Ray cluster, one for each slot."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import math
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import anyio.to_thread
import numpy as np

from predictpool import _wire
from predictpool._backend import Backend
from predictpool._columns import Parts, Schema, join_parts
from predictpool._devices import Device, Wish, Wishes
from predictpool._launcher import End, Listener, WorkerHandle
from predictpool._ray_actor import Exited, Host, Packed, pack
from predictpool._wire import Frame, Kind
from predictpool._worker import Failure, Ready, Start

logger = logging.getLogger("predictpool")

# From this size on Ray puts what it is given into shared memory, which takes 2 ms for 0.9 MB
# (Ray 2.60) and would stop the event loop: so it gets that in a thread.
_LARGE_BYTES = 100_000
# How long the head of a cluster may take to accept a connection; Ray itself would try for minutes.
_CONNECT_WAIT = 5.0
# In which Ray calls `Host.until_gone`, beside all else.
_WATCH = "watch"


class RayLauncher:
    """Starts each worker as an actor of a Ray cluster, where Ray finds a place for it.

    Args:
        address: of the cluster's head, ``"host:port"``; as in ``ray.init``, None is the cluster
            that the environment names (``RAY_ADDRESS``), or one that this machine is part of, or
            else a new one on this machine, and ``"local"`` always that. A program that is
            connected already stays so.
        num_cpus: CPUs that Ray reserves for each worker, which has as many threads, at least one.
        num_gpus: GPUs, or a part of one, that Ray reserves for each worker.
        resources: what else each worker needs, by name, such as ``{"accelerator_type:T4": 0.1}``.
        runtime_env: what Ray prepares for each worker; see Ray's runtime environments.

    ``workers=None`` means as many as there is room for in the cluster now. What the pool has
    begun it ends: the connection, or the cluster on this machine, with the last pool that uses it.
    One launcher belongs to one pool; its event loop is asyncio's or uvloop.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        TypeError, ValueError: an argument is none that Ray could take.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ModuleNotFoundError(
                'RayLauncher needs Ray: pip install "predictpool[ray]"', name="ray"
            )
        self._address = _checked_address(address)
        self._asked = {
            "CPU": _checked_amount("num_cpus", num_cpus),
            "GPU": _checked_amount("num_gpus", num_gpus),
            **_checked_resources(resources),
        }
        if runtime_env is not None and not isinstance(runtime_env, Mapping):
            raise TypeError(f"runtime_env is {runtime_env!r}, expected a mapping or None")
        self._options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources or {}),
            "runtime_env": None if runtime_env is None else dict(runtime_env),
            # A worker that dies is the pool's to replace, and its requests to run again.
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {_WATCH: 1},
        }
        self._device = Device("gpu" if num_gpus else "cpu", threads=max(1, int(num_cpus)))
        self._connected = False
        self._actor_class: Any = None
        self._starting: set[Any] = set()
        self._backend: Backend | None = None
        # Begun for a plan, and never opened: it ends with whoever has planned.
        weakref.finalize(self, _leave_later).atexit = False
        self._workers: set[_RayWorker] = set()
        self._closed = False

    def plan_blocks(self, wishes: Wishes) -> bool:
        """Always: `plan` asks the cluster; see `Launcher`."""
        _check_loop()  # no pool asks for anything before
        return True

    def plan(self, wishes: Wishes, workers: int | None) -> list[Device]:
        """Return a device for each worker; see `Launcher`."""
        if not isinstance(wishes, Wish) or wishes.kind != "auto":
            raise ValueError(
                "devices is for workers on this machine; with a RayLauncher it is Ray that places "
                "them: give the launcher num_cpus=, num_gpus= or resources="
            )
        if workers is None:
            self._connect()
            workers = _room(self._asked)
        return [self._device] * workers

    def bind(self, backend: Backend, preload: tuple[str, ...], devices: Sequence[Device]) -> None:
        """Belong to one pool and its event loop, from now on; see `Launcher`.

        Raises:
            RuntimeError: it belongs to a pool already, or this is no event loop of asyncio.
        """
        if self._backend is not None:
            raise RuntimeError("this launcher belongs to another pool: make one for each pool")
        _check_loop()
        self._backend = backend
        # None of the application's threads: those may all wait for this pool.
        self._threads = anyio.CapacityLimiter(math.inf)

    async def start(self, start: Start, listener: Listener) -> WorkerHandle:
        """Have Ray place an actor, and send it what it has to load."""
        assert self._backend is not None
        self._check_open()
        if not self._connected:
            listener.waits_for("a connection to Ray")
            await self._in_thread(self._connect)
            self._check_open()
        listener.waits_for("the head of the Ray cluster to answer")
        actor, waits_for = await self._in_thread(self._create)
        listener.waits_for(waits_for)
        pid = await self._placed(actor)
        listener.waits_for("")
        worker = _RayWorker(self._backend, listener, actor, pid, self._threads)
        worker.on_gone = partial(self._workers.discard, worker)
        self._workers.add(worker)
        worker.begin(start)
        return worker

    def kill(self) -> None:
        """End every worker now, and what was begun for them."""
        self._kill_workers()
        if self._has_to_leave():
            _leave(self)

    async def aclose(self) -> None:
        """End every worker, and what was begun for them."""
        self._kill_workers()
        if self._has_to_leave():
            # Waited for whatever happens: Ray ends a program that touches it meanwhile.
            await anyio.to_thread.run_sync(_leave, self, limiter=self._threads)

    def _kill_workers(self) -> None:
        self._closed = True
        for actor in self._starting:
            _kill(actor)
        for worker in list(self._workers):
            worker.kill("belongs to a pool that was closed")

    def _has_to_leave(self) -> bool:
        connected, self._connected = self._connected, False
        return connected

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    def _check_open(self) -> None:
        if self._closed:  # while this start waited
            raise ChildProcessError("the launcher is closed")

    async def _placed(self, actor: Any) -> int:
        """Wait until Ray has found a place for an actor, and return its process id."""
        self._starting.add(actor)
        try:
            pid: int = await actor.pid.remote()
            self._check_open()
        except BaseException as error:
            _kill(actor)  # without its handle it would end by itself, but not before it has begun
            if isinstance(error, ChildProcessError) or not isinstance(error, Exception):
                raise
            raise ChildProcessError(_words(error)) from error
        finally:
            self._starting.discard(actor)
        return pid

    def _connect(self) -> None:
        _join(self, self._address)
        self._connected = True
        if self._closed and self._has_to_leave():  # the pool did not wait for it
            _leave(self)

    def _create(self) -> tuple[Any, str]:
        """Ask Ray for an actor; return it, and what it waits for in words."""
        import ray

        _check_running()
        try:
            if self._actor_class is None:  # once: Ray keeps each that it is given
                self._actor_class = ray.remote(**self._options)(Host)
            return self._actor_class.remote(), _wish_text(self._asked)
        except Exception as error:  # whatever it does not like, of the options or of the cluster
            raise ChildProcessError(_words(error)) from error


class _RayWorker:
    """An actor, as the pool sees it."""

    def __init__(
        self,
        backend: Backend,
        listener: Listener,
        actor: Any,
        pid: int,
        threads: anyio.CapacityLimiter,
    ) -> None:
        self.pid = pid
        self._backend = backend
        self._listener = listener
        self._actor = actor
        self._threads = threads
        self.on_gone: Callable[[], object] = lambda: None
        self._gone = False

    def begin(self, start: Start) -> None:
        """Have the predictor loaded, and the end of the actor told whenever it comes."""
        self._call(self._actor.until_gone.options(concurrency_group=_WATCH))
        self._call_with(len(start.predictor), self._load, start)

    def send(self, batch_id: int, schema: Schema, requests: Sequence[Parts], rows: int) -> None:
        """Send a batch."""
        payload, size = join_parts(requests)
        parts = _wire.encode_frame(
            Kind.PREDICT,
            batch_id,
            rows=rows,
            joined=len(requests) > 1,
            schema=schema.blob,
            payload=payload,
            size=size,
        )
        self._call_with(size, self._predict, parts)

    def stop(self) -> None:
        """Ask it to let go of the model and end."""
        self._call(self._actor.close)

    def _call_with(self, size: int, call: Callable[[Any], None], argument: Any) -> None:
        if size < _LARGE_BYTES:
            call(argument)
        else:
            in_thread = partial(anyio.to_thread.run_sync, call, argument, limiter=self._threads)
            self._backend.spawn(in_thread, f"predictpool: {size:,} bytes to {self.pid}")

    def kill(self, why: str) -> None:
        """End it now; nothing that it still says is listened to."""
        if not self._gone:
            end = End(None, int(signal.SIGKILL), "", False, why)
            self._let_go()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is to be told
                self._backend.call_soon(partial(self._listener.ended, end))

    # --- in any thread -------------------------------------------------------------

    def _load(self, start: Start) -> None:
        self._call(self._actor.load, start)

    def _predict(self, parts: Parts) -> None:
        self._call(self._actor.predict, pack(parts))

    def _call(self, method: Any, *arguments: Any) -> None:
        try:
            _check_running()
            reply = method.remote(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, this worker is of no use
            self._tell(partial(self._on_error, error))
        else:
            reply.future().add_done_callback(self._on_done)

    def _on_done(self, reply: Future[Packed | Exited]) -> None:
        """Take in a reply, in a thread of Ray's."""
        try:
            tell = partial(self._on_reply, _unpacked(reply.result()))
        except Exception as error:  # noqa: BLE001 - as above
            tell = partial(self._on_error, error)
        self._tell(tell)

    def _tell(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is to be told
            self._backend.call_from_thread(callback)

    # --- in the event loop ---------------------------------------------------------

    def _on_reply(self, reply: Frame | Exited) -> None:
        if self._gone:
            return
        if isinstance(reply, Exited):
            self._end(End(reply.status, None, reply.report, False, ""))
        elif reply.kind is Kind.ANSWER or reply.kind is Kind.ANSWER_OBJECT:
            self._listener.answered(reply)
        elif reply.kind is Kind.GOODBYE:
            self._end(End(0, None, "", True, ""))
        else:
            self._on_message(reply)

    def _on_message(self, frame: Frame) -> None:
        try:
            message = _wire.loads_cautiously(frame.payload)
        except Exception as error:  # noqa: BLE001 - unpickling can raise anything
            self.kill(f"sent a message that cannot be read ({error!r})")
            return
        if isinstance(message, Ready):
            self._listener.ready(message)
        elif isinstance(message, Failure) and frame.kind is Kind.START_FAILED:
            self._listener.start_failed(message)
            self._end(End(0, None, "", False, ""))
        else:
            self._listener.failed(frame.id, message)

    def _on_error(self, error: Exception) -> None:
        if not self._gone:
            self._end(End(None, None, "", False, "", told=_words(error)))

    def _end(self, end: End) -> None:
        self._let_go()
        self._listener.ended(end)

    def _let_go(self) -> None:
        self._gone = True
        self.on_gone()
        _kill(self._actor)


def _unpacked(reply: Packed | Exited) -> Frame | Exited:
    """Return a reply in memory of its own, which callers may write to."""
    if isinstance(reply, Exited):
        return reply
    own = memoryview(bytearray(reply)) if isinstance(reply, bytes) else np.array(reply).data
    return _wire.decode_frame(own)


def _kill(actor: Any) -> None:
    import ray

    # Ray has been shut down, and the actor with it; or begun anew, and knows nothing of it.
    with contextlib.suppress(ray.exceptions.RayError):
        if ray.is_initialized():
            ray.kill(actor, no_restart=True)


def _words(error: Exception) -> str:
    """Return what Ray says of an actor, without its numbers and its guesses."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    text = lines[-1] if "\n\t" in str(error) and lines else str(error)
    return f"Ray says: {text.partition(' Some common causes')[0].rstrip('.') or repr(error)}"


# --- the cluster -------------------------------------------------------------------

_lock = threading.Lock()
# All launchers that are connected: what we have begun ends with the last of them.
_users: weakref.WeakSet[RayLauncher] = weakref.WeakSet()
_begun: _Begun | None = None


class _Begun:
    """A connection of ours, and the cluster where `ray.init` starts one.

    Its processes end with the thread that started them, so that lives as long.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._done: Future[str] = Future()
        self._over = threading.Event()
        # A daemon, so that a program ends that closes no pool.
        self._thread = threading.Thread(target=self._run, name="predictpool ray", daemon=True)
        self._thread.start()
        self._job = self._done.result()

    def _run(self) -> None:
        import ray

        try:
            # A good guest: logging and output are the program's own.
            ray.init(address=self._address, configure_logging=False, log_to_driver=False)
            self._done.set_result(_job())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._done.set_exception(error)
            return
        self._over.wait()

    def end(self) -> None:
        """End it, unless somebody else has, and has begun another one."""
        import ray

        if ray.is_initialized() and _job() == self._job:
            ray.shutdown()
        self._over.set()
        self._thread.join()


def _job() -> str:
    import ray

    return str(ray.get_runtime_context().get_job_id())


def _join(launcher: RayLauncher, address: str | None) -> None:
    """Have a launcher use Ray, and begin that if nobody has.

    Raises:
        OSError: there is no cluster at the address, or none that would have us.
    """
    import ray

    global _begun  # noqa: PLW0603 - as `ray.init`, a fact of the process
    with _lock:
        if ray.is_initialized():
            _check_connected_to(address)
        else:
            _check_reachable(address or os.environ.get("RAY_ADDRESS"))
            try:
                _begun = _Begun(address)
            except Exception as error:  # of many types: another version, a full disk
                raise ConnectionError(f"Ray cannot be used: {error}") from error
        _users.add(launcher)


def _leave_later() -> None:
    """End what was begun if nobody uses it any more, in a thread: that takes a second."""
    if _begun is not None:
        threading.Thread(target=_leave, args=(None,), name="predictpool leaves ray").start()


def _leave(launcher: RayLauncher | None) -> None:
    """Have a launcher use Ray no more; without any, what was begun ends."""
    global _begun
    with _lock:
        if launcher is not None:
            _users.discard(launcher)
        if not _users and _begun is not None:
            begun, _begun = _begun, None
            begun.end()


def _check_running() -> None:
    import ray

    # Ray's own calls would begin another one.
    if not ray.is_initialized():
        raise ChildProcessError("Ray was shut down while a pool had workers in it")


def _check_connected_to(address: str | None) -> None:
    import ray

    found = str(ray.get_runtime_context().gcs_address)
    _, colon, port = (address or "").rpartition(":")
    if not colon or port == found.rpartition(":")[2]:
        return
    raise ConnectionError(
        f"address is {address!r}, but this program is connected to the Ray cluster at {found} "
        "already: leave address= out, or end that connection first"
    )


def _check_reachable(address: str | None) -> None:
    host, colon, port = (address or "").rpartition(":")
    if not colon:  # "auto", "local" or None: Ray knows at once
        return
    if "://" in host:
        raise ConnectionError(
            f"RAY_ADDRESS is {address!r}, which is for Ray Client or for Ray's jobs: run the "
            'application on a node of the cluster, and give the head\'s address, as in "host:6379"'
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_WAIT).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster can be reached at {address!r} ({error}): give the address of its "
            'head, as in "host:6379"'
        ) from error


def _room(asked: Mapping[str, float]) -> int:
    """Return how many actors fit into the cluster now; at least one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    in_nodes = sum(_fitting(asked, has) for has in nodes)
    return max(1, min(in_nodes, _fitting(asked, ray.available_resources())))


def _fitting(asked: Mapping[str, float], has: Mapping[str, float]) -> int:
    return min(
        (int(has.get(name, 0) / amount) for name, amount in asked.items() if amount), default=1
    )


def _wish_text(asked: Mapping[str, float]) -> str:
    """Return what an actor waits for, in words."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    wish = " and ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
    shown = sorted({"CPU", "GPU", *asked} & {*total, *(n for n in asked if asked[n])})
    has = ", ".join(f"{total.get(n, 0):g} {n} ({free.get(n, 0):g} free)" for n in shown)
    place = f"a place for {wish}" if wish else "a process, which asks for nothing"
    return f"Ray to find {place}; the cluster has {has or 'nothing'}"


# --- checks ------------------------------------------------------------------------


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "a RayLauncher needs asyncio or uvloop, because Ray does: open its pool there, or "
            "leave launcher= out"
        ) from error


def _checked_address(address: Any) -> str | None:
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address is {address!r}, expected text or None")
    if address is not None and "://" in address:
        raise ValueError(
            f"address is {address!r}, which is for Ray Client: run the application on a node of "
            'the cluster, and give the head\'s address, as in "host:6379"'
        )
    return address


def _checked_amount(name: str, amount: Any) -> float:
    if not isinstance(amount, int | float) or isinstance(amount, bool):
        raise TypeError(f"{name} is {amount!r}, expected a number")
    if not 0 <= amount < float("inf"):
        raise ValueError(f"{name} is {amount}, expected 0 or more")
    if amount > 1 and amount != int(amount):
        raise ValueError(
            f"{name} is {amount}, expected a whole number beyond 1: Ray divides only one"
        )
    return float(amount)


def _checked_resources(resources: Any) -> dict[str, float]:
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise TypeError(
            f"resources is {resources!r}, expected a mapping of names to numbers, or None"
        )
    for taken, option in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if taken in resources:
            raise ValueError(f"resources has {taken!r}: give {option}= instead")
    return {name: _checked_amount(f"resources[{name!r}]", each) for name, each in resources.items()}
