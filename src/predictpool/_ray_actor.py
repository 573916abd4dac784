"""A worker that is a Ray actor: load, then answer one batch after another, wherever Ray put it.

Nothing of Ray is in here, and nothing of the event-loop side: the launcher makes an actor of
`Host`, whose methods Ray calls one after the other and in the same thread, but for `until_gone`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from predictpool import _wire
from predictpool._columns import SNAPSHOT_BYTES, OutputEncoder, Parts
from predictpool._devices import LIBRARIES, THREADS, Device
from predictpool._wire import Kind
from predictpool._worker import LOADING, Start, answer, describe, exit_by, load_predictor

Packed: TypeAlias = bytes | npt.NDArray[np.uint8]
"""A frame. Ray sends short bytes fastest; a large array lies in its shared memory, uncopied."""


@dataclass(frozen=True)
class Exited:
    """What stands in for a reply where the model would have ended its process.

    Attributes:
        status: the exit status.
        report: the traceback.
    """

    status: int
    report: str


def pack(parts: Parts) -> Packed:
    """Return a frame as Ray is to send it."""
    data = b"".join(parts)
    return data if len(data) <= SNAPSHOT_BYTES else np.frombuffer(data, np.uint8)


class Host:
    """Holds one predictor. Each method but `pid` and `until_gone` replies with a packed frame."""

    def __init__(self) -> None:
        self._predictor: Any = None
        self._encoder = OutputEncoder()

    def pid(self) -> int:
        """Return the process id, once Ray has placed the actor."""
        return os.getpid()

    def until_gone(self) -> None:
        """Never return: whoever waits for it learns of the actor's end at once.

        Ray calls it in a thread of its own.
        """
        threading.Event().wait()

    def load(self, start: Start) -> Packed | Exited:
        """Load the predictor and warm it up."""
        _set_environment(start.device)
        LOADING.set()
        try:
            self._predictor, ready = load_predictor(start)
            return pack(_wire.encode_message(Kind.READY, 0, ready))
        except Exception as error:  # noqa: BLE001 - whatever it is, the application is told
            return pack(_wire.encode_message(Kind.START_FAILED, 0, describe(error)))
        except BaseException as error:  # noqa: BLE001 - Ray would wait for ever in this thread
            return _exited(error)
        finally:
            LOADING.clear()

    def predict(self, data: Packed) -> Packed | Exited:
        """Answer a batch."""
        view = memoryview(data) if isinstance(data, bytes) else data.data
        frame = _wire.decode_frame(view.toreadonly())
        try:
            payload = attrgetter("payload")
            return pack(answer(self._predictor, self._encoder, payload, frame))
        except BaseException as error:  # noqa: BLE001 - as above: SystemExit, CancelledError
            return _exited(error)

    def close(self) -> Packed | Exited:
        """Let go of the model."""
        try:
            self._predictor.close()
        except BaseException as error:  # noqa: BLE001 - it would have ended a process
            return _exited(error)
        return pack(_wire.encode_frame(Kind.GOODBYE))


def _exited(error: BaseException) -> Exited:
    """Return how a process would have ended that raised this."""
    return Exited(*exit_by(error))


def _set_environment(device: Device) -> None:
    """Have libraries take what was asked for; Ray itself has set what they read at their import."""
    threads = str(device.threads)
    for name, value in {**LIBRARIES, **dict.fromkeys(THREADS, threads)}.items():
        os.environ.setdefault(name, value)
    if device.kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without a GPU to give, Ray leaves it alone
