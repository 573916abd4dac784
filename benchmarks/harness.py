"""Runs each contender in a process of its own.

A contender is started afresh, loads, and then waits for orders; all of them stay alive, and the
harness lets them work in turn, one at a time. So their rounds interleave: what disturbs the
machine for a minute disturbs all of them.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

import psutil

# How a worker of the pool is set up (see `predictpool._local_launcher`): in force for every
# contender that stands for one, before TensorFlow is imported.
WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}

Key = TypeVar("Key")

_PROCESSES = multiprocessing.get_context("spawn")


class ContenderFailed(Exception):
    """Raised when a contender's process fails; carries its traceback."""


class Contender:
    """A process that runs ``serve(connection, *arguments)`` and takes orders.

    The other end sends one message when it is ready, and then one for each order that it gets.
    """

    def __init__(self, name: str, serve: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        self._connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(
            target=run_contender, args=(serve, theirs, arguments), name=name
        )
        self._process.start()
        theirs.close()

    def result(self) -> Any:
        """Wait for the next message.

        Raises:
            ContenderFailed: the process has failed instead.
        """
        try:
            failed, value = self._connection.recv()
        except EOFError:
            failed, value = True, "its process ended without a word"
        if failed:
            raise ContenderFailed(f"{self.name}: {value}")
        return value

    def order(self, *order: Any) -> Any:
        """Send an order and wait for its result."""
        self.begin(*order)
        return self.result()

    def begin(self, *order: Any) -> None:
        """Send an order whose `result` is waited for later: others may work meanwhile."""
        self._connection.send(order)

    def end(self) -> None:
        """Have it end, and wait until it has."""
        self._connection.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Orders:
    """The contender's end of the pipe."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def fileno(self) -> int:
        """Return what is readable when there is an order."""
        return self._connection.fileno()

    def reply(self, value: Any) -> None:
        """Answer the last order, or say that there may be a first one."""
        self._connection.send((False, value))

    def next(self) -> Any:
        """Wait for an order; None when there will be no more."""
        try:
            return self._connection.recv()
        except EOFError:
            return None


def run_contender(
    serve: Callable[..., None], connection: "Connection[Any, Any]", arguments: tuple[Any, ...]
) -> None:
    """Be a contender's process; what fails is told over the connection."""
    try:
        serve(Orders(connection), *arguments)
    except Exception:  # whatever it was, the harness has to hear of it
        connection.send((True, traceback.format_exc()))
        raise


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, which ends, and return what it returned."""
    child = Contender(function.__qualname__, _call, function, *arguments)
    try:
        return child.result()
    finally:
        child.end()


def _call(orders: Orders, function: Callable[..., Any], *arguments: Any) -> None:
    orders.reply(function(*arguments))


@contextmanager
def all_ended(contenders: Iterable[Contender]) -> Iterator[None]:
    """End every contender, also when one fails."""
    try:
        yield
    finally:
        for contender in contenders:
            contender.end()


def in_turn(started: Iterable[Key], number: int) -> list[Key]:
    """Return the contenders in the order of a round; in the next one another begins."""
    order = list(started)
    first = number % len(order)
    return order[first:] + order[:first]


def end_with(work: Callable[[], object]) -> NoReturn:
    """Do some work in a fork, and end it: what its parent would clean up is not the fork's."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def become_like_a_worker() -> int:
    """Pin this process to one core and set TensorFlow to one thread, as a pool does with workers.

    Returns:
        the core: the last one that there is, since a lone caller of a pool is answered by the
        worker of the last slot.
    """
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, (core,))
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return core


def template() -> psutil.Process:
    """Return the process that forks the workers of this process's pool."""
    (found,) = (
        child
        for child in psutil.Process().children()
        if any(part.endswith("_template.py") for part in child.cmdline())
    )
    return found
