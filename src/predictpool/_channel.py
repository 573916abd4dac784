"""The application's end of a worker's socket: frames out, frames in, never blocking."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TypeAlias

from predictpool._backend import Backend, Cancellable
from predictpool._columns import Buffer, Parts, WireError
from predictpool._wire import Frame, FrameDecoder

# The most that is read or written before other callbacks of the loop get their turn.
_BUDGET = 1 << 20
_BUFFERS_AT_ONCE = 256

Prepare: TypeAlias = Callable[[], Parts | None]
"""Makes a step towards a frame; returns the frame after the last step."""


class Channel:
    """Frames to and from one worker.

    Args:
        on_frame: called with each frame.
        on_end: called once, with "" when the worker's end is closed, or with what was
            wrong with the bytes it sent.
    """

    def __init__(
        self,
        backend: Backend,
        connection: socket.socket,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[str], None],
    ) -> None:
        connection.setblocking(False)
        self._backend = backend
        self._connection = connection
        self._on_frame = on_frame
        self._on_end = on_end
        self._decoder = FrameDecoder()
        self._pending: deque[Buffer] = deque()
        self._waiting: deque[Parts | Prepare] = deque()
        self._reading: Cancellable | None = backend.on_readable(
            connection.fileno(), self._on_readable
        )
        self._writing: Cancellable | None = None

    def send(self, frame: Parts | Prepare) -> None:
        """Send a frame, now or as soon as the worker takes it. Never blocks.

        Args:
            frame: its buffers, or what prepares them: it is called once in each turn of
                the loop, when all frames before have been sent.
        """
        if self._reading is None:
            return  # closed: whoever waits for an answer learns it from the worker's end
        if self._waiting or callable(frame):
            self._waiting.append(frame)
        else:
            self._pending.extend(frame)
        if self._writing is None:
            self._flush()

    def close(self) -> None:
        """Close the socket; no callback comes after this."""
        for watch in (self._reading, self._writing):
            if watch is not None:
                watch.cancel()
        self._reading = self._writing = None
        self._forget()
        self._connection.close()

    def close_in_forked_copy(self) -> None:
        """Close the descriptor and leave the event loop, which is the parent's, alone."""
        self._connection.close()

    def drain(self) -> None:
        """Take in everything that a worker sent before it ended."""
        while self._reading is not None and self._read(_BUDGET):
            pass

    def _on_readable(self) -> None:
        self._read(_BUDGET)

    def _read(self, budget: int) -> bool:
        """Receive and decode; True if there may be more at once."""
        while budget > 0:
            buffer = self._decoder.buffer
            try:
                count = self._connection.recv_into(buffer)
                frames = self._decoder.received(count)
            except BlockingIOError:
                return False
            except WireError as error:
                self._end(str(error))
                return False
            except OSError:  # a reset: it ended with something of ours unread
                count, frames = 0, []
            if count == 0:
                self._end("")
                return False
            full = count == len(buffer)
            for frame in frames:
                self._on_frame(frame)
                if self._reading is None:
                    return False
            # The rest of a frame is on its way, and the loop's next turn may be later.
            if not full and self._decoder.between_frames:
                return False
            budget -= count
        return True

    def _end(self, why: str) -> None:
        self.close()
        self._on_end(why)

    def _flush(self) -> None:
        budget = _BUDGET
        while budget > 0 and (self._pending or (self._waiting and self._prepare())):
            try:
                if len(self._pending) == 1:
                    sent = self._connection.send(self._pending[0])
                else:
                    sent = self._connection.sendmsg(list(islice(self._pending, _BUFFERS_AT_ONCE)))
            except BlockingIOError:
                break
            except OSError:
                # The worker has gone; reading the socket to its end tells the rest.
                self._forget()
                break
            budget -= sent
            self._advance(sent)
        self._watch_writable(bool(self._pending or self._waiting))

    def _prepare(self) -> bool:
        """Go on to the next frame; False if it is not complete yet."""
        frame = self._waiting[0]
        parts = frame() if callable(frame) else frame
        if parts is None:
            return False
        self._waiting.popleft()
        self._pending.extend(parts)
        return True

    def _forget(self) -> None:
        self._pending.clear()
        self._waiting.clear()

    def _advance(self, sent: int) -> None:
        while sent:
            buffer = self._pending.popleft()
            if len(buffer) > sent:
                self._pending.appendleft(memoryview(buffer)[sent:])
                return
            sent -= len(buffer)
        # Empty buffers would make sendmsg report 0 bytes for ever.
        while self._pending and not len(self._pending[0]):
            self._pending.popleft()

    def _watch_writable(self, wanted: bool) -> None:
        if wanted and self._writing is None:
            self._writing = self._backend.on_writable(self._connection.fileno(), self._flush)
        elif not wanted and self._writing is not None:
            self._writing.cancel()
            self._writing = None
