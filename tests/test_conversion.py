"""The values of one feature arrive exactly as declared, or are refused with the remedy."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictpool import _columns
from predictpool._errors import InvalidFeatures
from predictpool._features._signature import Signature
from predictpool._features._spec import REQUIRED, FeatureSpec

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAN = float("nan")
ma: Any = np.ma  # which has no types
FLOAT = np.dtype("float32")
INTEGER = np.dtype("int64")
TEXT = np.dtype(object)
RAGGED = FeatureSpec(INTEGER, ragged=True)
RAGGED_FLOATS = FeatureSpec(FLOAT, ragged=True)
RAGGED_TEXT = FeatureSpec(TEXT, ragged=True)


def conformed(spec: Any, value: Any, *, one: bool = False) -> Any:
    """Return what the model gets for one feature of this signature."""
    return Signature.declared({"a": spec}).conform({"a": value}, one=one)["a"]


def complaint(spec: Any, value: Any, *, one: bool = False) -> InvalidFeatures:
    """Return the error for one feature of this signature."""
    with pytest.raises(InvalidFeatures) as caught:
        conformed(spec, value, one=one)
    assert caught.value.feature == "a"
    assert caught.value.given
    assert caught.value.expected == str(Signature.declared({"a": spec}).features["a"])
    assert "feature 'a'" in str(caught.value)
    return caught.value


# --- shapes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row_shape", "shape", "expected"),
    [
        ((), (3,), (3,)),
        ((), (3, 1), (3,)),
        ((1,), (3,), (3, 1)),
        ((1,), (3, 1), (3, 1)),
        ((2,), (3, 2), (3, 2)),
        ((None,), (3, 7), (3, 7)),
        ((None, 2), (3, 7, 2), (3, 7, 2)),
        ((), (0,), (0,)),
        ((), (0, 1), (0,)),
        ((1,), (0,), (0, 1)),
        ((2,), (0,), (0, 2)),
        ((None, 2), (0,), (0, 0, 2)),
        ((2,), (0, 2), (0, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, str])
def test_rows_of_the_declared_shape_fit(
    row_shape: Any, shape: tuple[int, ...], expected: tuple[int, ...], dtype: Any
) -> None:
    values = np.full(shape, "1" if dtype is str else 1, object if dtype is str else dtype)
    given_values = (values, values.tolist()) if shape != (0, 2) else (values,)
    for each in given_values:
        assert conformed((dtype, row_shape), each).shape == expected
    if len(values):
        row = conformed((dtype, row_shape), values[0], one=True)
        assert row.shape == (1, *expected[1:])
        assert row.tolist() == conformed((dtype, row_shape), values[:1]).tolist()


@pytest.mark.parametrize(
    ("row_shape", "shape"),
    [
        ((), ()),
        ((), (3, 2)),
        ((), (3, 1, 1)),
        ((1,), ()),
        ((1,), (3, 2)),
        ((1,), (3, 1, 1)),
        ((2,), (3,)),
        ((2,), (2,)),
        ((2,), (3, 1)),
        ((2,), (3, 3)),
        ((2,), (0, 3)),
        ((None,), (3,)),
        ((None, 2), (3, 5, 3)),
        ((2, 2), (3, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, str])
def test_every_other_shape_is_refused(row_shape: Any, shape: tuple[int, ...], dtype: Any) -> None:
    values = np.full(shape, b"" if dtype is str else 0, object if dtype is str else dtype)
    error = complaint((dtype, row_shape), values)
    assert f"has the shape {shape}, expected rows on the first axis" in str(error)
    if values.ndim and values.size:
        error = complaint((dtype, row_shape), values[0], one=True)
        assert f"has the shape {shape[1:]}, expected a row of shape" in str(error)


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ((np.float32, (2,)), [[1.0, 2.0], [3.0]]),
        ((np.float32, (None,)), [[1.0, 2.0], [3.0]]),
        ((np.float32, ()), [[1.0], 2.0]),
        ((str, (2,)), [["a", "b"], ["c"]]),
        ((str, (2, 2)), [np.zeros((2, 2)), np.zeros((2, 3))]),
    ],
)
def test_ragged_rows_are_refused(spec: Any, value: Any) -> None:
    complaint(spec, value)


# --- kinds and values --------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value", "worst"),
    [
        ("int8", [1, 128, 2], "128"),
        ("int8", [-129], "-129"),
        ("uint8", [1, -1], "-1"),
        ("uint8", [256], "256"),
        ("int32", [2**31], "2147483648"),
        ("int64", [2**63], "9223372036854775808"),
        ("uint64", [-1], "-1"),
        ("float32", [1, 2**24 + 1], "16777217"),
        ("float32", [2**31 - 1], "2147483647"),
        ("float32", [2**63 - 1], "9223372036854775807"),
        ("float32", [2**64 - 1], "18446744073709551615"),
        ("float32", [1, 2**63 + 1], "9223372036854775809"),
        ("float64", [[-1], [2**63 + 1]], "9223372036854775809"),
        ("complex64", [2**64 + 1], "18446744073709551617"),
        ("float16", [2**70], "1180591620717411303424"),
        ("float64", [-(2**53) - 1], "-9007199254740993"),
        ("float16", [70000], "70000"),
        ("float16", np.array([-(2**31)], "i4"), "-2147483648"),
        ("complex64", [2**24 + 1], "16777217"),
        ("complex64", [1j, 1e300 + 1j], "(1e+300+1j)"),
        ("float32", [1.0, 1e300], "1e+300"),
        ("float32", [-1e300], "-1e+300"),
        ("float16", np.array([1e5], "f4"), "100000.0"),
    ],
)
def test_a_value_that_the_dtype_cannot_hold_is_refused(dtype: str, value: Any, worst: str) -> None:
    error = complaint(dtype, value)
    where = re.escape(f"has the value {worst}") + r" in row \d, " + f"which {dtype} cannot hold"
    assert re.search(where, str(error))
    assert error.given == worst


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", [0, 255]),
        ("int8", [-128, 127]),
        ("uint64", [0, 2**63 - 1]),
        ("uint64", [2**64 - 1]),
        ("int64", np.array([5], "uint64")),
        ("int64", [True, False]),
        ("int64", []),
        ("int32", np.zeros(0, "int64")),
        ("float32", [True]),
        ("float32", [2**24, -(2**24), 2**63, 2**40]),
        ("float32", [2**70, 1]),
        ("float64", [[2**63], [0]]),
        ("uint64", [0, 2**63]),
        ("uint64", np.array([0, 2**64 - 1], object)),
        ("float64", [-(2**63), 2**53]),
        ("float32", [float("inf"), float("-inf")]),
        ("float32", np.arange(100)),
        ("float32", np.full(100, 1.5)),
        ("float16", np.array([float("inf")])),
        ("bool", [True, False]),
        ("M8[s]", np.array(["2020-01-01"], "M8[D]")),
        (">i4", [1, 2]),
        ("int32", np.array([1, 2], ">i4")),
    ],
)
def test_a_value_that_the_dtype_can_hold_stays_what_it_is(dtype: str, value: Any) -> None:
    arrived = conformed(dtype, value)
    assert arrived.dtype == np.dtype(dtype)
    expected = np.asarray(value).ravel()
    assert (
        [*map(float, arrived.tolist())] == [*map(float, expected.tolist())]
        if (expected.dtype.kind != "M")
        else (arrived == expected).all()
    )


numeric = st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


@on_busy_machines
@example(wanted="f4", values=np.array([1.5], "f2"), listed=False)
@example(wanted="f8", values=np.array([1.5], "f4"), listed=False)
@given(
    wanted=numeric,
    values=numeric.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 4))),
    listed=st.booleans(),
)
def test_numbers_are_never_changed_but_for_the_rounding_of_floats(
    wanted: str, values: Any, listed: bool
) -> None:
    dtype = np.dtype(wanted)
    given_values = values.tolist() if listed else values
    try:
        arrived = conformed(FeatureSpec(dtype, allow_nan=dtype.kind == "f"), given_values)
    except InvalidFeatures:
        kind = np.asarray(given_values).dtype
        assert kind.kind != dtype.kind or not np.can_cast(kind, dtype, "safe")
        return
    assert arrived.dtype == dtype
    assert arrived.shape == values.shape
    for before, after in zip(values.tolist(), arrived.tolist(), strict=True):
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                rounded = dtype.type(before)
            assert np.array_equal(rounded, dtype.type(after), equal_nan=True)
            assert np.isfinite(rounded) == np.isfinite(before)
        else:
            assert before == after  # Python compares integers and floats exactly


@on_busy_machines
@given(
    st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
)
def test_whole_numbers_arrive_if_and_only_if_the_dtype_can_hold_them(
    wanted: str, values: list[int]
) -> None:
    limits = np.iinfo(wanted)
    if limits.min <= min(values) and max(values) <= limits.max:
        assert conformed(wanted, values).tolist() == values
    else:
        complaint(wanted, values)


@on_busy_machines
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**25), 2**25), max_size=4))
def test_whole_numbers_arrive_as_floats_if_and_only_if_these_can_hold_them(
    values: list[int],
) -> None:
    for wanted in ("f4", "f8"):
        if all(int(np.dtype(wanted).type(value)) == value for value in values):
            assert conformed(wanted, values).tolist() == values
        else:
            complaint(wanted, values)


def test_an_array_of_the_declared_dtype_is_not_copied() -> None:
    values = np.zeros((2, 3), np.float32)
    assert conformed((np.float32, (3,)), values) is values


# --- text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        ["ä", b"\xff\0", "a\0", b"", ""],
        np.array(["ä", b"\xff\0", "a\0", b"", ""], object),
        [np.str_("ä"), np.bytes_(b"\xff\0"), "a\0", b"", ""],
    ],
)
def test_text_arrives_as_utf8_and_bytes_as_they_are(value: Any) -> None:
    arrived = conformed(str, value)
    assert arrived.dtype == object
    assert arrived.tolist() == ["ä".encode(), value[1], b"a\0", b"", b""]
    assert {type(item) for item in arrived} == {bytes}
    assert _columns.column_code(arrived) == "bytes"


@pytest.mark.parametrize("dtype", ["U5", "S5"])
def test_fixed_width_text_arrives_as_bytes(dtype: str) -> None:
    assert conformed(str, np.array(["a", "bc"], dtype)).tolist() == [b"a", b"bc"]
    assert conformed(str, np.array("a", dtype)[()], one=True).tolist() == [b"a"]


@pytest.mark.parametrize(
    "value",
    ["Sales", b"Sales", np.str_("Sales"), np.array("Sales", object)],
    ids=["str", "bytes", "numpy", "object"],
)
def test_the_text_of_one_example_arrives_as_bytes(value: Any) -> None:
    assert conformed(str, value, one=True).tolist() == [b"Sales"]
    assert conformed((str, (1,)), value, one=True).tolist() == [[b"Sales"]]


@on_busy_machines
@given(st.lists(st.lists(st.text() | st.binary(), min_size=2, max_size=2), min_size=1, max_size=3))
def test_no_text_is_cut_padded_or_changed(rows: list[list[str | bytes]]) -> None:
    expected = [[item.encode() if isinstance(item, str) else item for item in row] for row in rows]
    assert conformed((str, (2,)), rows).tolist() == expected


@pytest.mark.parametrize("value", [["a", "\ud800"], np.array(["\ud800"])])
def test_lone_surrogates_are_refused(value: Any) -> None:
    with pytest.raises(InvalidFeatures, match=r"'a' has the value '\\ud800' in row \d, which"):
        conformed(str, value)


@pytest.mark.parametrize("value", [[], np.array([]), np.array([], object), np.array([], "U1")])
def test_no_text_is_text(value: Any) -> None:
    arrived = conformed(str, value)
    assert (arrived.dtype, arrived.shape) == (object, (0,))


# --- missing values ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "missing", "value", "expected"),
    [
        ("float32", -1.0, [1.5, NAN], [1.5, -1.0]),
        ("float32", -1.0, [1.5, None], [1.5, -1.0]),
        ("float32", -1, [None, None], [-1.0, -1.0]),
        ("float32", -1.0, np.array([1.5, NAN], np.float32), [1.5, -1.0]),
        ("float32", -1.0, np.array([1.5, NAN]), [1.5, -1.0]),
        ("float32", -1.0, np.array([1.5, pd.NA], object), [1.5, -1.0]),
        ("float32", -1.0, ma.array([1.5, 1e300], mask=[False, True]), [1.5, -1.0]),
        ("float32", -1.0, pd.Series([1.5, None]), [1.5, -1.0]),
        ("float32", -1.0, pd.Series([1.5, None], dtype="Float64"), [1.5, -1.0]),
        ("float32", -1.0, pd.Series([1, None], dtype="Int64"), [1.0, -1.0]),
        ("int64", -1, [1, None], [1, -1]),
        ("int64", -1, [1, NAN], [1, -1]),
        ("int64", -1, np.array([1, None], object), [1, -1]),
        ("int64", -1, ma.array([1, 2], mask=[False, True]), [1, -1]),
        ("int64", -1, pd.Series([2**53 + 1, None], dtype="Int64"), [2**53 + 1, -1]),
        ("int8", -1, ma.array([1, 2], np.int8, mask=[False, True]), [1, -1]),
        ("bool", False, [True, None], [True, False]),
        ("bool", False, pd.Series([True, None], dtype="boolean"), [True, False]),
        ("complex64", 0, [1j, None], [1j, 0]),
        (str, "", ["a", None], [b"a", b""]),
        (str, "?", ["a", NAN], [b"a", b"?"]),
        (str, b"", ["a", pd.NA], [b"a", b""]),
        (str, "", ["a", pd.NaT], [b"a", b""]),
        (str, "", np.array(["a", None], object), [b"a", b""]),
        (str, "", ma.array(["a", "b"], mask=[False, True]), [b"a", b""]),
        (str, "", pd.Series(["a", None]), [b"a", b""]),
        (str, "", pd.Series(["a", None], dtype=object), [b"a", b""]),
        (str, "", pd.Series(["a", None], dtype="string"), [b"a", b""]),
        (str, "", pd.Series(["a", None], dtype="category"), [b"a", b""]),
        (str, "", pd.Series([None, None], dtype=float), [b"", b""]),
    ],
)
def test_missing_values_become_the_declared_one(
    dtype: Any, missing: Any, value: Any, expected: list[Any]
) -> None:
    kind = TEXT if dtype is str else np.dtype(dtype)
    spec = FeatureSpec(kind, missing=missing)
    arrived = conformed(spec, value)
    assert arrived.dtype == kind
    assert arrived.tolist() == expected
    row = conformed(spec, value[1], one=True)
    assert (row.dtype, row.tolist()) == (kind, expected[1:])
    wide = conformed(FeatureSpec(kind, (1,), missing=missing), value)
    assert wide.tolist() == [[item] for item in expected]


def test_missing_dates_become_the_declared_one() -> None:
    day = np.datetime64("2020-01-01", "s")
    spec = FeatureSpec(day.dtype, missing=day)
    for nothing in (None, pd.NaT, np.datetime64("NaT", "s")):
        assert conformed(spec, [day, nothing]).tolist() == [day.item()] * 2
    dates = pd.Series(pd.to_datetime(["2020-01-01", None])).astype("datetime64[s]")
    assert conformed(spec, dates).tolist() == [day.item()] * 2


def test_filling_in_leaves_what_was_given_as_it_is() -> None:
    values = np.array([1.0, NAN], np.float32)
    conformed(FeatureSpec(FLOAT, missing=0.0), values)
    assert np.isnan(values[1])


def test_what_is_no_missing_value_is_refused_all_the_same() -> None:
    complaint(FeatureSpec(INTEGER, missing=-1), [1.5, None])
    complaint(FeatureSpec(INTEGER, missing=-1), np.array([1.0, NAN]))
    complaint(FeatureSpec(TEXT, missing=""), ["a", 1.5])
    complaint(FeatureSpec(TEXT, missing=""), np.array([NAN, 1.0]))
    complaint(FeatureSpec(FLOAT, missing=0.0), ["a", None])
    column = pd.Series([2**53 + 1, None], dtype="Int64")  # which would be rounded as floats
    error = complaint(FeatureSpec(np.dtype("float64"), missing=0.0), column)
    assert error.given == "9007199254740993"


@pytest.mark.parametrize("size", [1, 2, 64, 5000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_nan_is_found_wherever_it_is(dtype: str, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        values = np.full(size, np.finfo(dtype).max, dtype)
        assert conformed(dtype, values) is values
        values[place] = NAN
        assert f" in row {place}, " in str(complaint(dtype, values))
        assert conformed(FeatureSpec(np.dtype(dtype), allow_nan=True), values) is values


def test_what_is_infinite_is_not_nan() -> None:
    for values in ([math.inf, -math.inf, 0.0], [complex(math.inf, 0), 1j, complex(0, -math.inf)]):
        dtype = np.asarray(values).dtype
        assert conformed(dtype, np.array(values)).tolist() == values
        assert conformed(dtype, values).tolist() == values


@pytest.mark.parametrize("value", [[1.5, NAN], np.array([1.5, NAN]), pd.Series([1.5, NAN])])
def test_nan_passes_where_it_is_allowed(value: Any) -> None:
    spec = FeatureSpec(FLOAT, allow_nan=True)
    arrived = conformed(spec, value)
    assert arrived.dtype == FLOAT
    assert np.array_equal(arrived, np.array([1.5, NAN]), equal_nan=True)
    assert np.isnan(conformed(spec, NAN, one=True)).tolist() == [True]
    assert "has None in row 1" in str(complaint(spec, [1.5, None]))
    masked = ma.array([1.5, NAN], mask=[False, True])
    assert "has a masked element in row 1" in str(complaint(spec, masked))


# --- pandas ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "column", "expected"),
    [
        ("int64", pd.Series([1, 2], dtype="Int64"), [1, 2]),
        ("int64", pd.Series([1, 2], dtype="Int8"), [1, 2]),
        ("uint8", pd.Series([1, 2], dtype="Int64"), [1, 2]),
        ("int64", pd.Series([1, 2], dtype=object), [1, 2]),
        ("float32", pd.Series([1, 2], dtype="Int64"), [1.0, 2.0]),
        ("float32", pd.Series([1.5, 2], dtype="Float64"), [1.5, 2.0]),
        ("float32", pd.Series([1.5, 2], dtype=object), [1.5, 2.0]),
        ("bool", pd.Series([True, False], dtype="boolean"), [True, False]),
        ("bool", pd.Series([True, False], dtype=object), [True, False]),
        ("int64", pd.Series([1, 2], dtype="category"), [1, 2]),
        (str, pd.Series(["a", "b"]), [b"a", b"b"]),
        (str, pd.Series(["a", "b"], dtype="string"), [b"a", b"b"]),
        (str, pd.Series(["a", b"b"], dtype=object), [b"a", b"b"]),
        (str, pd.Series(["a", "b"], dtype="category"), [b"a", b"b"]),
    ],
)
def test_columns_of_pandas_arrive(dtype: Any, column: Any, expected: list[Any]) -> None:
    column.index = [7, 3]  # labels are not places
    arrived = conformed(dtype, column)
    assert arrived.dtype == (TEXT if dtype is str else dtype)
    assert arrived.tolist() == expected


# --- rows of their own length ------------------------------------------------------


def ragged_rows(arrived: Any, dtype: Any) -> list[list[Any]]:
    """Return the rows as lists, having looked at their form."""
    assert (arrived.dtype, arrived.ndim) == (TEXT, 1)
    assert {(type(row), row.dtype, row.ndim) for row in arrived} <= {(np.ndarray, dtype, 1)}
    return [row.tolist() for row in arrived]


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [], [3]],
        ([1, 2], (), [3]),
        [np.array([1, 2]), np.array([]), np.array([3], np.int8)],
        np.array([[1, 2], [], [3]], object),
        pd.Series([[1, 2], [], [3]]),
        [pd.Series([1, 2]), range(0), [3]],
        [[1, 2], [], [[3]]],
    ],
)
def test_rows_of_their_own_length_arrive(value: Any) -> None:
    assert ragged_rows(conformed(RAGGED, value), INTEGER) == [[1, 2], [], [3]]


def test_ragged_text_arrives_as_bytes() -> None:
    rows = ragged_rows(conformed(RAGGED_TEXT, [["a\0", b"\xff"], [], ["\u00e4"]]), TEXT)
    assert rows == [[b"a\0", b"\xff"], [], ["\u00e4".encode()]]


def test_rows_of_one_length_are_ragged_rows_as_well() -> None:
    for value in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])):
        assert ragged_rows(conformed(RAGGED, value), INTEGER) == [[1, 2], [3, 4]]
    assert ragged_rows(conformed(RAGGED, []), INTEGER) == []
    assert ragged_rows(conformed(RAGGED, np.zeros((0, 3), int)), INTEGER) == []


def test_one_ragged_example_is_one_sequence() -> None:
    assert ragged_rows(conformed(RAGGED, [1, 2], one=True), INTEGER) == [[1, 2]]
    assert ragged_rows(conformed(RAGGED, [], one=True), INTEGER) == [[]]
    assert ragged_rows(conformed(RAGGED_TEXT, ["a"], one=True), TEXT) == [[b"a"]]


def test_a_ragged_row_that_is_missing_has_no_elements() -> None:
    spec = FeatureSpec(INTEGER, ragged=True, missing=-1)
    for nothing in (None, NAN, pd.NA, np.ma.masked):
        arrived = conformed(spec, [[1, None], nothing])
        assert ragged_rows(arrived, INTEGER) == [[1, -1], []]
    assert ragged_rows(conformed(spec, None, one=True), INTEGER) == [[]]
    floats = FeatureSpec(FLOAT, ragged=True, allow_nan=True)
    assert np.isnan(conformed(floats, [[NAN]])[0]).tolist() == [True]


# --- every valid request -----------------------------------------------------------

FLOATS_32 = st.floats(width=32)


@st.composite
def valid_features(draw: st.DrawFn) -> tuple[FeatureSpec, list[Any], list[Any]]:
    """Draw a specification, what is given for it, and what has to arrive."""
    dtype, elements = draw(
        st.sampled_from(
            [
                ("float32", FLOATS_32),
                ("float64", st.floats()),
                ("int64", st.integers(-(2**63), 2**63 - 1)),
                ("uint64", st.integers(0, 2**64 - 1)),
                ("int8", st.integers(-128, 127)),
                ("bool", st.booleans()),
                ("O", st.text() | st.binary()),
            ]
        )
    )
    filler: Any = {"O": b"?", "bool": True}.get(dtype, 1)
    fills = draw(st.booleans())
    spec = FeatureSpec(
        np.dtype(dtype),
        missing=filler if fills else REQUIRED,
        allow_nan=dtype.startswith("float") and not fills,
        ragged=draw(st.booleans()),
    )
    if fills:
        elements |= st.sampled_from([None, NAN, pd.NA, pd.NaT])
    rows = draw(st.lists(st.lists(elements, max_size=4) if spec.ragged else elements, max_size=5))

    def arrives(item: Any) -> Any:
        if isinstance(item, str | bytes):
            return item.encode() if isinstance(item, str) else item
        return filler if fills and pd.isna(item) else item

    expected: list[Any] = [
        [*map(arrives, row)] if isinstance(row, list) else arrives(row) for row in rows
    ]
    return spec, rows, expected


@settings(on_busy_machines, max_examples=300)
@given(valid_features())
def test_whatever_is_valid_arrives_with_its_values(
    drawn: tuple[FeatureSpec, list[Any], list[Any]],
) -> None:
    spec, rows, expected = drawn
    arrived = conformed(spec, rows)
    assert len(arrived) == len(rows)
    for index, (row, values) in enumerate(zip(arrived, expected, strict=True)):
        assert arrived.dtype == (TEXT if spec.ragged else spec.dtype)
        assert same(row, values, spec)
        assert same(conformed(spec, rows[index], one=True)[0], values, spec)


def same(row: Any, values: Any, spec: FeatureSpec) -> bool:
    """Whether a row is of the right dtype and shape and has these values."""
    if spec.ragged:
        assert (row.dtype, row.shape) == (spec.dtype, (len(values),))
    elif spec.dtype != TEXT:
        assert row.dtype == spec.dtype
    if spec.dtype == TEXT:
        return bool((row.tolist() if spec.ragged else row) == values)
    return np.array_equal(row, np.array(values, spec.dtype), equal_nan=spec.dtype.kind == "f")
