"""Starts worker processes on this machine, through a template process that forks them."""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from predictpool._backend import Backend, Cancellable
from predictpool._devices import (
    LIBRARIES,
    THREADS,
    Device,
    Machine,
    Wishes,
    asks_for_gpus,
    available_cores,
    looks_for_gpus,
    plan,
    worth,
)
from predictpool._gpus import has_driver, usable_gpus
from predictpool._launcher import Listener, WorkerHandle
from predictpool._local_worker import LocalWorker
from predictpool._shared_buffer import create_memory
from predictpool._worker import Start

logger = logging.getLogger("predictpool")

_SCRIPT = Path(__file__).with_name("_template.py")
_MAX_MESSAGE = 1 << 20
# How long the template may take to start a process: it forks in milliseconds, unless
# somebody has stopped it.
_ORDER_WAIT = 15.0
# How long the kernel may take to end a killed process: it waits for devices.
_REAP_WAIT = 5.0

# One BLAS thread leaves the template single-threaded after `import tensorflow` (2.15,
# 2.21), and only so may it fork: this one overrides the user's setting.
_FORCED = {"OPENBLAS_NUM_THREADS": "1"}
_DEFAULTS = {
    # So does this: TensorFlow's Keras imports pandas, which imports pyarrow where it is there.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    **LIBRARIES,
    # Read when the library is loaded, which the template does for workers with one thread.
    "OMP_NUM_THREADS": "1",
}


class LocalLauncher:
    """Starts workers on this machine.

    Args:
        fork: fork workers from a template process that has imported the predictor's
            ``preload`` once; a further worker then costs tens of milliseconds and shares
            the template's memory. Where the template has more than one thread workers
            are started afresh instead, and the log says so; ``fork=False`` does so always,
            and so is a worker whose device has several threads, because a library that
            the template has loaded keeps the number that it had there.

    One launcher belongs to one pool.
    """

    def __init__(self, *, fork: bool = True) -> None:
        if not isinstance(fork, bool):
            raise TypeError(f"fork is {fork!r}, expected True or False")
        self._fork = fork
        self._gpus: dict[str | None, tuple[str, ...]] = {}  # by CUDA_VISIBLE_DEVICES
        self._users: dict[str, str] | None = None
        self._backend: Backend | None = None
        self._preload: tuple[str, ...] = ()
        self._forks = fork
        self._env: dict[str, str] = {}
        self._templates: list[_Template] = []
        self._lock = anyio.Lock()
        self._closed = False

    def plan_blocks(self, wishes: Wishes) -> bool:
        """Whether `plan` has to look for GPUs; see `Launcher`."""
        return looks_for_gpus(wishes) and self._setting not in self._gpus and has_driver()

    def plan(self, wishes: Wishes, workers: int | None) -> list[Device]:
        """Return a device for each worker; see `Launcher`."""
        _check_system()
        setting = self._setting
        if looks_for_gpus(wishes) and setting not in self._gpus:
            self._gpus[setting] = usable_gpus(required=asks_for_gpus(wishes))
        cores = available_cores()
        return plan(wishes, workers, Machine(cores, worth(cores), self._gpus.get(setting, ())))

    @property
    def _setting(self) -> str | None:
        # What counts is what it is when the pool opens.
        users = os.environ if self._users is None else self._users
        return users.get("CUDA_VISIBLE_DEVICES")

    def bind(self, backend: Backend, preload: tuple[str, ...], devices: Sequence[Device]) -> None:
        """Belong to one pool and its event loop, from now on; see `Launcher`.

        Raises:
            RuntimeError: it belongs to a pool already.
        """
        if self._backend is not None:
            raise RuntimeError("this launcher belongs to another pool: make one for each pool")
        self._backend, self._preload, self._users = backend, preload, dict(os.environ)
        self._forks = any(self._why_afresh(device) == "" for device in devices)
        if not any(device.gpu for device in devices):
            self._env = _without_gpu(self._users)

    async def start(self, start: Start, listener: Listener) -> WorkerHandle:
        """Start a worker and send it what it has to load."""
        template = await self._running_template()
        return await template.start_worker(start, listener, self._why_afresh(start.device))

    def kill(self) -> None:
        """End every worker and the template now."""
        self._closed = True
        while self._templates:
            self._templates.pop().kill()

    async def aclose(self) -> None:
        """End every worker and the template, and reap it."""
        self._closed = True
        while self._templates:
            await self._templates.pop().aclose()

    def _imports(self) -> list[str]:
        # What is never forked would be imported for nothing.
        return [*self._preload, "predictpool._worker"] if self._forks else []

    def _why_afresh(self, device: Device) -> str:
        """Return why a worker on this device is not forked, or ""."""
        if not self._fork:
            return "the launcher says so"
        return "" if device.threads == 1 else f"the device has {device.threads} threads"

    async def _running_template(self) -> _Template:
        assert self._backend is not None
        assert self._users is not None
        async with self._lock:
            if self._closed:  # while this start waited for another one
                raise ChildProcessError("the launcher is closed")
            if self._templates and self._templates[-1].gone:
                logger.warning("the template process has ended: starting another one")
            for template in [old for old in self._templates if old.deserted]:
                self._templates.remove(template)
                template.kill()
            if not self._templates or self._templates[-1].gone:
                template = _Template(self._backend, self._imports(), self._users, self._env)
                self._templates.append(template)
                try:
                    await template.wait_ready()
                except BaseException:
                    if template in self._templates:  # `kill` may have taken it out
                        self._templates.remove(template)
                    template.kill()
                    raise
            return self._templates[-1]


def worker_environment(device: Device, users: Mapping[str, str]) -> dict[str, str]:
    """Return what a worker's environment has besides, or instead of, the application's.

    Args:
        users: the application's. Its numbers of threads are kept but for OpenBLAS's, with which
            a template can fork or not; its CUDA_VISIBLE_DEVICES is in the device already.
    """
    threads = str(device.threads)
    own = {name: threads for name in THREADS if name not in users}
    forced = {"OPENBLAS_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": device.gpu}
    return {**own, **forced, **({} if device.gpu else _without_gpu(users))}


def _without_gpu(users: Mapping[str, str]) -> dict[str, str]:
    """Return what hides GPUs from every library."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    # JAX would look all the same, and say at length that it found none.
    if has_driver() and "JAX_PLATFORMS" not in users:
        hidden["JAX_PLATFORMS"] = "cpu"
    return hidden


def _check_system() -> None:
    if sys.platform != "linux":
        raise OSError(f"predictpool runs on Linux (5.3 or newer); this is {sys.platform}")
    if not sys.executable:
        raise OSError("sys.executable is empty: predictpool has no Python to start workers with")


# --- the template, from outside ----------------------------------------------------


class _Template:
    """The template.

    Args:
        users: the application's environment.
        env: what the template's has instead of it.
    """

    def __init__(
        self, backend: Backend, preload: list[str], users: dict[str, str], env: dict[str, str]
    ) -> None:
        self.gone = False
        self._backend = backend
        self._users = users
        self._told_afresh: set[str] = set()
        self._started: dict[int, anyio.Event] = {}
        self._pids: dict[int, tuple[int, int]] = {}
        self._early: dict[int, int] = {}
        self._workers: dict[int, LocalWorker] = {}
        self._count = 0
        self._ready = anyio.Event()
        self._reading: Cancellable | None = None
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as theirs:
            self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.callback(self._control.close)
            theirs.callback(control.close)
            lifeline, self._lifeline = os.pipe()
            on_failure.callback(os.close, self._lifeline)
            theirs.callback(os.close, lifeline)
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(control.fileno()), str(lifeline)],
                pass_fds=(control.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                process_group=0,
                env={**_DEFAULTS, **users, **_FORCED, **env},
            )
            on_failure.pop_all()
        _alive.add(self)
        self._control.setblocking(False)
        settings = {
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "preload": preload,
        }
        try:
            self._control.send(json.dumps(settings).encode())
            self._reading = backend.on_readable(self._control.fileno(), self._on_readable)
        except BaseException:
            self.kill()
            raise

    @property
    def deserted(self) -> bool:
        """Whether it has ended and all its workers too."""
        return self.gone and not self._workers

    async def wait_ready(self) -> None:
        """Wait until it has imported what it should."""
        await self._ready.wait()
        if self.gone:
            status = self._process.poll()
            raise ChildProcessError(
                f"the template process ended before it was ready (status {status}); "
                "what it said is on stderr"
            )

    async def start_worker(self, start: Start, listener: Listener, afresh: str) -> LocalWorker:
        """Have a worker started, and send it what it has to load.

        Args:
            afresh: why it is not to be forked, or "".
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.callback(ours.close)
            with theirs:
                report = os.memfd_create("predictpool-report", os.MFD_CLOEXEC)
                on_failure.callback(os.close, report)
                buffer = create_memory()
                on_failure.callback(os.close, buffer)
                shared = [theirs.fileno(), report, buffer]
                pid, pidfd = await self._order(start.device, afresh, shared)
            on_failure.pop_all()
        worker = LocalWorker(
            self._backend,
            listener,
            connection=ours,
            pid=pid,
            pidfd=pidfd,
            report=report,
            buffer=buffer,
        )
        self._workers[pid] = worker
        worker.on_gone = lambda: self._workers.pop(pid, None)
        worker.begin(start)
        if pid in self._early:
            worker.on_status(self._early.pop(pid))
        return worker

    async def _order(self, device: Device, afresh: str, descriptors: list[int]) -> tuple[int, int]:
        self._count += 1
        number = self._count
        env = worker_environment(device, self._users)
        order = {"start": number, "afresh": afresh, "cores": device.cores, "env": env}
        rights = array.array("i", descriptors)
        self._started[number] = event = anyio.Event()
        try:
            self._control.sendmsg(
                [json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
            with anyio.move_on_after(_ORDER_WAIT):
                await event.wait()
        except OSError as error:
            raise ChildProcessError(f"the template process has ended ({error})") from error
        except BaseException:
            if number in self._pids:  # cancelled in the tick in which it came
                pid, pidfd = self._pids.pop(number)
                self._early.pop(pid, None)
                os.close(pidfd)
            raise
        finally:
            del self._started[number]
        if not event.is_set():
            self._process.kill()  # its workers live on; the next start makes another one
            raise ChildProcessError(
                f"the template process did not answer within {_ORDER_WAIT:g} s: it was killed"
            )
        if number not in self._pids:
            raise ChildProcessError(
                "the template process ended while it started a worker"
                if self.gone
                else "no file descriptor is left for one more worker"
            )
        return self._pids.pop(number)

    def _on_readable(self) -> None:
        while not self.gone:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, _MAX_MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._on_gone()
                return
            self._on_message(json.loads(data), descriptors)

    def _on_message(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "ready" in message:
            if message["unarmed"]:
                logger.warning(
                    "the kernel does not guard the workers (%s): a thread does, and workers "
                    "are started afresh",
                    message["unarmed"],
                )
            if message["failed"]:
                logger.warning("the template could not import everything:\n%s", message["failed"])
            self._ready.set()
        elif "started" in message:
            self._tell_afresh(message["afresh"])
            self._on_started(message["started"], message["pid"], descriptors)
        else:
            self._on_ended(message["ended"], message["status"])

    def _tell_afresh(self, why: str) -> None:
        """Say once for each reason that a worker was not forked."""
        if why and why not in self._told_afresh:
            self._told_afresh.add(why)
            logger.info("a worker is started afresh, not forked: %s", why)

    def _on_started(self, number: int, pid: int, descriptors: list[int]) -> None:
        # Without a descriptor (this process has no number left for one), and where whoever
        # ordered the worker was cancelled, its socket is closed, so it ends by itself.
        if number in self._started:
            if descriptors:
                self._pids[number] = (pid, descriptors[0])
            self._started[number].set()
        elif descriptors:
            os.close(descriptors[0])

    def _on_ended(self, pid: int, status: int) -> None:
        if pid in self._workers:
            self._workers[pid].on_status(status)
        elif any(pid == started for started, _ in self._pids.values()):
            self._early[pid] = status  # whoever ordered it has not had a turn yet

    def _on_gone(self) -> None:
        self.gone = True
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._ready.set()
        for event in self._started.values():
            event.set()
        for worker in list(self._workers.values()):
            worker.on_status_unknown()

    def kill(self) -> None:
        """End it and all its workers now, and wait for its own end."""
        if self._end():
            self._reap(_REAP_WAIT)

    async def aclose(self) -> None:
        """End it and all its workers, without blocking the event loop."""
        if not self._end():
            return
        patience = _REAP_WAIT  # of a `cancel()` of asyncio's own, which no shield keeps off
        try:
            await self._until_ended()
            patience = 0.0
        finally:
            self._reap(patience)

    async def _until_ended(self) -> None:
        # Reaped already: it died before, or the application reaps all its children.
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self._process.pid)
            try:
                with anyio.move_on_after(_REAP_WAIT, shield=True):
                    await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)

    def _reap(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            logger.error(  # noqa: TRY400 - there is nothing to see in the traceback
                "template %d cannot be killed: left alone", self._process.pid
            )

    def _end(self) -> bool:
        """Pull the lifeline; False if it was done before."""
        if self._lifeline < 0:
            return False
        _alive.discard(self)
        if self._process.poll() is None:
            # Not reaped yet, so the number of its group is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self._lifeline)
        self._lifeline = -1
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._on_gone()
        self._control.close()
        for worker in list(self._workers.values()):
            with contextlib.suppress(RuntimeError):
                worker.kill("belongs to a pool that was closed")
        return True

    def close_in_forked_copy(self) -> None:
        """Let go, in a forked copy of the application, of what keeps the workers alive."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self._control.close()
        for worker in self._workers.values():
            worker.close_in_forked_copy()


# A forked copy of the application must not keep its workers alive.
_alive: weakref.WeakSet[_Template] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for template in list(_alive):
        template.close_in_forked_copy()
    _alive.clear()


if hasattr(os, "register_at_fork"):  # so that other systems get as far as `_check_system`
    os.register_at_fork(after_in_child=_after_fork_in_child)
