"""Features reach the model exactly as declared, or the caller is told what is wrong."""

import copy
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictpool import _columns
from predictpool._encoder import Encoder
from predictpool._errors import InvalidFeatures
from predictpool._signature import (
    REQUIRED,
    UNNAMED,
    FeatureSpec,
    Signature,
    as_arrays,
)

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FLOAT = np.dtype("float32")
TEXT = np.dtype(object)


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


# --- how a signature is declared ---------------------------------------------------


class TensorSpec:
    """What is needed of a tf.TensorSpec, without TensorFlow."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype


class TensorShape:
    """What is needed of a tf.TensorShape whose rank is not known."""

    def __iter__(self) -> Any:
        raise ValueError("Cannot iterate over a shape with unknown rank.")


class DType:
    """What is needed of a tf.DType."""

    def __init__(self, as_numpy_dtype: Any) -> None:
        self.as_numpy_dtype = as_numpy_dtype


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (np.float32, FeatureSpec(FLOAT)),
        ("float32", FeatureSpec(FLOAT)),
        (np.dtype("float32"), FeatureSpec(FLOAT)),
        (DType(np.float32), FeatureSpec(FLOAT)),
        (float, FeatureSpec(np.dtype("float64"))),
        (int, FeatureSpec(np.dtype("int64"))),
        (bool, FeatureSpec(np.dtype("bool"))),
        (str, FeatureSpec(TEXT)),
        (bytes, FeatureSpec(TEXT)),
        (object, FeatureSpec(TEXT)),
        ("U5", FeatureSpec(TEXT)),
        (np.str_, FeatureSpec(TEXT)),
        (DType(np.object_), FeatureSpec(TEXT)),
        ((np.float32,), FeatureSpec(FLOAT)),
        ((np.float32, ()), FeatureSpec(FLOAT)),
        ((np.float32, (3,)), FeatureSpec(FLOAT, (3,))),
        ((np.float32, [3, None]), FeatureSpec(FLOAT, (3, None))),
        ((np.float32, (), 1.5), FeatureSpec(FLOAT, (), 1.5)),
        ((str, (), ""), FeatureSpec(TEXT, (), "")),
        (FeatureSpec(FLOAT, (3,)), FeatureSpec(FLOAT, (3,))),
        (FeatureSpec(np.dtype("S3")), FeatureSpec(TEXT)),
        (TensorSpec([None, 3], DType(np.float32)), FeatureSpec(FLOAT, (3,))),
        (TensorSpec([None], DType(np.object_)), FeatureSpec(TEXT)),
        (TensorSpec([None, None], np.dtype("float32")), FeatureSpec(FLOAT, (None,))),
    ],
)
def test_every_notation_declares_a_feature(spec: Any, expected: FeatureSpec) -> None:
    assert Signature.declared({"a": spec}).features == {"a": expected}
    if not isinstance(spec, Mapping):
        assert Signature.declared(spec).features == {UNNAMED: expected}


def test_a_signature_is_declared_by_itself() -> None:
    signature = Signature.declared({"a": np.float32})
    assert Signature.declared(signature) is signature


@pytest.mark.parametrize(
    "spec",
    [
        None,
        5,
        "no dtype",
        "f4(",
        [np.float32, (3,)],
        [("x", "f4")],
        "V8",
        {"dtype": np.float32},
        (),
        (np.float32, (), 0, "more"),
        (np.float32, 3),
        (np.float32, None),
        (np.float32, "ab"),
        (np.float32, (-1,)),
        (np.float32, (1.5,)),
        (None, ()),
        ((3,), np.float32),
        TensorSpec(TensorShape(), np.float32),
    ],
)
def test_what_declares_no_feature_is_a_type_error_that_says_what_does(spec: Any) -> None:
    with pytest.raises(TypeError, match=r"signature of feature 'a' is .*; expected a dtype"):
        Signature.declared({"a": spec})


@pytest.mark.parametrize("shape", [[], [3], [3, None]])
def test_a_tensor_spec_without_an_axis_for_the_rows_is_refused(shape: list[int | None]) -> None:
    with pytest.raises(TypeError, match=r"feature 'a'.* has to begin with None"):
        Signature.declared({"a": TensorSpec(shape, np.float32)})


def test_a_signature_names_at_least_one_feature_and_none_beside_the_unnamed_one() -> None:
    with pytest.raises(TypeError, match="name at least one"):
        Signature.declared({})
    with pytest.raises(TypeError, match="the name '' among others"):
        Signature.declared({"": np.float32, "a": np.float32})


@pytest.mark.parametrize("default", ["text", 1.5, None, 300, [1, 2]])
def test_a_default_that_does_not_fit_is_refused_where_it_is_declared(default: Any) -> None:
    with pytest.raises(TypeError, match="default does not fit: feature 'a'"):
        Signature.declared({"a": (np.uint8, (), default)})


def test_a_signature_says_what_it_expects() -> None:
    signature = Signature.declared(
        {"age": np.float32, "words": (str, (None,)), "x": ("i8", (2, 3))}
    )
    assert str(signature) == (
        "age: float32 rows of shape (), words: text rows of shape (any,), "
        "x: int64 rows of shape (2, 3)"
    )
    assert str(Signature.declared(np.float32)) == "features: float32 rows of shape ()"


def test_a_signature_survives_pickling() -> None:
    signature = Signature.declared({"a": np.float32, "b": (str, (), "none")})
    for again in (pickle.loads(pickle.dumps(signature)), copy.deepcopy(signature)):
        assert again == signature
        assert again.features["a"].default is REQUIRED
        with pytest.raises(InvalidFeatures, match="'a' is missing"):
            again.conform({"b": ["x"]})
        assert again.conform({"a": [1.0]})["b"].tolist() == [b"none"]


def test_an_example_fits_its_own_signature() -> None:
    signature = Signature.declared(
        {"a": np.float32, "b": (str, (2,)), "c": (np.int64, (None, 3)), "d": "M8[s]", "e": bool}
    )
    example = signature.example()
    arrays = signature.conform(example)
    assert [len(values) for values in arrays.values()] == [1] * 5
    assert example["b"].tolist() == [[b"", b""]]
    assert example["c"].shape == (1, 1, 3)


# --- names -------------------------------------------------------------------------

CENSUS = Signature.declared({"age": np.float32, "occupation": str, "hours": (np.int64, (), 40)})


def test_features_come_in_the_order_of_the_signature() -> None:
    arrays = CENSUS.conform({"hours": [1], "occupation": ["Sales"], "age": [39.0]})
    assert list(arrays) == ["age", "occupation", "hours"]
    arrays = CENSUS.conform({"occupation": ["Sales"], "age": [39.0]})
    assert list(arrays) == ["age", "occupation", "hours"]


def test_a_default_stands_in_for_every_row() -> None:
    given_features = {"age": [1.0, 2.0, 3.0], "occupation": ["a", "b", "c"]}
    arrays = CENSUS.conform(given_features)
    assert arrays["hours"].tolist() == [40, 40, 40]
    assert arrays["hours"].dtype == np.int64
    assert CENSUS.conform({"age": [], "occupation": []})["hours"].shape == (0,)
    assert CENSUS.conform({"age": 1.0, "occupation": "a"}, one=True)["hours"].tolist() == [40]
    wide = Signature.declared({"a": np.float32, "b": (np.float32, (2,), [1.0, 2.0])})
    assert wide.conform({"a": [0.0, 0.0]})["b"].tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_a_missing_feature_is_named_with_what_it_could_be() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        CENSUS.conform({"age": [1.0], "ocupation": ["Sales"]})
    assert str(caught.value) == (
        "feature 'occupation' is missing: given [age, ocupation], expected text rows of shape (); "
        "did you mean it by 'ocupation'?"
    )
    assert caught.value.feature == "occupation"
    assert caught.value.given == "[age, ocupation]"
    assert caught.value.expected == "text rows of shape ()"
    with pytest.raises(InvalidFeatures, match=r"'age' is missing: given \[\], expected.*\(\)$"):
        CENSUS.conform({})


def test_an_unknown_feature_is_named_with_what_it_could_be() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        CENSUS.conform({"age": [1.0], "occupation": ["Sales"], "hour": [1]})
    assert str(caught.value) == (
        "feature 'hour' is unknown: expected [age, occupation, hours]; did you mean 'hours'?"
    )
    assert (caught.value.feature, caught.value.given) == ("hour", "hour")
    assert caught.value.expected == "[age, occupation, hours]"
    full = {"age": [1.0], "occupation": ["Sales"], "hours": [1]}
    with pytest.raises(InvalidFeatures, match=r"'zzz' is unknown: expected \[.*\]$"):
        CENSUS.conform(full | {"zzz": [1]})


def test_features_without_names_are_refused_where_names_are_expected() -> None:
    for features in ([1.0], np.zeros((2, 3)), None, "text", 5):
        with pytest.raises(
            InvalidFeatures, match=r"expected a mapping.*\[age, occupation, hours\]"
        ):
            CENSUS.conform(features)


def test_names_are_refused_where_one_array_is_expected() -> None:
    signature = Signature.declared((np.float32, (2,)))
    assert signature.conform([[1, 2]])[UNNAMED].tolist() == [[1.0, 2.0]]
    message = r"features are a mapping of \[a\], expected one array: float32 rows of shape \(2,\)"
    with pytest.raises(InvalidFeatures, match=message):
        signature.conform({"a": [[1, 2]]})
    with pytest.raises(InvalidFeatures, match="the array of features has the shape"):
        signature.conform([1, 2, 3])


def test_what_has_keys_and_items_is_a_mapping() -> None:
    class Frame:  # as a pandas DataFrame, which is no Mapping
        def __init__(self) -> None:
            self.columns = {"age": np.array([1.0]), "occupation": np.array(["Sales"], object)}

        def keys(self) -> Any:
            return self.columns.keys()

        def __iter__(self) -> Any:
            return iter(self.columns)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, name: str) -> Any:
            return self.columns[name]

    assert CENSUS.conform(Frame())["occupation"].tolist() == [b"Sales"]


def test_unequal_lengths_are_listed() -> None:
    features = {"age": [1.0, 2.0], "occupation": ["a"], "hours": [1, 2]}
    message = r"differ in their number of rows \(age: 2, occupation: 1, hours: 2\)"
    with pytest.raises(InvalidFeatures, match=message) as caught:
        CENSUS.conform(features)
    assert caught.value.feature is None
    with pytest.raises(InvalidFeatures, match=r"\(age: 2, occupation: 1, hours: 2\)"):
        as_arrays(features)


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


def test_one_example_has_no_row_axis() -> None:
    arrays = CENSUS.conform({"age": 39, "occupation": "Sales", "hours": 3}, one=True)
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "age": [39.0],
        "occupation": [b"Sales"],
        "hours": [3],
    }
    with pytest.raises(InvalidFeatures, match=r"has the shape \(2,\), expected a row of shape"):
        CENSUS.conform({"age": [39, 40], "occupation": "Sales"}, one=True)
    with pytest.raises(InvalidFeatures, match=r"has the shape \(\), expected rows on the first"):
        CENSUS.conform({"age": 39, "occupation": "Sales"})


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
    ("dtype", "value", "words"),
    [
        ("int64", [1.5], "float64 values (1.5)"),
        ("int64", [1.0], "float64 values (1.0)"),
        ("int64", ["7"], "<U1 values ('7')"),
        ("int64", [None], "objects (None)"),
        ("int64", [2**64], "objects (18446744073709551616)"),
        ("bool", [1], "int64 values (1)"),
        ("float32", ["1.5"], "<U3 values ('1.5')"),
        ("float32", [b"1.5"], "|S3 values (b'1.5')"),
        ("float32", [1j], "complex128 values (1j)"),
        ("float32", [None, 1.0], "objects (None, 1.0)"),
        ("float32", [{}], "objects ({})"),
        ("float32", np.array(["2020-01-01"], "M8[D]"), "datetime64[D] values"),
        ("M8[s]", np.array(["2020-01-01T00:00:00.5"], "M8[ms]"), "datetime64[ms] values"),
        (str, np.array([1, 2]), "int64 values (1, 2)"),
        (str, np.array([1.5]), "float64 values (1.5)"),
        (str, [1], "the value 1 of type int"),
        (str, ["a", None], "the value None of type NoneType"),
        (str, ["a", float("nan")], "the value nan of type float"),
        (str, [["a"], "b"], "the value ['a'] of type list"),
    ],
)
def test_another_kind_is_refused(dtype: Any, value: Any, words: str) -> None:
    error = complaint(dtype, value)
    assert words in str(error)
    assert str(Signature.declared({"a": dtype}).features["a"]) in str(error)


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
    assert f"has the value {worst}, which {dtype} cannot hold" in str(error)
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
    expected = np.asarray(value)
    assert (
        [*map(float, arrived.tolist())] == [*map(float, expected.tolist())]
        if (expected.dtype.kind != "M")
        else (arrived == expected).all()
    )


numeric = st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


@on_busy_machines
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
    values = np.asarray(given_values)
    try:
        arrived = conformed(dtype, given_values)
    except InvalidFeatures:
        assert values.dtype.kind != dtype.kind or not np.can_cast(values.dtype, dtype, "safe")
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
    with pytest.raises(InvalidFeatures, match=r"'a' has the value '\\ud800', which is no valid"):
        conformed(str, value)


@pytest.mark.parametrize("value", [[], np.array([]), np.array([], object), np.array([], "U1")])
def test_no_text_is_text(value: Any) -> None:
    arrived = conformed(str, value)
    assert (arrived.dtype, arrived.shape) == (object, (0,))


# --- without a signature -----------------------------------------------------------


def test_without_a_signature_features_are_what_numpy_makes_of_them() -> None:
    arrays, mapping = as_arrays({"a": [1, 2], "b": [1.5, 2], "c": [[True], [False]]})
    assert mapping
    assert [str(values.dtype) for values in arrays.values()] == ["int64", "float64", "bool"]
    assert arrays["c"].shape == (2, 1)
    arrays, mapping = as_arrays([[1, 2], [3, 4]])
    assert not mapping
    assert arrays[UNNAMED].tolist() == [[1, 2], [3, 4]]


def test_without_a_signature_text_in_lists_is_neither_cut_nor_padded() -> None:
    arrays, _ = as_arrays({"a": ["a\0", "longer"], "b": [[b"\0"], [b"b\0"]]})
    assert arrays["a"].tolist() == ["a\0", "longer"]
    assert arrays["b"].tolist() == [[b"\0"], [b"b\0"]]
    fixed = np.array(["a", "b"])
    assert as_arrays({"a": fixed})[0]["a"] is fixed


def test_without_a_signature_one_example_has_no_row_axis() -> None:
    arrays, _ = as_arrays({"a": 1, "b": "text", "c": [1.0, 2.0]}, one=True)
    assert {name: values.shape for name, values in arrays.items()} == {
        "a": (1,),
        "b": (1,),
        "c": (1, 2),
    }
    message = r"feature 'a' is the single value 1, .*predict_one takes one example"
    with pytest.raises(InvalidFeatures, match=message):
        as_arrays({"a": 1})
    with pytest.raises(InvalidFeatures, match="the array of features is the single value 1"):
        as_arrays(1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "features are empty: expected at least one name"),
        ({"a": [[1, 2], [3]]}, "feature 'a' is a list that is no array .*need the same shape"),
        ([[1, 2], [3]], "the array of features is a list that is no array"),
    ],
)
def test_without_a_signature_what_is_no_array_is_refused(features: Any, message: str) -> None:
    with pytest.raises(InvalidFeatures, match=message):
        as_arrays(features)


# --- inferred ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.5], FeatureSpec(FLOAT)),
        (np.zeros((2, 3)), FeatureSpec(FLOAT, (3,))),
        (np.zeros(2, "f2"), FeatureSpec(FLOAT)),
        (["a"], FeatureSpec(TEXT)),
        ([b"a", "b"], FeatureSpec(TEXT)),
        (np.array(["a"]), FeatureSpec(TEXT)),
        (np.array([[b"a", b"b"]]), FeatureSpec(TEXT, (2,))),
    ],
)
def test_floats_and_text_are_inferred(value: Any, expected: FeatureSpec) -> None:
    assert Signature.inferred(as_arrays({"a": value})[0]).features == {"a": expected}
    assert Signature.inferred(as_arrays(value)[0]).features == {UNNAMED: expected}


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2], "int64"),
        ([True], "bool"),
        ([1j], "complex128"),
        ([None], "object"),
        (["a", None], "object"),
        (np.zeros(2, "M8[s]"), r"datetime64\[s\]"),
    ],
)
def test_every_other_kind_has_to_be_declared(value: Any, dtype: str) -> None:
    message = rf"feature 'a' has dtype {dtype}, .* declare it, for example signature=\{{'a': "
    with pytest.raises(InvalidFeatures, match=message) as caught:
        Signature.inferred(as_arrays({"a": value})[0])
    assert caught.value.feature == "a"


@pytest.mark.parametrize("value", [[], np.zeros((0, 3)), np.array([], object)])
def test_nothing_is_inferred_from_no_values(value: Any) -> None:
    with pytest.raises(InvalidFeatures, match=re.escape("declare signature=")):
        Signature.inferred(as_arrays({"a": value})[0])


# --- encoding ----------------------------------------------------------------------

ENCODED = Signature.declared(
    {"a": np.float32, "b": (np.int64, (1,)), "t": str, "v": (np.float32, (2,))}
)

MAYBE_RIGHT = st.fixed_dictionaries(
    {
        "a": st.sampled_from(
            [
                np.ones(2, np.float32),
                np.ones(3, np.float32),
                np.ones(2, np.float64),
                np.ones((2, 1), np.float32),
                np.float32(1),
                np.array(1, np.float32),
                [1.0, 2.0],
            ]
        ),
        "b": st.sampled_from(
            [np.ones(2, np.int64), np.ones((2, 1), np.int64), np.ones((2, 2), np.int64)]
        ),
        "t": st.sampled_from(
            [
                np.array(["x", "\u00e9"], object),
                np.array([b"x", "y"], object),
                np.array(["x", "\ud800"], object),
                np.array(["x", 1], object),
                np.array([["x"], [b"\0"]], object),
                np.array(["x", "y"]),
                ["x", "y"],
            ]
        ),
        "v": st.sampled_from(
            [np.ones((2, 2), np.float32), np.ones((2, 2), np.float32).T, np.ones(2, np.float32)]
        ),
    },
)


@settings(on_busy_machines, max_examples=500)
@given(MAYBE_RIGHT, st.sampled_from(["", "", "", "a", "t"]), st.sampled_from(["", "", "", "x"]))
def test_the_short_way_of_encoding_is_as_good_as_the_long_one(
    features: dict[str, Any], missing: str, unknown: str
) -> None:
    features.pop(missing, None)
    features |= {unknown: np.ones(2, np.float32)} if unknown else {}
    short, long = Encoder(ENCODED), Encoder(ENCODED)
    long._exact = None  # nothing is right as it is
    assert encoded_or_refused(short, features) == encoded_or_refused(long, features)


def encoded_or_refused(encoder: Encoder, features: dict[str, Any]) -> object:
    try:
        schema, parts, rows = encoder.encode(features, one=False)
    except InvalidFeatures as error:
        return str(error)
    return schema, [bytes(part) for part in parts], rows


def test_arrays_that_are_right_take_the_short_way() -> None:
    features = {
        "a": np.ones(2, np.float32),
        "b": np.ones(2, np.int64),
        "t": np.array(["x", b"y"], object),
        "v": np.ones((2, 2), np.float32),
    }
    assert Encoder(ENCODED)._encode_exact(features) is not None
