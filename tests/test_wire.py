"""Frames and columns arrive as they were sent, and garbage is recognised as such."""

import contextlib
import json
import pickle
import subprocess
import sys
import tracemalloc
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictpool import _wire
from predictpool._wire import Array, Buffer, Column, Frame, FrameDecoder, Kind, Parts, WireError

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCRATCH = 1 << 16

RAW_DTYPES = [
    "?", "i1", "<i2", "<i4", "<i8", ">i8", "u1", "<u2", "<u4", "<u8",
    "<f2", "<f4", "<f8", ">f8", "<c8", "<c16", "<U3", "|S5", "<M8[ns]", "<M8[D]", "<m8[25s]", "<m8",
]  # fmt: skip

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
raw_arrays = st.sampled_from(RAW_DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
texts = st.text(st.characters(exclude_categories=[]), max_size=5)  # lone surrogates included


def objects(items: Sequence[Any], shape: tuple[int, ...] | None = None) -> Array:
    """Return an object array with exactly these items, whatever they are."""
    values = np.empty(len(items), object)
    for index, item in enumerate(items):
        values[index] = item
    return values if shape is None else values.reshape(shape)


@st.composite
def object_arrays(draw: st.DrawFn, items: st.SearchStrategy[Any]) -> Array:
    shape = draw(shapes)
    count = int(np.prod(shape))
    return objects(draw(st.lists(items, min_size=count, max_size=count)), shape)


text_arrays = object_arrays(texts) | object_arrays(st.binary(max_size=5))
arrays = raw_arrays | text_arrays | object_arrays(st.none() | st.integers() | texts)


def joined(buffers: Sequence[Buffer]) -> bytearray:
    return bytearray(b"".join(buffers))


def sent(features: dict[str, Array]) -> dict[str, Array]:
    """Return what arrives of features at the other end."""
    schema, parts = _wire.encode_features(features, True, pickle.dumps)
    payload, size = _wire.join_parts([parts])
    assert sum(map(len, payload)) == size
    rows = len(next(iter(features.values())))
    arrived = _wire.decode_payload(_wire.parse_schema(schema.blob), rows, joined(payload))
    assert isinstance(arrived, dict)
    return arrived


def assert_same(given: Array, expected: Array) -> None:
    assert given.dtype == expected.dtype
    assert given.shape == expected.shape
    if expected.dtype.kind == "O":
        assert given.ravel().tolist() == expected.ravel().tolist()
        assert [*map(type, given.flat)] == [*map(type, expected.flat)]
    else:
        assert given.tobytes() == expected.tobytes()  # NaN, -0.0 and NaT included


# --- columns -----------------------------------------------------------------------


@on_busy_machines
@given(arrays)
def test_every_array_arrives_as_it_was_sent(values: Array) -> None:
    assert_same(sent({"a": values})["a"], values)


@on_busy_machines
@given(st.tuples(raw_arrays, text_arrays, raw_arrays))
def test_every_array_can_be_used_where_it_was_received(values: tuple[Array, ...]) -> None:
    rows = min(map(len, values))
    features = {str(index): array[:rows] for index, array in enumerate(values)}
    arrived = sent(features)
    for name, array in features.items():
        assert_same(arrived[name], array)
        assert arrived[name].flags.aligned
        assert arrived[name].flags.writeable


@pytest.mark.parametrize("size", [SCRATCH // 8, SCRATCH])
@pytest.mark.parametrize("dtype", ["<f8", "<M8[s]", "<U2", "?"])
def test_arrays_that_are_not_contiguous_arrive_in_order(dtype: str, size: int) -> None:
    values = (np.arange(2 * size) % 100).astype("i8").astype(dtype).reshape(2, size).T
    for each in (values, values[::2], values[::-1]):
        assert not each.flags.c_contiguous
        assert_same(sent({"a": each})["a"], each)


@pytest.mark.parametrize(
    "items",
    [
        [b"", b"\0", b"a\0\0", b"\xff"],
        ["", "\0", "a\0", "\ud800", "\ud800\udc00", "é😀"],
        [[1, 2], [3, 4]],
        [[5]],
        ["a", b"a"],
        [None, {"a": 1}, (1,)],
        [np.str_("a"), np.bytes_(b"b")],
    ],
)
def test_every_object_arrives_as_it_was_sent(items: list[Any]) -> None:
    assert_same(sent({"a": objects(items)})["a"], objects(items))


def test_text_and_bytes_travel_without_pickling() -> None:
    assert _wire.column_code(objects(["a"])) == "str"
    assert _wire.column_code(objects([b"a"])) == "bytes"

    def refuse(item: object) -> bytes:
        raise AssertionError(item)

    features = {"a": np.zeros(2), "b": objects(["a", "b"]), "c": objects([b"a", b"b"])}
    _wire.encode_features(features, True, refuse)


def test_a_dtype_that_cannot_travel_is_named_with_its_feature() -> None:
    structured = np.zeros(2, [("x", "f4")])
    with pytest.raises(_wire.Unencodable, match=r"feature 'a' has dtype \[\('x', '<f4'\)\]"):
        _wire.encode_features({"a": structured}, True, pickle.dumps)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(8.0),
        np.arange(SCRATCH // 8) * 1.0,
        objects(["a"]),
        objects([b"a"]),
        objects([[1]]),
    ],
    ids=["small", "largest", "str", "bytes", "object"],
)
def test_small_arrays_may_be_changed_once_they_are_encoded(values: Array) -> None:
    before = values.copy()
    if before.dtype.kind == "O":
        before[0] = before[0][:]
    schema, parts = _wire.encode_features({"a": values}, True, pickle.dumps)
    if isinstance(values[0], list):
        values[0].append(2)
    values[:] = None if values.dtype.kind == "O" else -1
    payload, _ = _wire.join_parts([parts])
    arrived = _wire.decode_payload(schema, len(before), joined(payload))
    assert isinstance(arrived, dict)
    assert_same(arrived["a"], before)


def test_large_arrays_are_not_copied_when_they_are_encoded() -> None:
    values = np.zeros(SCRATCH // 8 + 1)
    (part,) = _wire.encode_column(values, "<f8")
    assert np.shares_memory(np.frombuffer(part), values)


def test_equal_schemas_are_one_object() -> None:
    first, _ = _wire.encode_features({"a": np.zeros((2, 3))}, True, pickle.dumps)
    second, _ = _wire.encode_features({"a": np.ones((5, 3))}, True, pickle.dumps)
    assert first is second
    assert _wire.parse_schema(first.blob) is first
    for other in (np.zeros((2, 4)), np.zeros((2, 3), "f4"), np.zeros(2)):
        assert _wire.encode_features({"a": other}, True, pickle.dumps)[0] is not first
    assert _wire.encode_features({"b": np.zeros((2, 3))}, True, pickle.dumps)[0] is not first
    assert _wire.encode_features({"a": np.zeros((2, 3))}, False, pickle.dumps)[0] is not first


def test_one_array_arrives_as_one_array() -> None:
    schema, parts = _wire.encode_features({"": np.arange(3)}, False, pickle.dumps)
    payload, _ = _wire.join_parts([parts])
    arrived = _wire.decode_payload(_wire.parse_schema(schema.blob), 3, joined(payload))
    assert isinstance(arrived, np.ndarray)
    assert arrived.tolist() == [0, 1, 2]


# --- joining -----------------------------------------------------------------------


@st.composite
def requests_that_fit(draw: st.DrawFn) -> list[dict[str, Array]]:
    """Return requests with the same names, dtypes and row shapes."""
    names = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    kinds = {name: draw(st.sampled_from([*RAW_DTYPES, "str", "bytes", "object"])) for name in names}
    row_shapes = {
        name: draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)) for name in names
    }
    requests = []
    for rows in draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)):
        request = {}
        for name in names:
            shape = (rows, *row_shapes[name])
            count = int(np.prod(shape))
            items = {"str": texts, "bytes": st.binary(max_size=3), "object": st.none()}
            if kinds[name] in items:
                listed = st.lists(items[kinds[name]], min_size=count, max_size=count)
                request[name] = objects(draw(listed), shape)
            else:
                request[name] = draw(hnp.arrays(kinds[name], shape))
        requests.append(request)
    return requests


@on_busy_machines
@given(requests_that_fit())
def test_joining_requests_is_concatenating_their_columns(requests: list[dict[str, Array]]) -> None:
    encoded = [_wire.encode_features(request, True, pickle.dumps) for request in requests]
    # An empty column of objects travels as bytes, as the scheduler's key shows.
    key = encoded[-1][0]
    together = [i for i, (schema, _) in enumerate(encoded) if schema is key]
    payload, size = _wire.join_parts([encoded[i][1] for i in together])
    rows = sum(len(next(iter(requests[i].values()))) for i in together)
    assert size == sum(map(len, payload))
    arrived = _wire.decode_payload(key, rows, joined(payload))
    assert isinstance(arrived, dict)
    assert list(arrived) == list(requests[0])
    for name, values in arrived.items():
        dtype = requests[together[0]][name].dtype  # numpy would make it native
        assert_same(values, np.concatenate([requests[i][name] for i in together], dtype=dtype))


# --- outputs -----------------------------------------------------------------------


def test_outputs_say_which_arrays_have_the_rows_on_their_first_axis() -> None:
    outputs = {
        "rows": np.zeros((3, 2)),
        "labels": objects(["a", "b", "c"]),
        "whole": np.zeros((2, 3)),
        "scalar": np.float32(1),
    }
    encoded = _wire.encode_outputs(outputs, 3)
    assert encoded is not None
    schema, parts = encoded
    assert [(c.name, c.shape, c.per_row) for c in schema.columns] == [
        ("rows", (2,), True),
        ("labels", (), True),
        ("whole", (2, 3), False),
        ("scalar", (), False),
    ]
    payload, _ = _wire.join_parts([parts])
    arrived = _wire.decode_payload(_wire.parse_schema(schema.blob), 3, joined(payload))
    assert isinstance(arrived, dict)
    for name, value in outputs.items():
        assert_same(arrived[name], np.asarray(value))


def test_one_array_of_outputs_stays_one_array() -> None:
    encoded = _wire.encode_outputs(np.zeros((2, 3)), 2)
    assert encoded is not None
    assert encoded[0].columns == (Column("", "<f8", (3,), True),)
    assert not encoded[0].mapping


@pytest.mark.parametrize(
    "outputs",
    [
        [1, 2],
        None,
        {"a": [1, 2]},
        {("a", "b"): np.zeros(2)},
        {"a": objects([None, 1])},
        np.zeros(2, [("x", "f4")]),
    ],
)
def test_outputs_that_are_no_arrays_are_left_to_pickle(outputs: Any) -> None:
    assert _wire.encode_outputs(outputs, 2) is None


# --- frames ------------------------------------------------------------------------


class Sent(NamedTuple):
    """A frame as it is given to `encode_frame`."""

    kind: Kind
    id: int
    rows: int
    joined: bool
    schema: bytes
    payload: bytes

    def encoded(self) -> bytes:
        payload: Parts = [self.payload[:3], self.payload[3:]]
        size = len(self.payload)
        fields = self._asdict() | {"payload": payload, "size": size}
        return bytes(joined(_wire.encode_frame(**fields)))


numbers = st.integers(0, 2**64 - 1)
frames = st.builds(
    Sent,
    kind=st.sampled_from(Kind),
    id=numbers,
    rows=numbers,
    joined=st.booleans(),
    schema=st.binary(max_size=40),
    payload=st.binary(max_size=60)
    | st.integers(SCRATCH - 100, SCRATCH + 100).map(lambda size: (b"0123456789" * size)[:size])
    | st.integers(2 * SCRATCH, 3 * SCRATCH).map(lambda size: (b"0123456" * size)[:size]),
)


def feed(decoder: FrameDecoder, data: bytes) -> list[Frame]:
    """Give bytes to a decoder, in pieces where its buffer is smaller."""
    received: list[Frame] = []
    view = memoryview(data)
    while view:
        buffer = decoder.buffer
        assert len(buffer) > 0
        count = min(len(buffer), len(view))
        buffer[:count] = view[:count]
        received += decoder.received(count)
        view = view[count:]
    return received


def as_sent(received: list[Frame]) -> list[Sent]:
    return [Sent(*frame[:-1], payload=bytes(frame.payload)) for frame in received]


@on_busy_machines
@given(st.lists(frames, max_size=4), st.lists(st.integers(1, SCRATCH), max_size=20))
def test_frames_in_pieces_of_any_size_are_the_frames_that_were_sent(
    expected: list[Sent], sizes: list[int]
) -> None:
    data = b"".join(frame.encoded() for frame in expected)
    decoder = FrameDecoder()
    received: list[Frame] = []
    for size in sizes:
        received += feed(decoder, data[:size])
        data = data[size:]
    received += feed(decoder, data)
    assert as_sent(received) == expected
    assert decoder.between_frames


@pytest.mark.parametrize("payload", [b"", b"payload", bytes(SCRATCH), bytes(SCRATCH + 1)])
def test_a_frame_cut_at_every_byte_near_its_ends_is_the_frame_that_was_sent(payload: bytes) -> None:
    expected = [
        Sent(Kind.ANSWER, 7, 2, True, b"schema  ", payload),
        Sent(Kind.STOP, 8, 0, False, b"", b""),
    ]
    data = b"".join(frame.encoded() for frame in expected)
    near = (0, _wire.HEADER.size, SCRATCH, len(payload), len(data))
    cuts = {cut for end in near for cut in range(end - 48, end + 48) if 0 <= cut <= len(data)}
    for cut in cuts:
        decoder = FrameDecoder()
        received = feed(decoder, data[:cut])
        assert decoder.between_frames == (cut in (0, len(data) - _wire.HEADER.size, len(data)))
        received += feed(decoder, data[cut:])
        assert as_sent(received) == expected, cut
        assert decoder.between_frames


def test_a_frame_that_comes_byte_by_byte_is_the_frame_that_was_sent() -> None:
    expected = [
        Sent(Kind.PREDICT, n, n, False, b"12345678" * n, bytes(range(n))) for n in range(20)
    ]
    decoder = FrameDecoder()
    received: list[Frame] = []
    for byte in b"".join(frame.encoded() for frame in expected):
        received += feed(decoder, bytes([byte]))
    assert as_sent(received) == expected


def test_many_frames_come_out_of_one_read() -> None:
    expected = [Sent(Kind.ANSWER, id, 1, False, b"", b"12345678") for id in range(1000)]
    data = b"".join(frame.encoded() for frame in expected)
    assert len(data) < SCRATCH
    decoder = FrameDecoder()
    decoder.buffer[: len(data)] = data
    assert as_sent(decoder.received(len(data))) == expected


def test_a_received_frame_is_not_changed_by_later_ones() -> None:
    decoder = FrameDecoder()
    first, second = feed(decoder, Sent(Kind.ANSWER, 1, 1, False, b"", b"first").encoded() * 2)
    first.payload[:] = b"other"
    assert bytes(second.payload) == b"first"
    feed(decoder, Sent(Kind.ANSWER, 2, 1, False, b"", b"later").encoded() * 5)
    assert bytes(first.payload) == b"other"
    assert bytes(second.payload) == b"first"


def test_a_large_frame_is_received_straight_into_its_own_memory() -> None:
    data = Sent(Kind.ANSWER, 1, 1, False, b"schema  ", bytes(range(250)) * 4000).encoded()
    decoder = FrameDecoder()
    assert feed(decoder, data[:SCRATCH]) == []
    buffer = decoder.buffer
    assert len(buffer) == len(data) - SCRATCH
    buffer[:] = data[SCRATCH:]
    (frame,) = decoder.received(len(buffer))
    assert np.shares_memory(np.frombuffer(frame.payload, "u1"), np.frombuffer(buffer, "u1"))


def test_a_message_arrives() -> None:
    message = {"a": [1, "b"], "c": bytes(100_000)}
    (frame,) = feed(FrameDecoder(), bytes(joined(_wire.encode_message(Kind.READY, 5, message))))
    assert (frame.kind, frame.id) == (Kind.READY, 5)
    assert pickle.loads(frame.payload) == message


def test_what_is_larger_than_a_frame_can_be_is_not_sent() -> None:
    with pytest.raises(WireError, match="send fewer rows in one request"):
        _wire.encode_frame(Kind.PREDICT, size=_wire.MAX_PAYLOAD + 1)
    with pytest.raises(WireError, match="send fewer rows in one request"):
        _wire.encode_frame(Kind.PREDICT, schema=bytes(_wire.MAX_SCHEMA + 1))


# --- garbage -----------------------------------------------------------------------


def header(*, kind: int = 2, flags: int = 0, schema: int = 0, payload: int = 0) -> bytes:
    return _wire.HEADER.pack(_wire.MAGIC, kind, flags, schema, 0, 0, payload)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(payload=_wire.MAX_PAYLOAD + 1), "impossible size"),
        (header(payload=2**64 - 1), "impossible size"),
        (header(schema=_wire.MAX_SCHEMA + 1), "impossible size"),
        (header(kind=0), "not the beginning of a frame"),
        (header(kind=99), "not the beginning of a frame"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n", "not the beginning of a frame"),
        (b"XX" + header()[2:], "not the beginning of a frame"),
        (bytes(40), "not the beginning of a frame"),
    ],
)
def test_what_cannot_be_a_frame_is_refused_before_memory_is_taken(
    data: bytes, message: str
) -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=message):
            feed(decoder, data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_does_not_fit_into_memory_is_an_error_of_the_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(WireError, match="does not fit into memory"):
        feed(FrameDecoder(), header(payload=1 << 30))


@on_busy_machines
@given(st.binary(max_size=300), st.integers(0, 300), st.lists(frames, max_size=2))
def test_garbage_gives_frames_or_an_error_of_the_wire(
    garbage: bytes, at: int, around: list[Sent]
) -> None:
    data = b"".join(frame.encoded() for frame in around)
    data = data[:at] + garbage + data[at:]
    decoder = FrameDecoder()
    with contextlib.suppress(WireError):
        feed(decoder, data)


@on_busy_machines
@given(frames, st.data())
def test_one_flipped_byte_gives_frames_or_an_error_of_the_wire(
    frame: Sent, data: st.DataObject
) -> None:
    encoded = bytearray(frame.encoded())
    position = data.draw(st.integers(0, min(len(encoded), 80) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    size = int.from_bytes(encoded[24:32], "little") + int.from_bytes(encoded[4:8], "little")
    if size > 1 << 28 and size <= _wire.MAX_PAYLOAD:
        return  # a possible size, which would be waited for in as much memory
    with contextlib.suppress(WireError):
        feed(FrameDecoder(), bytes(encoded))


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=10,
)


@on_busy_machines
@given(st.binary(max_size=50) | jsons.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'[true,[["a","<f4",[1e999],true]]]')
@example(b'[true,[["a","<f4",[-1],true]]]')
@example(b"[false,[]]")
@example(b'[false,[["a","<f4",[],true],["b","<f4",[],true]]]')
@example(b'[true,[["a","<f4",[],true],["a","<f4",[],true]]]')
def test_what_is_no_schema_is_an_error_of_the_wire(blob: bytes) -> None:
    try:
        schema = _wire.parse_schema(blob)
    except WireError:
        return
    assert schema.mapping or len(schema.columns) == 1
    assert len({column.name for column in schema.columns}) == len(schema.columns)
    assert all(axis >= 0 for column in schema.columns for axis in column.shape)


axes = st.integers(0, 3) | st.sampled_from([2**31, 2**32, 2**61, 2**63, 2**64, 10**100])
codes = st.sampled_from([*RAW_DTYPES, "str", "bytes", "<U0", "|S0", "|V4", "<f3", "<f16", "O", ""])
columns = st.builds(
    Column,
    name=st.sampled_from("abc"),
    code=codes | st.text("<>|=biufcSUMmOVaT?()[],0123456789-", max_size=12),
    shape=st.lists(axes, max_size=4).map(tuple),
    per_row=st.booleans(),
)


@on_busy_machines
@given(
    st.lists(columns, min_size=1, max_size=3, unique_by=lambda column: column.name),
    st.integers(0, 4) | st.sampled_from([2**32, 2**63, 2**64 - 1]),
    st.binary(max_size=64) | st.integers(0, 100).map(bytes),
)
@example([Column("a", "<f4", (1,) * 100)], 1, bytes(8))
@example([Column("a", "|S-1", ())], 8, bytes(8))
@example([Column("a", "<U1073741823", ())], 1, bytes(8))
@example([Column("a", "(,)f4", ())], 1, bytes(8))
@example([Column("a", "str", ())], 1, (1).to_bytes(8, "little") + b"\xff".ljust(8))
@example([Column("a", "bytes", ())], 1, (2**64 - 1).to_bytes(8, "little"))
def test_a_payload_that_does_not_fit_its_schema_is_an_error_of_the_wire(
    given_columns: list[Column], rows: int, payload: bytes
) -> None:
    try:
        schema = _wire.parse_schema(json.dumps([True, given_columns]).encode())
        arrived = _wire.decode_payload(schema, rows, payload)
    except WireError:
        return
    assert isinstance(arrived, dict)
    for column in given_columns:
        values = arrived[column.name]
        assert values.shape == ((rows, *column.shape) if column.per_row else column.shape)
        assert values.dtype.kind in "biufcSUMm" or column.code in ("str", "bytes")


@pytest.mark.parametrize(
    "code", ["O", "|O", "<O", "|O8", "O8", "object_", "<f4,|O", "(1,)O", "|V8"]
)
def test_bytes_never_become_pointers(code: str) -> None:
    with pytest.raises(WireError, match="does not travel as raw bytes"):
        _wire.parse_schema(json.dumps([True, [["a", code, [], True]]]).encode())


def test_sizes_that_wrap_around_are_refused() -> None:
    with pytest.raises(WireError):
        _wire.parse_schema(b'[true,[["a","<U999999999",[],true]]]')
    schema = _wire.parse_schema(b'[true,[["a","bytes",[],true]]]')
    lengths = (2**63).to_bytes(8, "little") * 2
    with pytest.raises(WireError, match="ends inside a column"):
        _wire.decode_payload(schema, 2, lengths)


@pytest.mark.parametrize("change", [-8, -1, 1, 8])
@pytest.mark.parametrize(
    "values", [np.zeros((2, 3), "f4"), objects(["ab", "c"])], ids=["raw", "str"]
)
def test_a_payload_of_the_wrong_length_is_refused(values: Array, change: int) -> None:
    schema, parts = _wire.encode_features({"a": values}, True, pickle.dumps)
    payload = bytes(joined(_wire.join_parts([parts])[0]))
    payload = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(WireError, match=r"ends inside a column|beyond the last column"):
        _wire.decode_payload(schema, 2, payload)


# --- pickles -----------------------------------------------------------------------


def test_a_pickle_is_not_read_where_that_would_import_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "predictpool_test_foreign"
    (tmp_path / f"{name}.py").write_text("class Thing: ...\nclass Trouble(Exception): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    program = f"import pickle, sys, {name} as m; sys.stdout.buffer.write(pickle.dumps(MADE))"
    for made in ("m.Thing()", "[m.Thing]", "m.Trouble('no')"):
        data = subprocess.run(
            [sys.executable, "-c", program.replace("MADE", made)],
            check=True,
            capture_output=True,
            env={"PYTHONPATH": str(tmp_path)},
        ).stdout
        with pytest.raises(_wire.ForeignType, match=name):
            _wire.loads_cautiously(data)
        assert name not in sys.modules
        assert pickle.loads(data) is not None  # it could have been imported
        del sys.modules[name]


def test_a_pickle_is_read_where_its_modules_are_imported() -> None:
    for value in (ValueError("no"), deque([1]), [np.float32(1)], {"a": {1}}):
        again = _wire.loads_cautiously(pickle.dumps(value, protocol=5))
        assert type(again) is type(value)
        assert repr(again) == repr(value)
