"""The raw socket: bytes to one forked process and back, over a blocking socketpair.

This is what the kernel takes to carry a message, and little else: both ends know beforehand how
long it is, `sendmsg` takes it from where it lies, `recv_into` puts it into memory that is used
again. Nothing is named, checked or allocated; there is no event loop, no queue, no
deadline, and one caller.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from benchmarks import harness

LARGE_BUFFER = 1 << 22

Place = Literal["anywhere", "the worker's core", "another core"]
Ask = Callable[[memoryview], memoryview]


@contextmanager
def process(
    answer: Ask,
    *,
    sent: int,
    returned: int,
    place: Place = "anywhere",
    large_buffers: bool = False,
) -> Iterator[Ask]:
    """Fork a process that answers messages; yield what sends one and returns the answer.

    Args:
        answer: called in that process with what it has received.
        sent, returned: how many bytes each message and each answer has.
        place: where the caller runs while this lasts. The process is pinned, as a pool's worker is.
        large_buffers: ask for `LARGE_BUFFER` bytes in the socket instead of the system's default.
    """
    ours, theirs = socket.socketpair()
    if large_buffers:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE_BUFFER)
    before = os.sched_getaffinity(0)
    core = max(before)  # where the pool's first worker is
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.sched_setaffinity(0, (core,))
        harness.end_with(lambda: _work(theirs, answer, sent))
    theirs.close()
    received = memoryview(bytearray(returned))

    def ask(message: memoryview) -> memoryview:
        _send(ours, message)
        _receive(ours, received)
        return received

    os.sched_setaffinity(0, _cores(place, before, core))
    try:
        yield ask
    finally:
        os.sched_setaffinity(0, before)
        ours.close()
        os.waitpid(pid, 0)


def places() -> list[Place]:
    """Return where a caller can run on this machine."""
    listed: list[Place] = ["anywhere", "the worker's core"]
    return [*listed, "another core"] if len(os.sched_getaffinity(0)) > 1 else listed


def _cores(place: Place, available: set[int], core: int) -> set[int]:
    return {"anywhere": available, "the worker's core": {core}, "another core": available - {core}}[
        place
    ]


def _work(connection: socket.socket, answer: Callable[[memoryview], Any], sent: int) -> None:
    buffer = memoryview(bytearray(sent))
    while _receive(connection, buffer):
        _send(connection, answer(buffer))


def _send(connection: socket.socket, message: memoryview) -> None:
    sent = connection.sendmsg((message,))
    while sent < len(message):
        sent += connection.sendmsg((message[sent:],))


def _receive(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill the buffer; False if the other end has closed instead."""
    have = connection.recv_into(buffer)
    while 0 < have < len(buffer):
        more = connection.recv_into(buffer[have:])
        if not more:
            raise EOFError(f"the other end closed after {have} of {len(buffer)} bytes")
        have += more
    return have > 0
