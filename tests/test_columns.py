"""Arrays arrive as they were sent, and what does not fit a schema is recognised as such."""

import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictpool import _columns
from predictpool._columns import Array, Buffer, Column, OutputEncoder, WireError

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
    schema, parts = _columns.encode_features(features, True, pickle.dumps)
    payload, size = _columns.join_parts([parts])
    assert sum(map(len, payload)) == size
    rows = len(next(iter(features.values())))
    arrived = _columns.decode_payload(_columns.parse_schema(schema.blob), rows, joined(payload))
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
@example((np.ones(3, "i1"), objects(["a", "b", "c"]), np.ones(3, "f8")))
@example((np.ones((3, 1), "<U3"), objects([b"a", b"", b"c"]), np.ones((3, 3), "<c16")))
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
    assert _columns.column_code(objects(["a"])) == "str"
    assert _columns.column_code(objects([b"a"])) == "bytes"

    def refuse(item: object) -> bytes:
        raise AssertionError(item)

    features = {"a": np.zeros(2), "b": objects(["a", "b"]), "c": objects([b"a", b"b"])}
    _columns.encode_features(features, True, refuse)


def test_a_dtype_that_cannot_travel_is_named_with_its_feature() -> None:
    structured = np.zeros(2, [("x", "f4")])
    with pytest.raises(_columns.Unencodable, match=r"feature 'a' has dtype \[\('x', '<f4'\)\]"):
        _columns.encode_features({"a": structured}, True, pickle.dumps)


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
    schema, parts = _columns.encode_features({"a": values}, True, pickle.dumps)
    if isinstance(values[0], list):
        values[0].append(2)
    values[:] = None if values.dtype.kind == "O" else -1
    payload, _ = _columns.join_parts([parts])
    arrived = _columns.decode_payload(schema, len(before), joined(payload))
    assert isinstance(arrived, dict)
    assert_same(arrived["a"], before)


def test_large_arrays_are_not_copied_when_they_are_encoded() -> None:
    values = np.zeros(SCRATCH // 8 + 1)
    _, (part,) = _columns.encode_features({"a": values}, True, pickle.dumps)
    assert np.shares_memory(np.frombuffer(part), values)


def test_equal_schemas_are_one_object() -> None:
    first, _ = _columns.encode_features({"a": np.zeros((2, 3))}, True, pickle.dumps)
    second, _ = _columns.encode_features({"a": np.ones((5, 3))}, True, pickle.dumps)
    assert first is second
    assert _columns.parse_schema(first.blob) is first
    for other in (np.zeros((2, 4)), np.zeros((2, 3), "f4"), np.zeros(2)):
        assert _columns.encode_features({"a": other}, True, pickle.dumps)[0] is not first
    assert _columns.encode_features({"b": np.zeros((2, 3))}, True, pickle.dumps)[0] is not first
    assert _columns.encode_features({"a": np.zeros((2, 3))}, False, pickle.dumps)[0] is not first


def test_one_array_arrives_as_one_array() -> None:
    schema, parts = _columns.encode_features({"": np.arange(3)}, False, pickle.dumps)
    payload, _ = _columns.join_parts([parts])
    arrived = _columns.decode_payload(_columns.parse_schema(schema.blob), 3, joined(payload))
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


def rows_of_text(*rows: str) -> dict[str, Array]:
    """Return a request whose columns of text have no, one, two and four elements a row."""
    row = objects([*"".join(rows)]).reshape(len(rows), 7)
    return {
        "two": row[:, :2],
        "none": row[:, :0],
        "one": row[:, 2],
        "four": row[:, 3:].reshape(-1, 2, 2),
    }


@on_busy_machines
@given(requests_that_fit())
@example([rows_of_text("abcdefg", "hijklmn"), rows_of_text("opqrstu")])
def test_joining_requests_is_concatenating_their_columns(requests: list[dict[str, Array]]) -> None:
    encoded = [_columns.encode_features(request, True, pickle.dumps) for request in requests]
    # An empty column of objects travels as bytes, as the scheduler's key shows.
    key = encoded[-1][0]
    together = [i for i, (schema, _) in enumerate(encoded) if schema is key]
    payload, size = _columns.join_parts([encoded[i][1] for i in together])
    rows = sum(len(next(iter(requests[i].values()))) for i in together)
    assert size == sum(map(len, payload))
    arrived = _columns.decode_payload(key, rows, joined(payload))
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
    encoded = OutputEncoder().encode(outputs, 3)
    assert encoded is not None
    schema, parts = encoded
    assert [(c.name, c.shape, c.per_row) for c in schema.columns] == [
        ("rows", (2,), True),
        ("labels", (), True),
        ("whole", (2, 3), False),
        ("scalar", (), False),
    ]
    payload, _ = _columns.join_parts([parts])
    arrived = _columns.decode_payload(_columns.parse_schema(schema.blob), 3, joined(payload))
    assert isinstance(arrived, dict)
    for name, value in outputs.items():
        assert_same(arrived[name], np.asarray(value))


def test_one_array_of_outputs_stays_one_array() -> None:
    encoded = OutputEncoder().encode(np.zeros((2, 3)), 2)
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
    assert OutputEncoder().encode(outputs, 2) is None


@st.composite
def outputs_in_turn(draw: st.DrawFn) -> list[tuple[dict[str, Array], int]]:
    """Return outputs that differ in little, or in nothing, with the rows of each."""
    choices = st.fixed_dictionaries(
        {},
        optional={
            "numbers": st.sampled_from(["<f4", "<i8"]).flatmap(
                lambda dtype: hnp.arrays(dtype, st.sampled_from([(1,), (2,), (2, 1), (2, 2), ()]))
            ),
            "text": st.sampled_from([(1,), (2,), (2, 2), ()]).flatmap(
                lambda shape: st.sampled_from(
                    [np.full(shape, item, object) for item in ("a", b"a", b"bc")]
                )
            ),
        },
    )
    return draw(st.lists(st.tuples(choices, st.integers(1, 2)), min_size=1, max_size=6))


@on_busy_machines
@given(outputs_in_turn())
@example([({"numbers": np.ones(1, "<f4")}, 2), ({"numbers": np.ones(1, "<f4")}, 1)])
def test_outputs_are_encoded_alike_whatever_came_before(
    in_turn: list[tuple[dict[str, Array], int]],
) -> None:
    encoder = OutputEncoder()
    for outputs, rows in in_turn:
        encoded, alone = encoder.encode(outputs, rows), OutputEncoder().encode(outputs, rows)
        assert encoded is not None
        assert alone is not None
        assert encoded[0] is alone[0]
        assert joined(encoded[1]) == joined(alone[1])
        arrived = _columns.decode_payload(encoded[0], rows, joined(encoded[1]))
        assert isinstance(arrived, dict)
        assert list(arrived) == list(outputs)
        for name, value in outputs.items():
            assert_same(arrived[name], value)


# --- garbage -----------------------------------------------------------------------

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
        schema = _columns.parse_schema(blob)
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
        schema = _columns.parse_schema(json.dumps([True, given_columns]).encode())
        arrived = _columns.decode_payload(schema, rows, payload)
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
        _columns.parse_schema(json.dumps([True, [["a", code, [], True]]]).encode())


def test_sizes_that_wrap_around_are_refused() -> None:
    with pytest.raises(WireError):
        _columns.parse_schema(b'[true,[["a","<U999999999",[],true]]]')
    schema = _columns.parse_schema(b'[true,[["a","bytes",[],true]]]')
    lengths = (2**63).to_bytes(8, "little") * 2
    with pytest.raises(WireError, match="not as long as its columns"):
        _columns.decode_payload(schema, 2, lengths)


@pytest.mark.parametrize("change", [-8, -1, 1, 8])
@pytest.mark.parametrize(
    "values", [np.zeros((2, 3), "f4"), objects(["ab", "c"])], ids=["raw", "str"]
)
def test_a_payload_of_the_wrong_length_is_refused(values: Array, change: int) -> None:
    schema, parts = _columns.encode_features({"a": values}, True, pickle.dumps)
    payload = bytes(joined(_columns.join_parts([parts])[0]))
    payload = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(WireError, match="not as long as its columns"):
        _columns.decode_payload(schema, 2, payload)


def test_one_row_whose_columns_of_text_have_as_many_elements_as_there_are_columns() -> None:
    arrays = {"two": np.array([["a", "b"]], object), "none": np.empty((1, 0), object)}
    encoded = OutputEncoder().encode(arrays, 1)
    assert encoded is not None
    schema, parts = encoded
    decoded = _columns.decode_payload(schema, 1, b"".join(parts))
    assert isinstance(decoded, dict)
    assert decoded["two"].tolist() == [["a", "b"]]
    assert decoded["none"].shape == (1, 0)
