"""The template process: imports once, forks workers, reaps them, reports.

Run as a script by its path, never imported by the application: no ``__main__`` guard is
needed in the user's program and nothing of it is imported again. Until the application's
``sys.path`` is in force only the standard library is used.

The lifeline. The template leads a process group of its own and holds the read end of a
pipe that nobody writes to; the application holds the only write end. The pipe is armed
with ``O_ASYNC`` and SIGKILL for the whole group, so the kernel itself kills the template
and all workers when the application ends, however it ends and whoever holds the GIL.
(``PR_SET_PDEATHSIG`` would be bound to the thread that started us.)

Control messages are JSON, one to a packet, with file descriptors beside them::

    application: {"path": [...], "preload": [...]}                 once
    template:    {"ready": true, "unarmed": why, "failed": tracebacks}
    application: {"start": n, "afresh": why, "cores": [...], "env": {...}} + socket, report, buffer
    template:    {"started": n, "pid": pid, "afresh": why} + pidfd
    template:    {"ended": pid, "status": wait status}
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

MAX_MESSAGE = 1 << 20

# Of a worker, on top of the application's: where they share a core, it gets a third of what
# the event loop gets.
_NICENESS = 5
# What an open GPU is called, the second on WSL.
_GPUS = ("/dev/nvidia", "/dev/dxg")


def main(arguments: list[str]) -> int:
    """Run as the template, or as a worker that was started afresh."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler, not SIG_IGN: children of the user's model would inherit that.
        signal.signal(number, _leave_it_to_the_application)
    if arguments[0] == "worker":
        _run_afresh(json.loads(arguments[1]))
    control = socket.socket(fileno=int(arguments[0]))
    lifeline = int(arguments[1])
    unarmed = arm(lifeline)
    settings = json.loads(control.recv(MAX_MESSAGE))
    sys.path[:] = settings["path"]
    failed = _preload(settings["preload"])
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that it marks
    _send(control, {"ready": True, "unarmed": unarmed, "failed": failed})
    _Template(control, lifeline, settings["path"]).serve()
    return 0


def _preload(names: list[str]) -> str:
    """Import modules. What fails here fails again in the worker, which can say more."""
    failed = ""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001 - an import can raise anything
            failed += traceback.format_exc()
    return failed


def _leave_it_to_the_application(number: int, frame: object) -> None:
    """Ignore a signal: the application decides when its workers end."""


# --- the lifeline ------------------------------------------------------------------


def arm(lifeline: int) -> str:
    """Have the kernel kill this process group when the lifeline's other end closes.

    Returns:
        "" or, where the kernel does not do it, why a thread watches instead.
    """
    why = _arm_kernel(lifeline)
    if why:
        threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()
    elif _hung_up(lifeline):  # it went before we were armed
        os.killpg(0, signal.SIGKILL)
    return why


def _arm_kernel(lifeline: int) -> str:
    if os.getpgrp() != os.getpid():
        return "the template does not lead its process group"
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
        if not fcntl.fcntl(lifeline, fcntl.F_GETFL) & os.O_ASYNC:
            return "the kernel ignores O_ASYNC"
    except (OSError, AttributeError) as error:
        return str(error)
    return ""


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _hung_up(lifeline: int) -> bool:
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    return bool(poller.poll(0))


# --- workers -----------------------------------------------------------------------


class _Template:
    def __init__(self, control: socket.socket, lifeline: int, path: list[str]) -> None:
        self._control = control
        self._lifeline = lifeline
        self._path = path
        self._pids: dict[int, int] = {}
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)

    def serve(self) -> None:
        """Start workers on request and report their ends, until the application closes."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor in self._pids:
                    self._reap(descriptor)
                elif not self._start_next():
                    return

    def _reap(self, pidfd: int) -> None:
        pid = self._pids.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _send(self._control, {"ended": pid, "status": status})

    def _start_next(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 3)
        except ConnectionResetError:  # the application closed with a report of ours unread
            return False
        if not data:
            return False
        order = json.loads(data)
        why = order["afresh"] or _why_not_to_fork()
        pid = self._spawn(order, descriptors) if why else self._fork(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._pids[pidfd] = pid
        self._poller.register(pidfd, select.POLLIN)
        _send(self._control, {"started": order["start"], "pid": pid, "afresh": why}, pidfd)
        return True

    def _fork(self, order: dict[str, Any], descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            self._control.close()
            for pidfd in self._pids:
                os.close(pidfd)
            _work(order, *descriptors)
        return pid

    def _spawn(self, order: dict[str, Any], descriptors: list[int]) -> int:
        for descriptor in (*descriptors, self._lifeline):
            os.set_inheritable(descriptor, True)
        settings = {"order": order, "descriptors": descriptors, "path": self._path}
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", __file__, "worker", json.dumps(settings)],
            {**os.environ, **order["env"]},
        )
        os.set_inheritable(self._lifeline, False)
        return pid


def _run_afresh(settings: dict[str, Any]) -> None:
    for descriptor in settings["descriptors"]:
        os.set_inheritable(descriptor, False)
    sys.path[:] = settings["path"]
    _work(settings["order"], *settings["descriptors"])


def _work(order: dict[str, Any], connection: int, report: int, buffer: int) -> NoReturn:
    """Be a worker until its end; never returns, so that no frame of the template runs on."""
    status: Any = 1
    # Held until the process ends: a socket closed earlier would look like its end.
    held = socket.socket(fileno=connection)
    try:
        _serve_worker(order, held, report, buffer)
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        _end(status if isinstance(status, int) else 1)


def _serve_worker(
    order: dict[str, Any], connection: socket.socket, report: int, buffer: int
) -> None:
    # Pinned before anything else: threads that exist already would stay where they are.
    os.sched_setaffinity(0, order["cores"])
    _give_way()
    # Before the predictor's libraries look; those that the template has imported have not
    # looked for GPUs yet, or this worker would not have been forked.
    os.environ.update(order["env"])
    import faulthandler

    faulthandler.enable(file=report)
    if "numpy" in sys.modules:
        # Forked from one state, all workers would draw the same "random" numbers.
        sys.modules["numpy"].random.seed()
    from predictpool import _worker

    _worker.main(connection, buffer)


def _give_way() -> None:
    """Let the event loop go first where it shares this core.

    The application may be on it when it sends a batch: interrupted, its event loop would
    stand still for as long as the model runs, and with it all other workers.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.nice(_NICENESS)
        with contextlib.suppress(OSError):  # in some sandboxes; nothing depends on it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # Closed, broken or missing: nobody is left who could read it.
            continue
    # Past atexit and destructors: native libraries are known to hang in theirs.
    os._exit(status)


def _why_not_to_fork() -> str:
    threads = _count_threads()
    if threads > 1:
        return f"the template has {threads} threads"
    if _holds_gpu():
        return "a module of the predictor's preload has opened a GPU, which no fork survives"
    return ""


def _holds_gpu(folder: str = "/proc/self/fd") -> bool:
    """Whether this process has begun to use NVIDIA's driver."""
    with contextlib.suppress(OSError):  # no /proc here
        for name in os.listdir(folder):  # noqa: PTH208 - as below
            with contextlib.suppress(OSError):  # the one that lists them is gone
                if os.readlink(f"{folder}/{name}").startswith(_GPUS):  # noqa: PTH115
                    return True
    return False


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - without pathlib's import time
    except OSError:
        return threading.active_count()


def _send(control: socket.socket, message: dict[str, Any], *descriptors: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        control.sendmsg([json.dumps(message).encode()], ancillary if descriptors else [])
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
