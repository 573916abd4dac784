"""What workers do wrong in tests, on purpose.

Workers import this module, so nothing of pytest is in here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from predictpool import FunctionPredictor, _wire
from tests.stage import Stage

# The template imports it once for all workers.
PRELOAD = ("tests.misbehaviour",)


# --- at the end --------------------------------------------------------------------


class Parting(FunctionPredictor[Any]):
    """A predictor that does something when it should let go of its model."""

    def __init__(self, stage: Stage, part: Callable[[], object]) -> None:
        super().__init__(lambda: lambda x: x * 2, preload=PRELOAD)
        self.stage = stage
        self.part = part

    def close(self) -> None:
        """Tell the test, and do it."""
        self.stage.hold(os.getpid())
        self.part()


def exit_1() -> None:
    os._exit(1)


def segfault() -> None:
    ctypes.string_at(0)


def raise_an_error() -> None:
    raise ValueError("I do not want to let go")


def hang_in_c() -> None:
    ctypes.PyDLL(None).sleep(1000)


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leave_the_session() -> None:
    os.setsid()


def block_all_signals() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    every = ctypes.create_string_buffer(b"\xff" * 128, 128)
    libc.pthread_sigmask(signal.SIG_BLOCK, every, None)


def ignore_all_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:  # those that the C library keeps for itself
            continue


def resist_all_in_all() -> None:
    block_all_signals()
    ignore_all_signals()
    leave_the_session()


# --- in the middle of a frame ------------------------------------------------------

WIDTH = 12  # numbers in a row: with its header and schema a frame has about 200 bytes


def sums(x: Any) -> Any:
    """What the workers predict; every byte of it depends on the row."""
    return np.cumsum(x, axis=1) + 0.1


def request(value: float, cut: int = -1) -> Any:
    """One row; a worker that gets it for the first time dies after ``cut`` bytes."""
    row = np.full((1, WIDTH), value)
    row[0, 0] = cut
    return row


def first_time(folder: Path, cut: int) -> bool:
    """Whether nobody has died of this cut yet."""
    if cut < 0:
        return False
    try:
        (folder / str(cut)).mkdir()
    except FileExistsError:
        return False
    return True


def cutting_replies(stage: Stage) -> FunctionPredictor[Any]:
    """A predictor whose workers send only the beginning of a reply, and die."""
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        from predictpool import _worker

        send = _worker._send
        cuts: list[int] = []

        def send_a_part(connection: socket.socket, buffers: Any) -> None:
            data = b"".join(buffers)
            cut = cuts.pop() if cuts else len(data)
            if cut < len(data):
                connection.sendall(data[:cut])
                os._exit(1)
            send(connection, buffers)

        _worker._send = send_a_part

        def predict(x: Any) -> Any:
            cut = int(x[:, 0].max())
            if first_time(folder, cut):
                cuts.append(cut)
            return sums(x)

        return predict

    return FunctionPredictor(load, row_wise=True, preload=PRELOAD)


def cutting_requests(stage: Stage) -> FunctionPredictor[Any]:
    """A predictor whose workers receive only the beginning of a request, and die."""
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        from predictpool import _worker

        send = _worker._send

        def send_and_look_ahead(connection: socket.socket, buffers: Any) -> None:
            send(connection, buffers)
            if _wire.HEADER.unpack_from(b"".join(buffers))[1] == _wire.Kind.GOODBYE:
                return
            data = connection.recv(1 << 16, socket.MSG_PEEK)
            decoder = _wire.FrameDecoder()
            decoder.buffer[: len(data)] = data
            frame = next(iter(decoder.received(len(data))), None)
            if frame is None or frame.kind is not _wire.Kind.PREDICT:
                return
            numbers = np.frombuffer(frame.payload, np.float64).reshape(-1, WIDTH)
            cut = int(numbers[:, 0].max())
            if cut < len(data) and first_time(folder, cut):
                if cut:
                    connection.recv(cut)
                os._exit(1)

        _worker._send = send_and_look_ahead
        return sums

    return FunctionPredictor(load, row_wise=True, preload=PRELOAD)
