"""Frames: what the application and its workers agree on, without any I/O.

A frame is a fixed header, a *schema* and a *payload*::

    magic:u16 kind:u8 flags:u8 schema:u32 id:u64 rows:u64 payload:u64 | schema | payload

The schema names the columns of the payload with dtype and shape, as JSON padded with
blanks to a multiple of eight bytes. Requests of one kind share it, so both ends keep
schemas by their bytes and the JSON is read once. A column is one segment of raw bytes,
or, where its elements differ in length, a segment of lengths and one of data. Segments
are padded to eight bytes, so that every array can be used where it was received.

Pickle (protocol 5) carries only what is no array: messages, objects, exceptions.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview
Parts: TypeAlias = list[Buffer]

HEADER = struct.Struct("<HBBIQQQ")
MAGIC = 0x5050
MAX_SCHEMA = 1 << 26
MAX_PAYLOAD = 1 << 40
MAX_REQUEST = 1 << 34

# Up to this size an array is copied when it is encoded, so that its owner may change
# it at once; beyond, the copy would cost more than the promise is worth (design: "small
# inputs are snapshotted").
SNAPSHOT_BYTES = 1 << 16

_ALIGNMENT = 8
_PADDING = bytes(_ALIGNMENT)
_RAW_KINDS = frozenset("biufcSUMm")
_VARYING = ("bytes", "str", "object")
_LENGTH = struct.Struct("<Q")
# What `dtype.str` can be for these kinds. numpy reads much more, some of it as an object
# dtype (raw bytes would become pointers) or with a size that has wrapped around.
_RAW_CODE = re.compile(r"[<>|][biufcSUMm]\d{1,9}(\[\d*[a-zA-Z]+\])?")


class WireError(Exception):
    """Raised when bytes cannot be a frame; the connection is of no use any more."""


class Unencodable(Exception):
    """Raised when an array's dtype has no representation in a frame."""


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


_KINDS = frozenset(Kind)


class Column(NamedTuple):
    """One array of a payload.

    ``code`` is a numpy dtype string (``"<f4"``), or ``"bytes"``, ``"str"`` or
    ``"object"`` for elements of varying length. Where ``per_row`` is set, ``shape``
    leaves out the first axis, which is the frame's number of rows.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    per_row: bool = True


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns of a payload. Equal schemas are the same object: see `make_schema`."""

    columns: tuple[Column, ...]
    mapping: bool
    blob: bytes = field(repr=False)
    steps: tuple[_Step, ...] = field(repr=False)


class _Step(NamedTuple):
    """A column, prepared for decoding.

    ``width`` is the size of a row (of the whole column where it is not ``per_row``): in
    bytes, or, where ``dtype`` is None, in elements.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    per_row: bool
    dtype: np.dtype[Any] | None
    width: int


@lru_cache(maxsize=4096)
def make_schema(columns: tuple[Column, ...], mapping: bool) -> Schema:
    """Return the one schema object for these columns.

    Raises:
        WireError: a column has a dtype that does not travel.
    """
    blob = json.dumps([mapping, columns], separators=(",", ":")).encode()
    steps = tuple(_make_step(column) for column in columns)
    return Schema(columns, mapping, blob + b" " * (-len(blob) % _ALIGNMENT), steps)


def _make_step(column: Column) -> _Step:
    dtype = None if column.code in _VARYING else _raw_dtype(column.code)
    width = math.prod(column.shape) * (1 if dtype is None else dtype.itemsize)
    return _Step(*column, dtype, width)


@lru_cache(maxsize=4096)
def parse_schema(blob: bytes) -> Schema:
    """Return the schema that these bytes describe.

    Raises:
        WireError: the bytes are no schema.
    """
    try:
        mapping, raw = json.loads(blob)
        columns = tuple(
            Column(str(name), str(code), tuple(map(int, shape)), bool(per_row))
            for name, code, shape, per_row in raw
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"not a schema: {blob[:80]!r}") from error
    if any(axis < 0 for column in columns for axis in column.shape):
        raise WireError(f"negative axis in schema: {blob[:80]!r}")
    if len({column.name for column in columns}) < len(columns):
        raise WireError(f"two columns of one name in schema: {blob[:80]!r}")
    if not mapping and len(columns) != 1:
        raise WireError(f"one array has to have one column: {blob[:80]!r}")
    return make_schema(columns, bool(mapping))


# --- columns -----------------------------------------------------------------------


def column_code(values: Array) -> str:
    """Return how an array travels: its dtype string, "bytes", "str" or "object".

    Raises:
        Unencodable: structured and extension dtypes.
    """
    kind = values.dtype.kind
    if kind in _RAW_KINDS:
        return values.dtype.str
    if kind != "O":
        raise Unencodable(f"dtype {values.dtype}")
    types = set(map(type, values.flat))
    if types <= {bytes}:
        return "bytes"
    return "str" if types == {str} else "object"


def encode_column(values: Array, code: str, dumps: Callable[[Any], bytes] = pickle.dumps) -> Parts:
    """Return the segments of one column: raw bytes, or lengths and data."""
    if code == "bytes":
        items = values.ravel().tolist()
    elif code == "str":
        items = [text.encode("utf-8", "surrogatepass") for text in values.ravel().tolist()]
    elif code == "object":
        items = [dumps(item) for item in values.ravel().tolist()]
    elif values.nbytes <= SNAPSHOT_BYTES:
        return [values.tobytes()]
    else:
        return [np.ascontiguousarray(values).reshape(-1).view(np.uint8).data]
    return pack_items(items)


def pack_items(items: list[bytes]) -> Parts:
    """Return the segments of elements of varying length: their lengths, and themselves."""
    return [array("Q", map(len, items)).tobytes(), b"".join(items)]


def join_parts(requests: Sequence[Parts]) -> tuple[Parts, int]:
    """Join the segments of several requests, column by column.

    Returns:
        the buffers of the payload in order, padding included, and their total size.
    """
    buffers: Parts = []
    size = 0
    for segment in zip(*requests, strict=True):
        buffers.extend(segment)
        length = sum(map(len, segment))
        padding = -length % _ALIGNMENT
        if padding:
            buffers.append(_PADDING[:padding])
        size += length + padding
    return buffers, size


@lru_cache(maxsize=4096)
def _raw_dtype(code: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(code) if _RAW_CODE.fullmatch(code) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.itemsize < 0:
        raise WireError(f"dtype {code!r} does not travel as raw bytes")
    return dtype


def decode_payload(
    schema: Schema, rows: int, payload: Buffer, loads: Callable[[bytes], Any] = pickle.loads
) -> dict[str, Array] | Array:
    """Return the arrays of a payload, as views into it where they are raw.

    Raises:
        WireError: sizes and schema do not agree.
    """
    view = memoryview(payload)
    arrays: dict[str, Array] = {}
    offset = 0
    for name, code, row_shape, per_row, dtype, width in schema.steps:
        shape = (rows, *row_shape) if per_row else row_shape
        size = width * rows if per_row else width
        if dtype is not None:
            arrays[name] = _array_at(view, offset, shape, dtype, size)
        else:
            items, size = _items_at(view, offset, size)
            arrays[name] = _object_array(_decode_items(items, code, loads), shape)
        offset += size + -size % _ALIGNMENT
    if offset != len(view):
        raise WireError(f"{len(view) - offset} bytes beyond the last column")
    return arrays if schema.mapping else arrays[schema.columns[0].name]


def _array_at(
    view: memoryview, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], size: int
) -> Array:
    if offset + size > len(view):
        raise _too_short(view)
    try:
        return np.ndarray(shape, dtype, view, offset)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise WireError(f"impossible shape {shape}") from error


def _items_at(view: memoryview, offset: int, count: int) -> tuple[list[bytes], int]:
    """Return elements of varying length, and the size of their lengths and data together."""
    start = offset + 8 * count
    if start > len(view):
        raise _too_short(view)
    if count == 1:  # one row of one value: what most requests are made of
        ends = _LENGTH.unpack_from(view, offset)
        items = [bytes(view[start : start + ends[0]])]
    else:
        lengths = view[offset:start].cast("Q").tolist()
        ends = tuple(accumulate(lengths, initial=0))
        data = bytes(view[start : start + ends[-1]])
        items = [data[begin:end] for begin, end in pairwise(ends)]
    if start + ends[-1] > len(view):
        raise _too_short(view)
    return items, 8 * count + ends[-1]


def _too_short(view: memoryview) -> WireError:
    return WireError(f"a payload of {len(view)} bytes ends inside a column")


def _decode_items(items: list[bytes], code: str, loads: Callable[[bytes], Any]) -> list[Any]:
    if code == "bytes":
        return items
    if code == "object":
        return [loads(item) for item in items]
    try:
        return [item.decode("utf-8", "surrogatepass") for item in items]
    except UnicodeDecodeError as error:
        raise WireError(f"no text in a column of text: {error}") from error


def _object_array(items: list[Any], shape: tuple[int, ...]) -> Array:
    try:
        values = np.empty(shape, object)
    except (ValueError, OverflowError, MemoryError) as error:
        raise WireError(f"impossible shape {shape}") from error
    flat = values.reshape(-1)
    for index, item in enumerate(items):  # assigned at once, lists would be taken apart
        flat[index] = item
    return values


def encode_features(
    arrays: Mapping[str, Array], mapping: bool, dumps: Callable[[Any], bytes]
) -> tuple[Schema, Parts]:
    """Encode features of no known signature, all of them with their rows on the first axis.

    Args:
        arrays: name → array.
        mapping: whether the predictor gets a mapping, or the one array that there is.
        dumps: pickles the elements of object arrays that are neither str nor bytes.

    Raises:
        Unencodable: an array's dtype cannot travel; the message names the feature.
    """
    columns, parts = [], []
    for name, values in arrays.items():
        try:
            code = column_code(values)
        except Unencodable as error:
            raise Unencodable(f"feature {name!r} has {error}, which cannot be sent") from None
        columns.append(Column(name, code, values.shape[1:]))
        parts.extend(encode_column(values, code, dumps))
    return make_schema(tuple(columns), mapping), parts


def encode_outputs(outputs: Any, rows: int) -> tuple[Schema, Parts] | None:
    """Encode what a predictor returned: a mapping of name to array, or one array.

    Arrays whose first axis is not ``rows`` long are sent whole (``per_row`` unset).

    Returns:
        the schema and all segments, or None where the outputs are no arrays.
    """
    named = outputs if isinstance(outputs, Mapping) else {"": outputs}
    columns, parts = [], []
    for name, value in named.items():
        if not isinstance(name, str) or not hasattr(value, "__array__"):
            return None
        values = np.asarray(value)
        try:
            code = column_code(values)
        except Unencodable:
            return None
        if code == "object":
            return None
        per_row = values.ndim > 0 and values.shape[0] == rows
        shape = values.shape[1:] if per_row else values.shape
        columns.append(Column(name, code, shape, per_row))
        parts.extend(encode_column(values, code))
    return make_schema(tuple(columns), isinstance(outputs, Mapping)), parts


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


class Frame(NamedTuple):
    """One received frame. ``payload`` belongs to the receiver and is writable."""

    kind: Kind
    id: int
    rows: int
    joined: bool
    schema: bytes
    payload: memoryview


def encode_frame(
    kind: Kind,
    id: int = 0,
    *,
    rows: int = 0,
    joined: bool = False,
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
    header = HEADER.pack(MAGIC, kind, joined, len(schema), id, rows, size)
    if size <= SNAPSHOT_BYTES:
        return [b"".join((header, schema, *payload))]
    return [header + schema, *payload]


def encode_message(kind: Kind, id: int, message: Any) -> Parts:
    """Return the buffers of a frame that carries one pickled object."""
    data = pickle.dumps(message, protocol=5)
    return encode_frame(kind, id, payload=(data,), size=len(data))


class FrameDecoder:
    """Turns received bytes into frames; sans-I/O.

    Receive into `buffer`, then call `received` with the number of bytes. Frames that fit
    are cut out of a scratch buffer; a larger one is received straight into its own.
    """

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(1 << 16))
        self._filled = 0
        self._header: tuple[Any, ...] | None = None
        self._body: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """Where the next bytes go. Never empty."""
        return (self._scratch if self._body is None else self._body)[self._filled :]

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
        start = 0
        while self._body is None and self._filled - start >= HEADER.size:
            header = _check_header(HEADER.unpack_from(self._scratch, start))
            begin = start + HEADER.size
            end = begin + header[3] + header[6]
            if end <= self._filled:
                frames.append(_make_frame(header, memoryview(bytearray(self._scratch[begin:end]))))
                start = end
            elif end - start > len(self._scratch):
                self._begin_large(header, begin)
                start = self._filled
            else:
                break
        if self._body is None and start:
            rest = self._filled - start
            self._scratch[:rest] = bytes(self._scratch[start : self._filled])
            self._filled = rest
        return frames

    def _begin_large(self, header: tuple[Any, ...], begin: int) -> None:
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
        frame = _make_frame(self._header, self._body)
        self._header, self._body, self._filled = None, None, 0
        return [frame]


def _check_header(header: tuple[Any, ...]) -> tuple[Any, ...]:
    magic, kind, _, schema, _, _, payload = header
    if magic != MAGIC or kind not in _KINDS:
        raise WireError(f"not the beginning of a frame: {HEADER.pack(*header)!r}")
    if schema > MAX_SCHEMA or payload > MAX_PAYLOAD:
        raise WireError(f"impossible size of a frame: {schema} + {payload} bytes")
    return header


def _make_frame(header: tuple[Any, ...], body: memoryview) -> Frame:
    _, kind, flags, schema, id, rows, _ = header
    return Frame(Kind(kind), id, rows, bool(flags), bytes(body[:schema]), body[schema:])
