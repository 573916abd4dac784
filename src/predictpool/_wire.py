"""Frames: what the application and its workers agree on, without any I/O.

A frame is a fixed header, a schema and a payload of columns (see `predictpool._columns`)::

    magic:u16 kind:u8 flags:u8 schema:u32 id:u64 rows:u64 payload:u64 | schema | payload

The payload of a batch may be in memory that both ends share; the frame's own then says
where (`SHARED`).

Pickle (protocol 5) carries only what is no array: messages, objects, exceptions. Those
frames have no schema.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from predictpool._columns import SNAPSHOT_BYTES, Buffer, Parts, WireError

HEADER = struct.Struct("<HBBIQQQ")
MAGIC = 0x5050
SHARED = struct.Struct("<QQ")  # where in the shared memory, and how many bytes
_JOINED, _SHARED = 1, 2  # the flags
MAX_SCHEMA = 1 << 26
MAX_PAYLOAD = 1 << 40
MAX_REQUEST = 1 << 34


class Kind(IntEnum):
    """What a frame is about. The first three go to the worker, the others come from it."""

    START = 1
    PREDICT = 2
    STOP = 3
    READY = 4
    START_FAILED = 5
    ANSWER = 6
    ANSWER_OBJECT = 7
    FAILURE = 8
    GOODBYE = 9


_KINDS = {int(kind): kind for kind in Kind}


# --- pickles -----------------------------------------------------------------------


class ForeignType(Exception):
    """Raised when a pickle needs a module that this process has not imported."""


class _CautiousUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, name: str) -> Any:
        if module_name not in sys.modules:
            raise ForeignType(f"{module_name}.{name}")
        return super().find_class(module_name, name)


def loads_cautiously(data: Buffer) -> Any:
    """Unpickle without importing anything.

    Importing what a worker's answer names, TensorFlow for one, would stop the event loop
    for seconds.

    Raises:
        ForeignType: the pickle names a module that is not imported here.
    """
    return _CautiousUnpickler(io.BytesIO(data)).load()


# --- frames ------------------------------------------------------------------------


_Header: TypeAlias = tuple[int, int, int, int, int, int, int]


class Frame(NamedTuple):
    """One received frame. ``payload`` belongs to the receiver and is writable.

    ``joined``: whether it is of several requests. ``shared``: whether the payload says
    where in the shared memory the real one is.
    """

    kind: Kind
    id: int
    rows: int
    joined: bool
    shared: bool
    schema: bytes
    payload: memoryview


def encode_frame(
    kind: Kind,
    id: int = 0,
    *,
    rows: int = 0,
    joined: bool = False,
    shared: bool = False,
    schema: bytes = b"",
    payload: Iterable[Buffer] = (),
    size: int = 0,
) -> Parts:
    """Return the buffers of a frame, in order. ``size`` is the payload's, in bytes.

    Raises:
        WireError: the payload or the schema is larger than a frame can be.
    """
    if size > MAX_PAYLOAD or len(schema) > MAX_SCHEMA:
        raise WireError(
            f"a message of {size + len(schema):,} bytes is larger than a frame can be "
            f"({MAX_PAYLOAD:,}): send fewer rows in one request"
        )
    flags = joined * _JOINED | shared * _SHARED
    header = HEADER.pack(MAGIC, kind, flags, len(schema), id, rows, size)
    if size <= SNAPSHOT_BYTES:
        return [b"".join((header, schema, *payload))]
    return [header + schema, *payload]


def encode_message(kind: Kind, id: int, message: Any) -> Parts:
    """Return the buffers of a frame that carries one pickled object."""
    data = pickle.dumps(message, protocol=5)
    return encode_frame(kind, id, payload=(data,), size=len(data))


def decode_frame(whole: memoryview) -> Frame:
    """Return the frame that these bytes are; its payload is a view of them.

    Raises:
        WireError: they are no frame, or not exactly one.
    """
    if len(whole) < HEADER.size:
        raise WireError(f"{len(whole)} bytes are too few for a frame")
    _, kind, flags, schema, id, rows, size = _check_header(HEADER.unpack_from(whole))
    middle = HEADER.size + schema
    if middle + size != len(whole):
        raise WireError(f"a frame of {middle + size:,} bytes came with {len(whole):,}")
    joined, shared = bool(flags & _JOINED), bool(flags & _SHARED)
    return Frame(
        _KINDS[kind], id, rows, joined, shared, bytes(whole[HEADER.size : middle]), whole[middle:]
    )


class FrameDecoder:
    """Turns received bytes into frames; sans-I/O.

    Receive into `buffer`, then call `received` with the number of bytes. Frames that fit
    are cut out of a scratch buffer; a larger one is received straight into its own.
    """

    def __init__(self) -> None:
        self._memory = bytearray(1 << 16)
        self._scratch = memoryview(self._memory)
        self._filled = 0
        self._header: _Header | None = None
        self._body: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """Where the next bytes go. Never empty."""
        whole = self._scratch if self._body is None else self._body
        return whole[self._filled :] if self._filled else whole

    @property
    def between_frames(self) -> bool:
        """Whether every frame that began has ended."""
        return self._body is None and self._filled == 0

    def received(self, count: int) -> list[Frame]:
        """Take in ``count`` bytes that were written to `buffer`.

        Raises:
            WireError: the bytes are no frame, or one of impossible size.
        """
        self._filled += count
        if self._body is not None:
            return self._finish_large() if self._filled == len(self._body) else []
        frames: list[Frame] = []
        start, filled = 0, self._filled
        while filled - start >= HEADER.size:
            header = _check_header(HEADER.unpack_from(self._scratch, start))
            begin = start + HEADER.size
            end = begin + header[3] + header[6]
            if end <= filled:
                frames.append(self._cut(header, begin, end))
                start = end
            elif end - start > len(self._scratch):
                self._begin_large(header, begin)
                return frames
            else:
                break
        self._filled = filled - start
        if start and self._filled:
            self._scratch[: self._filled] = self._memory[start:filled]
        return frames

    def _cut(self, header: _Header, begin: int, end: int) -> Frame:
        _, kind, flags, schema, id, rows, _ = header
        middle = begin + schema
        return Frame(
            _KINDS[kind],
            id,
            rows,
            bool(flags & _JOINED),
            bool(flags & _SHARED),
            bytes(self._scratch[begin:middle]),
            memoryview(self._memory[middle:end]),
        )

    def _begin_large(self, header: _Header, begin: int) -> None:
        size = header[3] + header[6]
        try:
            body = np.empty(size, np.uint8).data
        except MemoryError as error:
            raise WireError(f"a frame of {size:,} bytes does not fit into memory") from error
        have = self._filled - begin
        body[:have] = self._scratch[begin : self._filled]
        self._header, self._body, self._filled = header, body, have

    def _finish_large(self) -> list[Frame]:
        assert self._header is not None
        assert self._body is not None
        _, kind, flags, schema, id, rows, _ = self._header
        body = self._body
        self._header, self._body, self._filled = None, None, 0
        joined, shared = bool(flags & _JOINED), bool(flags & _SHARED)
        begin = bytes(body[:schema])
        return [Frame(_KINDS[kind], id, rows, joined, shared, begin, body[schema:])]


def _check_header(header: _Header) -> _Header:
    magic, kind, _, schema, _, _, payload = header
    if magic != MAGIC or kind not in _KINDS:
        raise WireError(f"not the beginning of a frame: {HEADER.pack(*header)!r}")
    if schema > MAX_SCHEMA or payload > MAX_PAYLOAD:
        raise WireError(f"impossible size of a frame: {schema} + {payload} bytes")
    return header
