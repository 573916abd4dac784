"""The application's end of the memory that it shares with one worker, for large payloads.

What goes through a socket is copied twice and cut into pieces of a few kilobytes. Here the
application copies it once, into a memfd that the worker has mapped. What is where, and
when a place is free again, both ends agree on by frames on the socket.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Iterable, Iterator

from predictpool._backend import Backend, Cancellable
from predictpool._columns import SNAPSHOT_BYTES, Buffer

logger = logging.getLogger("predictpool")

# How much is copied or given back before other callbacks of the loop get their turn: 1 MB
# took 0.1 ms where the buffer had memory for it, 0.5 ms where it had not. Steps of 2 and
# 4 MB made 16 MB 5 % faster on asyncio, 13 % on trio; the loop was held twice as long.
STEP_BYTES = 1 << 20
# A buffer that nothing has used for so many seconds gives its memory back. Whoever comes
# more seldom than that pays for new memory, 0.4 ms for each MB.
KEEP_SECONDS = 10.0


def create_memory() -> int:
    """Return a new memfd: empty, and never to shrink under those who have mapped it."""
    descriptor = os.memfd_create("predictpool-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SharedBuffer:
    """Memory that the application writes and one worker reads.

    It grows by writing to the file, so that lack of memory is an OSError and no SIGBUS.
    Where there is memory already it is written through a mapping, which took a fifth of
    the time.

    Args:
        descriptor: from `create_memory`; from now on it is this object's to close.
    """

    def __init__(self, backend: Backend, descriptor: int) -> None:
        self._backend = backend
        self._descriptor = descriptor
        self._mapping: mmap.mmap | None = None
        self._view = memoryview(b"")
        self._size = 0  # up to here the file has memory
        self._taken: dict[int, tuple[int, int]] = {}
        self._no_memory = False
        self._used = False
        self._timer: Cancellable | None = None

    def take(self, batch_id: int, size: int) -> int | None:
        """Take a place for a batch, until `release`.

        Returns:
            its offset in bytes, or None after there was no memory for another batch.

        Raises:
            OSError: what memory there is cannot be mapped.
        """
        if self._no_memory:
            return None
        if len(self._view) < self._size:
            self._map()
        offset = 0
        for begin, end in sorted(self._taken.values()):
            if offset + size <= begin:
                break
            offset = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        self._taken[batch_id] = offset, offset + size
        return offset

    def release(self, batch_id: int) -> None:
        """Take back the place of a batch, if it has one: its worker needs it no more."""
        if self._taken.pop(batch_id, None) is not None:
            self._used = True
            if self._timer is None:
                self._timer = self._backend.call_later(KEEP_SECONDS, self._on_timer)

    def write(self, data: memoryview, offset: int) -> None:
        """Write to a place that was taken.

        Raises:
            OSError: there is no memory for it.
        """
        there = data[: max(0, min(len(self._view), self._size) - offset)]
        if there:
            self._view[offset : offset + len(there)] = there
        new, offset = data[len(there) :], offset + len(there)
        while new:
            count = os.pwrite(self._descriptor, new, offset)
            new, offset = new[count:], offset + count
            self._size = max(self._size, offset)

    def give_up(self, batch_id: int, error: OSError) -> None:
        """Take no more batches, until what memory there is was given back."""
        self._note_failure(error)
        self.release(batch_id)

    def close(self) -> None:
        """Let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unmap()
        self.close_in_forked_copy()

    def close_in_forked_copy(self) -> None:
        """Close the descriptor and leave the event loop, which is the parent's, alone."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _note_failure(self, error: OSError) -> None:
        if not self._no_memory:
            logger.warning("no memory is shared with a worker: %s; large arrays are sent", error)
            self._no_memory = True

    def _map(self) -> None:
        self._unmap()
        self._mapping = mmap.mmap(self._descriptor, self._size)
        self._view = memoryview(self._mapping)

    def _unmap(self) -> None:
        self._view.release()
        self._view = memoryview(b"")
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def _on_timer(self) -> None:
        used, self._used, self._timer = self._used, False, None
        if self._taken:
            return  # `release` will set the timer
        if used:
            self._timer = self._backend.call_later(KEEP_SECONDS, self._on_timer)
            return
        try:
            self._give_back()
        except OSError as error:
            self._note_failure(error)
            self._timer = self._backend.call_later(KEEP_SECONDS, self._on_timer)
            return
        if self._size:
            self._timer = self._backend.call_later(0.0, self._on_timer)

    def _give_back(self) -> None:
        """Make a hole of the last piece that has memory. The file remains as long as it is."""
        if len(self._view) < self._size:
            self._map()
        if self._mapping is not None:
            keep = max(0, self._size - 1) // STEP_BYTES * STEP_BYTES
            self._mapping.madvise(mmap.MADV_REMOVE, keep, self._size - keep)
            self._size = keep
        if not self._size:
            self._unmap()
            self._no_memory = False


class Copy:
    """The payload of a batch on its way into a shared buffer.

    Attributes:
        offset: its place, in bytes; None before the first step, and where there is no
            memory for it.
    """

    def __init__(
        self, buffer: SharedBuffer, batch_id: int, parts: Iterable[Buffer], size: int
    ) -> None:
        self.offset: int | None = None
        self._buffer = buffer
        self._batch_id = batch_id
        self._size = size
        self._left = size
        self._pieces = _pieces(parts)
        self._piece = memoryview(b"")

    def step(self) -> bool:
        """Copy up to `STEP_BYTES`. Returns whether nothing is left to do."""
        try:
            if self.offset is None:
                self.offset = self._buffer.take(self._batch_id, self._size)
            if self.offset is None:
                return True
            self._copy(self.offset + self._size - self._left)
        except OSError as error:
            self._buffer.give_up(self._batch_id, error)
            self.offset = None
            return True
        return not self._left

    def _copy(self, offset: int) -> None:
        end = offset + min(self._left, STEP_BYTES)
        while offset < end:
            piece = self._piece or next(self._pieces)
            now, self._piece = piece[: end - offset], piece[end - offset :]
            self._buffer.write(now, offset)
            offset += len(now)
            self._left -= len(now)


def _pieces(parts: Iterable[Buffer]) -> Iterator[memoryview]:
    """Yield what the parts have, none of it empty, small ones together."""
    small: list[Buffer] = []
    size = 0
    for part in parts:
        large = len(part) > SNAPSHOT_BYTES
        if size and (large or size >= STEP_BYTES):
            yield memoryview(b"".join(small))
            small, size = [], 0
        if large:
            yield memoryview(part)
        else:
            small.append(part)
            size += len(part)
    if size:
        yield memoryview(b"".join(small))
