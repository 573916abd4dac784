"""Every error of predictpool.

::

    PredictorPoolError
    ├── PoolClosed
    ├── PoolTimeout            (also a TimeoutError)
    ├── TooManyRequests
    ├── InvalidFeatures        (also a ValueError)
    ├── WorkerError
    │   ├── WorkerStartError
    │   └── BrokenWorkerError
    └── PredictionError

All of them carry what happened as attributes and survive pickling.
"""

from __future__ import annotations

from typing import Any


class PredictorPoolError(Exception):
    """Base class of every error that predictpool raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args` alone, which fails for every
        # class with required keywords; the attributes are restored instead.
        return (_rebuild, (type(self), self.args, self.__dict__))


class PoolClosed(PredictorPoolError):
    """Raised when a pool is used before it was opened or after it was closed."""


class PoolTimeout(PredictorPoolError, TimeoutError):
    """Raised when a request's deadline passes before its answer is there.

    Attributes:
        timeout: the limit of this call, in seconds.
        waited: seconds that the request spent in the queue.
        ran: seconds that it spent in a worker; 0.0 if it never reached one.
    """

    def __init__(self, message: str, *, timeout: float, waited: float, ran: float) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.waited = waited
        self.ran = ran


class TooManyRequests(PredictorPoolError):
    """Raised at once when ``max_waiting`` requests are waiting already.

    Attributes:
        waiting: how many requests were waiting.
        max_waiting: the pool's limit.
    """

    def __init__(self, message: str, *, waiting: int, max_waiting: int) -> None:
        super().__init__(message)
        self.waiting = waiting
        self.max_waiting = max_waiting


class InvalidFeatures(PredictorPoolError, ValueError):
    """Raised when features do not fit the signature, before the model sees them.

    Attributes:
        feature: the name of the feature, or None where it is not about a single one.
        given: what was given, in words.
        expected: what is expected, in words.
    """

    def __init__(
        self, message: str, *, feature: str | None = None, given: str = "", expected: str = ""
    ) -> None:
        super().__init__(message)
        self.feature = feature
        self.given = given
        self.expected = expected


class WorkerError(PredictorPoolError):
    """Base class of what goes wrong with a worker process.

    Attributes:
        slot: the number of the worker's slot, from 0.
        pid: its process id, or None if it never had one.
    """

    def __init__(self, message: str, *, slot: int, pid: int | None) -> None:
        super().__init__(message)
        self.slot = slot
        self.pid = pid


class WorkerStartError(WorkerError):
    """Raised when a worker cannot load or warm up its predictor, or takes too long to.

    Attributes:
        traceback: the traceback of the worker (or of the template process), or ``""``.
    """

    def __init__(self, message: str, *, slot: int, pid: int | None, traceback: str = "") -> None:
        super().__init__(message, slot=slot, pid=pid)
        self.traceback = traceback


class BrokenWorkerError(WorkerError):
    """Raised when a worker died, or was killed, while it ran the request.

    Attributes:
        exitcode: the exit status, or None where a signal ended it or nobody knows.
        signal: the number of the signal that ended it, or None.
        crash_report: what ``faulthandler`` wrote in the dying worker, or ``""``.
        cause: the likely cause, in words, or ``""``. A kill by the kernel for lack of
            memory is told from others where the control group counts it.
    """

    def __init__(
        self,
        message: str,
        *,
        slot: int,
        pid: int | None,
        exitcode: int | None = None,
        signal: int | None = None,
        crash_report: str = "",
        cause: str = "",
    ) -> None:
        super().__init__(message, slot=slot, pid=pid)
        self.exitcode = exitcode
        self.signal = signal
        self.crash_report = crash_report
        self.cause = cause


class PredictionError(PredictorPoolError):
    """Raised when the model raised something that cannot be rebuilt in this process.

    An exception comes back as its own type only if that type is built in or its module
    is imported here already: rebuilding a TensorFlow error would import TensorFlow into
    the application. This error stands in for all others.

    Attributes:
        type_name: the qualified name of the original exception's type.
        traceback: the worker's traceback, as text.
    """

    def __init__(self, message: str, *, type_name: str, traceback: str) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback = traceback


def _rebuild(
    cls: type[PredictorPoolError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> PredictorPoolError:
    error = cls.__new__(cls, *args)
    error.args = args  # OSError, the base of TimeoutError, leaves them to its __init__
    error.__dict__.update(attributes)
    return error
