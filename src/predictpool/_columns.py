"""Arrays as columns of bytes: what the payload of a frame is made of, without any I/O.

A *schema* names the columns with dtype and row shape, as JSON padded with blanks to a
multiple of eight bytes. Requests of one kind share it, so both ends keep schemas by their
bytes and the JSON is read once. A payload is, without gaps::

    lengths of all elements that vary in length, u64 | raw columns | these elements

Raw columns come in the order of their alignment, the strictest first, so that each array
can be used where it was received. Elements that vary in length (text, bytes, pickles) go
row by row, so that the text of any number of columns is two segments; those of outputs
that have no row axis follow the rows. Requests are joined segment by segment.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview
Parts: TypeAlias = list[Buffer]

# Up to this size an array is copied when it is encoded, so that its owner may change
# it at once; beyond, the copy would cost more than the promise is worth (design: "small
# inputs are snapshotted").
SNAPSHOT_BYTES = 1 << 16

_OBJECT = np.dtype(object)
_ARRAYS = frozenset([np.ndarray])
_Traits: TypeAlias = tuple[np.dtype[Any], tuple[int, ...]]
_TRAITS: Callable[[Any], _Traits] = attrgetter("dtype", "shape")
_ALIGNMENT = 8  # of a payload, and so the strictest that its columns can have
_RAW_KINDS = frozenset("biufcSUMm")
_VARYING = ("bytes", "str", "object")
# What `dtype.str` can be for these kinds. numpy reads much more, some of it as an object
# dtype (raw bytes would become pointers) or with a size that has wrapped around.
_RAW_CODE = re.compile(r"[<>|][biufcSUMm]\d{1,9}(\[\d*[a-zA-Z]+\])?")


class WireError(Exception):
    """Raised when bytes cannot be what they should; the connection is of no use any more."""


class Unencodable(Exception):
    """Raised when an array's dtype has no representation in a frame."""


# --- schemas -----------------------------------------------------------------------


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
    """The columns of a payload. Equal schemas are the same object: see `make_schema`.

    Attributes:
        columns: in the order in which they were given.
        mapping: whether they are a mapping, or one array without a name.
        blob: what travels.
        names: of the columns.
        divisible: whether all of them have the rows on their first axis.
    """

    columns: tuple[Column, ...]
    mapping: bool
    blob: bytes = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    divisible: bool = field(repr=False)


@lru_cache(maxsize=4096)
def make_schema(columns: tuple[Column, ...], mapping: bool) -> Schema:
    """Return the one schema object for these columns.

    Raises:
        WireError: a column has a dtype that does not travel.
    """
    for column in columns:
        if column.code not in _VARYING:
            _raw_dtype(column.code)
    blob = json.dumps([mapping, columns], separators=(",", ":")).encode()
    return Schema(
        columns,
        mapping,
        blob + b" " * (-len(blob) % _ALIGNMENT),
        tuple(column.name for column in columns),
        all(column.per_row for column in columns),
    )


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


@lru_cache(maxsize=4096)
def _raw_dtype(code: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(code) if _RAW_CODE.fullmatch(code) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.itemsize < 0:
        raise WireError(f"dtype {code!r} does not travel as raw bytes")
    return dtype


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
    types = set(map(type, values.ravel().tolist()))
    if types <= {bytes}:
        return "bytes"
    return "str" if types == {str} else "object"


# --- layouts -----------------------------------------------------------------------


class _Raw(NamedTuple):
    """A column of raw bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int


class _Varying(NamedTuple):
    """A column whose elements vary in length: elements ``begin`` to ``end`` of each row.

    Where it is not ``per_row``, they are counted from behind the last row.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    per_row: bool
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return _OBJECT


class _Layout(NamedTuple):
    """Where the columns of a payload are, with a certain number of rows.

    Attributes:
        raw, varying: in the order of the payload.
        pick: takes their arrays out of a mapping, in this order; raises KeyError.
        traits: what `_TRAITS` has to say of these arrays, as they should be.
        flat_traits: the same where every ``[n, 1]`` is an ``[n]``.
        code: that of all varying columns, or "" where they differ.
        width: how many elements of varying length a row has.
        elements: how many there are in all.
        small: whether each raw column is small enough to be copied.
        single: whether each varying column has one element in all.
        ambiguous: whether an array without a row axis has as many elements on its first
            axis as there are rows, so that the schema cannot be theirs.
    """

    raw: tuple[_Raw, ...]
    varying: tuple[_Varying, ...]
    pick: Callable[[Mapping[str, Any]], Sequence[Any]]
    traits: list[_Traits]
    flat_traits: list[_Traits]
    code: str
    width: int
    elements: int
    small: bool
    single: bool
    ambiguous: bool


@lru_cache(maxsize=1024)
def _layout(schema: Schema, rows: int) -> _Layout:
    raw: list[_Raw] = []
    varying: list[_Varying] = []
    flat: set[str] = set()
    ends = {True: 0, False: 0}
    for name, code, row_shape, per_row in schema.columns:
        shape = (rows, *row_shape) if per_row else row_shape
        if per_row and row_shape == (1,):
            flat.add(name)
        if code in _VARYING:
            begin = ends[per_row]
            ends[per_row] += math.prod(row_shape)
            varying.append(_Varying(name, code, shape, per_row, begin, ends[per_row]))
        else:
            dtype = _raw_dtype(code)
            raw.append(_Raw(name, dtype, shape, math.prod(shape) * dtype.itemsize))
    raw.sort(key=lambda column: -column.dtype.alignment)
    columns: list[_Raw | _Varying] = [*raw, *varying]
    codes = {column.code for column in varying}
    elements = rows * ends[True] + ends[False]
    return _Layout(
        tuple(raw),
        tuple(varying),
        picker([column.name for column in columns]),
        [(column.dtype, column.shape) for column in columns],
        [(column.dtype, (rows,) if column.name in flat else column.shape) for column in columns],
        codes.pop() if len(codes) == 1 else "",
        ends[True],
        elements,
        all(column.size <= SNAPSHOT_BYTES for column in raw),
        rows == 1 and all(column.per_row and column.end - column.begin == 1 for column in varying),
        any(not column.per_row and column.shape[:1] == (rows,) for column in schema.columns),
    )


def picker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return what takes these out of a mapping, and raises KeyError where one is missing."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda arrays: [arrays[name] for name in names]


# --- encoding ----------------------------------------------------------------------

Convert: TypeAlias = Callable[[list[Any], str], list[bytes] | None]
"""Makes bytes of the elements of columns with a certain code; None where they are not what
the code says."""


def encode(
    schema: Schema, arrays: Mapping[str, Any], rows: int, convert: Convert, *, flat: bool = False
) -> Parts | None:
    """Encode arrays that are exactly what a schema says.

    Args:
        arrays: by name.
        flat: allow ``[n]`` where the schema says ``[n, 1]``: the bytes are the same.

    Returns:
        the segments, or None where an array is missing or is something else.
    """
    layout = _layout(schema, rows)
    if layout.ambiguous:
        return None
    try:
        given = layout.pick(arrays)
    except KeyError:
        return None
    fits = _ARRAYS.issuperset(map(type, given)) and (
        (traits := [*map(_TRAITS, given)]) == layout.traits
        or (flat and traits == layout.flat_traits)
    )
    if not fits:
        return None
    columns = given[: len(layout.raw)]
    if layout.small:
        parts: Parts = [*map(np.ndarray.tobytes, columns)]
    else:
        parts = [
            values.tobytes() if values.nbytes <= SNAPSHOT_BYTES else _uncopied(values)
            for values in columns
        ]
    if not layout.varying:
        return parts
    elements = _elements(layout, given[len(layout.raw) :], convert)
    if elements is None:
        return None
    return [array("Q", map(len, elements)).tobytes(), *parts, b"".join(elements)]


def _uncopied(values: Array) -> Buffer:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _elements(layout: _Layout, given: Sequence[Array], convert: Convert) -> list[bytes] | None:
    """Return what varies in length, row by row; None as `encode`."""
    if layout.single and layout.code:
        return convert([*map(np.ndarray.item, given)], layout.code)
    stripes: list[list[Any]] = []  # each has one element of every row
    behind: list[Any] = []
    for column, values in zip(layout.varying, given, strict=True):
        items = values.ravel().tolist()
        if not layout.code:
            items = convert(items, column.code)
            if items is None:
                return None
        width = column.end - column.begin
        if not column.per_row:
            behind += items
        elif width == 1:
            stripes.append(items)
        else:
            stripes.extend(items[place::width] for place in range(width))
    elements = [*chain.from_iterable(zip(*stripes, strict=True)), *behind]
    return convert(elements, layout.code) if layout.code else elements


def _convert_exact(items: list[Any], code: str) -> list[bytes] | None:
    types = set(map(type, items))
    if code == "bytes":
        return items if types <= {bytes} else None
    if code == "str" and types == {str}:
        return [text.encode("utf-8", "surrogatepass") for text in items]
    return None


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

    def convert(items: list[Any], code: str) -> list[bytes] | None:
        return [*map(dumps, items)] if code == "object" else _convert_exact(items, code)

    columns = []
    for name, values in arrays.items():
        try:
            columns.append(Column(name, column_code(values), values.shape[1:]))
        except Unencodable as error:
            raise Unencodable(f"feature {name!r} has {error}, which cannot be sent") from None
    schema = make_schema(tuple(columns), mapping)
    plain = {name: np.asarray(values) for name, values in arrays.items()}
    parts = encode(schema, plain, len(next(iter(plain.values()))), convert)
    assert parts is not None
    return schema, parts


class OutputEncoder:
    """Encodes what a predictor returns: a mapping of name to array, or one array.

    Keeps the schema of the last outputs, because the next ones are nearly always like them.
    """

    def __init__(self) -> None:
        self._schema = make_schema((), True)

    def encode(self, outputs: Any, rows: int) -> tuple[Schema, Parts] | None:
        """Return the schema and all segments, or None where the outputs are no arrays.

        Arrays whose first axis is not ``rows`` long are sent whole (``per_row`` unset).
        """
        mapping = isinstance(outputs, Mapping)
        named = outputs if mapping else {"": outputs}
        schema = self._schema
        if schema.mapping is mapping and schema.names == tuple(named):
            parts = encode(schema, named, rows, _convert_exact)
            if parts is not None:
                return schema, parts
        arrays: dict[str, Array] = {}
        columns = []
        for name, value in named.items():
            if not isinstance(name, str) or not hasattr(value, "__array__"):
                return None
            arrays[name] = values = np.asarray(value)
            try:
                code = column_code(values)
            except Unencodable:
                return None
            if code == "object":
                return None
            per_row = values.ndim > 0 and values.shape[0] == rows
            columns.append(Column(name, code, values.shape[per_row:], per_row))
        self._schema = schema = make_schema(tuple(columns), mapping)
        parts = encode(schema, arrays, rows, _convert_exact)
        assert parts is not None
        return schema, parts


def join_parts(requests: Sequence[Parts]) -> tuple[Parts, int]:
    """Join the segments of several requests of one schema.

    Returns:
        the buffers of the payload in order, and their total size.
    """
    parts = requests[0]
    if len(requests) > 1:
        parts = list(chain.from_iterable(zip(*requests, strict=True)))
    return parts, sum(map(len, parts))


# --- decoding ----------------------------------------------------------------------


def decode_payload(
    schema: Schema, rows: int, payload: Buffer, loads: Callable[[bytes], Any] = pickle.loads
) -> dict[str, Array] | Array:
    """Return the arrays of a payload, as views into it where they are raw.

    Raises:
        WireError: sizes and schema do not agree.
    """
    view = memoryview(payload)
    layout = _layout(schema, rows)
    arrays: dict[str, Any] = dict.fromkeys(schema.names)
    offset = 8 * layout.elements
    try:
        for name, dtype, shape, size in layout.raw:
            if offset + size > len(view):
                raise _wrong_length(view)
            arrays[name] = np.ndarray(shape, dtype, view, offset)
            offset += size
        if layout.varying:
            arrays.update(_undecoded(layout, rows, view, offset))
        elif offset != len(view):
            raise _wrong_length(view)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise WireError(f"{rows} rows of an impossible shape: {schema.columns}") from error
    for column in layout.varying:
        if column.code != "bytes":
            arrays[column.name] = _decode_elements(arrays[column.name], column.code, loads)
    return arrays if schema.mapping else arrays[schema.names[0]]


def _undecoded(
    layout: _Layout, rows: int, view: memoryview, offset: int
) -> Iterator[tuple[str, Array]]:
    """Yield the columns whose elements vary in length, still as bytes.

    Args:
        offset: where the elements begin.
    """
    if offset > len(view):
        raise _wrong_length(view)
    ends = list(accumulate(view[: 8 * layout.elements].cast("Q").tolist(), initial=0))
    data = bytes(view[offset:])
    if ends[-1] != len(data):
        raise _wrong_length(view)
    elements = np.array([data[begin:end] for begin, end in pairwise(ends)], object)
    in_rows = rows * layout.width
    # Turned over, each column is contiguous.
    by_column = np.ascontiguousarray(elements[:in_rows].reshape(rows, layout.width).T)
    for name, _, shape, per_row, begin, end in layout.varying:
        if not per_row:
            yield name, elements[in_rows + begin : in_rows + end].reshape(shape)
        elif len(shape) == 1:
            yield name, by_column[begin]
        else:
            yield name, by_column[begin:end].T.reshape(shape)


def _decode_elements(values: Array, code: str, loads: Callable[[bytes], Any]) -> Array:
    decode = loads if code == "object" else _decode_text
    decoded = np.empty(values.shape, object)
    flat = decoded.reshape(-1)
    for index, element in enumerate(values.ravel().tolist()):
        flat[index] = decode(element)  # assigned at once, lists would be taken apart
    return decoded


def _decode_text(element: bytes) -> str:
    try:
        return element.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise WireError(f"no text in a column of text: {error}") from error


def _wrong_length(view: memoryview) -> WireError:
    return WireError(f"a payload of {len(view)} bytes is not as long as its columns")
