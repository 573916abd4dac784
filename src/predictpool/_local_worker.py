"""A worker process on this machine, from outside: its socket, its pidfd, its last words."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial

from predictpool import _wire
from predictpool._backend import Backend, Cancellable
from predictpool._cgroup import oom_kills
from predictpool._channel import Channel
from predictpool._columns import Parts, Schema, join_parts
from predictpool._launcher import End, Listener
from predictpool._shared_buffer import Copy, SharedBuffer
from predictpool._wire import SHARED, Frame, Kind
from predictpool._worker import Failure, Ready, Start

# How long to wait for the template's word on how a worker ended.
_STATUS_WAIT = 1.0
_REPORT_BYTES = 16384
# Payloads from this size on go through the shared buffer. A request of 128 KB took 0.9 of the
# time that it takes by the socket, one of 256 KB 0.8, one of 1 MB 0.5; below there is nothing
# to gain that pays for its memory.
SHARED_BYTES = 1 << 17


class LocalWorker:
    """A worker process: its socket, the memory shared with it, its pidfd and its last words."""

    def __init__(
        self,
        backend: Backend,
        listener: Listener,
        *,
        connection: socket.socket,
        pid: int,
        pidfd: int,
        report: int,
        buffer: int,
    ) -> None:
        self.pid = pid
        self.on_gone: Callable[[], object] = lambda: None
        self._backend = backend
        self._pidfd = pidfd
        self._report = report
        self._buffer = SharedBuffer(backend, buffer)
        self._oom_kills = oom_kills()
        self._listener: Listener = listener
        self._goodbye = False
        self._why = ""
        self._status: int | None = None
        self._status_known = False
        self._ending: Cancellable | None = None
        self._gone = False
        self._channel = Channel(backend, connection, self._on_frame, self._on_channel_end)
        self._watch: Cancellable | None = backend.on_readable(pidfd, self._on_exit)

    def begin(self, start: Start) -> None:
        """Send what it has to load."""
        self._channel.send(_wire.encode_message(Kind.START, 0, start))

    def send(self, batch_id: int, schema: Schema, requests: Sequence[Parts], rows: int) -> None:
        """Send a batch."""
        payload, size = join_parts(requests)
        joined = len(requests) > 1
        if size >= SHARED_BYTES:
            frame = partial(_wire.encode_frame, Kind.PREDICT, batch_id, rows=rows, joined=joined)
            self._send_large(batch_id, partial(frame, schema=schema.blob), payload, size)
            return
        self._channel.send(
            _wire.encode_frame(
                Kind.PREDICT,
                batch_id,
                rows=rows,
                joined=joined,
                schema=schema.blob,
                payload=payload,
                size=size,
            )
        )

    def stop(self) -> None:
        """Ask it to end in good order."""
        self._channel.send(_wire.encode_frame(Kind.STOP))

    def kill(self, why: str) -> None:
        """End it now; nothing that it still says is listened to."""
        if not self._gone and not self._why:
            self._why = why
            self._end()

    def on_status(self, status: int) -> None:
        """Take in what the template says of its end."""
        self._status, self._status_known = status, True
        self._on_exit()

    def on_status_unknown(self) -> None:
        """The template has gone: nobody will tell how this worker ends."""
        self._status_known = True
        if self._ending is not None:
            self._end()

    def close_in_forked_copy(self) -> None:
        """Let go of its descriptors in a forked copy of the application."""
        self._channel.close_in_forked_copy()
        self._buffer.close_in_forked_copy()

    def _send_large(
        self, batch_id: int, frame: Callable[..., Parts], payload: Parts, size: int
    ) -> None:
        """Copy a payload to where the worker can read it, then send the frame."""
        copy = Copy(self._buffer, batch_id, payload, size)

        def prepare() -> Parts | None:
            if not copy.step():
                return None
            if copy.offset is None:
                return frame(payload=payload, size=size)
            where = SHARED.pack(copy.offset, size)
            return frame(shared=True, payload=(where,), size=len(where))

        self._channel.send(prepare)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.ANSWER or frame.kind is Kind.ANSWER_OBJECT:
            self._buffer.release(frame.id)
            self._listener.answered(frame)
        elif frame.kind is Kind.GOODBYE:
            self._goodbye = True
        else:
            self._on_message(frame)

    def _on_message(self, frame: Frame) -> None:
        try:
            message = _wire.loads_cautiously(frame.payload)
        except Exception as error:  # noqa: BLE001 - unpickling can raise anything
            self.kill(f"sent a message that cannot be read ({error!r})")
            return
        if frame.kind is Kind.READY and isinstance(message, Ready):
            self._listener.ready(message)
        elif frame.kind is Kind.START_FAILED and isinstance(message, Failure):
            self._listener.start_failed(message)
        elif frame.kind is Kind.FAILURE and isinstance(message, Failure):
            self._buffer.release(frame.id)
            self._listener.failed(frame.id, message)
        else:
            self.kill(f"sent a {type(message).__name__} as {frame.kind.name}")

    def _on_channel_end(self, why: str) -> None:
        if why:
            self._why = f"sent what is no frame ({why})"
        self._end()

    def _on_exit(self) -> None:
        # What it sent before it ended still counts, and makes nobody its next customer.
        self._listener.ending()
        self._channel.drain()
        self._end()

    def _end(self) -> None:
        """Make sure that it ends, and report it once its status is known."""
        if self._gone:
            return
        self._channel.close()
        self._buffer.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        # Its socket may be closed while it runs on, in native code or a grandchild.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._status_known:
            self._report_end()
        elif self._ending is None:
            self._listener.ending()
            self._ending = self._backend.call_later(_STATUS_WAIT, self._report_end)

    def _report_end(self) -> None:
        if self._gone:
            return
        self._gone = True
        if self._ending is not None:
            self._ending.cancel()
        report = os.pread(self._report, _REPORT_BYTES, 0).decode(errors="replace")
        os.close(self._report)
        os.close(self._pidfd)
        self.on_gone()
        exitcode = ended_by = None
        if self._status is not None:
            if os.WIFSIGNALED(self._status):
                ended_by = os.WTERMSIG(self._status)
            else:
                exitcode = os.WEXITSTATUS(self._status)
        before, now = self._oom_kills, oom_kills()
        out_of_memory = None if before is None or now is None else now > before
        self._listener.ended(
            End(exitcode, ended_by, report, self._goodbye, self._why, out_of_memory)
        )
