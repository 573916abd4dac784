"""What does not fit is refused: what was given, what is expected, what to do, word by word."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from predictpool._errors import InvalidFeatures
from predictpool._features._signature import Signature, as_arrays
from predictpool._features._spec import FeatureSpec

NAN = float("nan")
ma: Any = np.ma  # which has no types
FLOAT = np.dtype("float32")
INTEGER = np.dtype("int64")
TEXT = np.dtype(object)
RAGGED = FeatureSpec(INTEGER, ragged=True)
RAGGED_FLOATS = FeatureSpec(FLOAT, ragged=True)
RAGGED_TEXT = FeatureSpec(TEXT, ragged=True)

# What messages advise.
MISSING_NAN = (
    "give a value, or declare missing=... (what stands in for it) or "
    "allow_nan=True (NaN reaches the model) in its FeatureSpec"
)
MISSING = "give a value, or declare missing=... (what stands in for it) in its FeatureSpec"
ROUND = (
    "round and cast them on purpose, or declare a float dtype (pandas makes "
    "floats of integers beside NaN: its dtype 'Int64' does not)"
)
NUMBERS = "convert text to numbers first, or declare the feature as text (str)"
TEXTS = "convert them with str(), or declare a numeric dtype"
DATES = "give arrays of that dtype (astype makes them, and rounds what is finer than its unit)"
SHAPE = (
    "rows of one feature need the same shape; FeatureSpec(..., ragged=True) is "
    "for rows of their own length"
)
LIST = "put it into a list, or use predict_one for one example"
SECONDS = "make numbers of them first: (dates - start) / np.timedelta64(1, 's')"
VALUES = "give a list or an array of its values"
WIDER = "correct it, or declare a wider dtype"


class Broken:
    """What has an array, which cannot be had."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no data")


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (
            "int64",
            [1, 1.5],
            (
                "feature 'a' has float64 values (1.0, 1.5), expected int64 rows of shape (): "
                + ROUND
            ),
        ),
        (
            "int64",
            np.array([1.0, 2.0]),
            (
                "feature 'a' has float64 values (1.0, 2.0), expected int64 rows of shape (): "
                + ROUND
            ),
        ),
        (
            "bool",
            [1, 0],
            (
                "feature 'a' has int64 values (1, 0), expected bool rows of shape (): give "
                "True and False (values != 0 does), or declare a number"
            ),
        ),
        (
            "bool",
            [1.5],
            (
                "feature 'a' has float64 values (1.5), expected bool rows of shape (): give "
                "True and False (values != 0 does), or declare a number"
            ),
        ),
        (
            "int64",
            ["7"],
            ("feature 'a' has text ('7'), expected int64 rows of shape (): " + NUMBERS),
        ),
        (
            "int64",
            np.array([b"7"]),
            ("feature 'a' has text (b'7'), expected int64 rows of shape (): " + NUMBERS),
        ),
        (
            "int64",
            [1, "7"],
            ("feature 'a' has text ('1', '7'), expected int64 rows of shape (): " + NUMBERS),
        ),
        (
            "int64",
            np.array([1, "7"], object),
            (
                "feature 'a' has the value '7' of type str in row 1, expected int64 rows of "
                "shape (): " + NUMBERS
            ),
        ),
        (
            "float32",
            ["1.5"],
            ("feature 'a' has text ('1.5'), expected float32 rows of shape (): " + NUMBERS),
        ),
        (
            "float32",
            [b"1.5"],
            ("feature 'a' has text (b'1.5'), expected float32 rows of shape (): " + NUMBERS),
        ),
        (
            str,
            np.array([1, 2]),
            ("feature 'a' has int64 values (1, 2), expected text rows of shape (): " + TEXTS),
        ),
        (
            str,
            [1],
            (
                "feature 'a' has the value 1 of type int in row 0, expected text rows of "
                "shape (): " + TEXTS
            ),
        ),
        (
            str,
            ["a", 1.5],
            (
                "feature 'a' has the value 1.5 of type float in row 1, expected text rows of "
                "shape (): " + TEXTS
            ),
        ),
        (
            str,
            np.array([True]),
            ("feature 'a' has bool values (True), expected text rows of shape (): " + TEXTS),
        ),
        (
            "int64",
            [1, None],
            (
                "feature 'a' has None in row 1, which is a missing value, expected int64 "
                "rows of shape (): " + MISSING
            ),
        ),
        (
            "int64",
            [1, NAN],
            (
                "feature 'a' has nan in row 1, which is a missing value, expected int64 rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            "float32",
            [1.0, NAN],
            (
                "feature 'a' has nan in row 1, which is a missing value, expected float32 "
                "rows of shape (): " + MISSING_NAN
            ),
        ),
        (
            "float32",
            [1.0, None],
            (
                "feature 'a' has None in row 1, which is a missing value, expected float32 "
                "rows of shape (): " + MISSING
            ),
        ),
        (
            "float32",
            np.array([[1.0], [NAN]]),
            (
                "feature 'a' has nan in row 1, which is a missing value, expected float32 "
                "rows of shape (): " + MISSING_NAN
            ),
        ),
        (
            str,
            ["a", None],
            (
                "feature 'a' has None in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            str,
            ["a", NAN],
            (
                "feature 'a' has nan in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            str,
            np.array([NAN, NAN]),
            (
                "feature 'a' has nan in row 0, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            "int8",
            [1, 128, 2],
            (
                "feature 'a' has the value 128 in row 1, which int8 cannot hold (-128 to "
                "127): " + WIDER
            ),
        ),
        (
            "uint8",
            np.array([1, -1]),
            ("feature 'a' has the value -1 in row 1, which uint8 cannot hold (0 to 255): " + WIDER),
        ),
        (
            "int64",
            [1, 2**63],
            (
                "feature 'a' has the value 9223372036854775808 in row 1, which int64 cannot "
                "hold (-9223372036854775808 to 9223372036854775807): " + WIDER
            ),
        ),
        (
            "int64",
            [-1, 2**63],
            (
                "feature 'a' has the value 9223372036854775808 in row 1, which int64 cannot "
                "hold (-9223372036854775808 to 9223372036854775807): " + WIDER
            ),
        ),
        (
            "int64",
            [2**64],
            (
                "feature 'a' has the value 18446744073709551616 in row 0, which int64 cannot "
                "hold (-9223372036854775808 to 9223372036854775807): " + WIDER
            ),
        ),
        (
            "int64",
            np.array([2**64 - 1], np.uint64),
            (
                "feature 'a' has the value 18446744073709551615 in row 0, which int64 cannot "
                "hold (-9223372036854775808 to 9223372036854775807): " + WIDER
            ),
        ),
        (
            "uint64",
            [2**63, -1],
            (
                "feature 'a' has the value -1 in row 1, which uint64 cannot hold (0 to "
                "18446744073709551615): " + WIDER
            ),
        ),
        (
            "float32",
            [2**24, 2**24 + 1],
            (
                "feature 'a' has the value 16777217 in row 1, which float32 cannot hold "
                "exactly: give floats if it may be rounded, or declare a wider dtype"
            ),
        ),
        (
            "float32",
            [1, 2**64 + 1],
            (
                "feature 'a' has the value 18446744073709551617 in row 1, which float32 cannot "
                "hold exactly: give floats if it may be rounded, or declare a wider dtype"
            ),
        ),
        (
            "float32",
            [1.0, 1e300],
            (
                "feature 'a' has the value 1e+300 in row 1, which float32 cannot hold but as "
                "infinite: " + WIDER
            ),
        ),
        (
            "float16",
            np.array([70000], np.float32),
            (
                "feature 'a' has the value 70000.0 in row 0, which float16 cannot hold but "
                "as infinite: " + WIDER
            ),
        ),
        (
            str,
            ["a", "\ud800"],
            (
                "feature 'a' has the value '\\ud800' in row 1, which is no valid text "
                "(surrogates not allowed): give bytes, or text without lone surrogates"
            ),
        ),
        (
            (np.float32, (2,)),
            [1.0, 2.0],
            (
                "feature 'a' has the shape (2,), expected rows on the first axis and each "
                "row of shape (2,): one example without the row axis is for predict_one"
            ),
        ),
        (
            (np.float32, (2,)),
            [[1.0], [2.0]],
            (
                "feature 'a' has the shape (2, 1), expected rows on the first axis and each "
                "row of shape (2,)"
            ),
        ),
        (
            "float32",
            [[1.0, 2.0]],
            (
                "feature 'a' has the shape (1, 2), expected rows on the first axis and each "
                "row of shape ()"
            ),
        ),
        (
            "float32",
            1.0,
            (
                "feature 'a' has the shape (), expected rows on the first axis and each row "
                "of shape (): " + LIST
            ),
        ),
        (
            str,
            "Sales",
            (
                "feature 'a' has the shape (), expected rows on the first axis and each row "
                "of shape (): " + LIST
            ),
        ),
        (
            str,
            b"Sales",
            (
                "feature 'a' has the shape (), expected rows on the first axis and each row "
                "of shape (): " + LIST
            ),
        ),
        (
            (np.float32, (2,)),
            [[1.0, 2.0], [3.0]],
            (
                "feature 'a' is a list that is no array (setting an array element with a "
                "sequence. The requested array has an inhomogeneous shape after 1 "
                "dimensions. The detected shape was (2,) + inhomogeneous part.), expected "
                "float32 rows of shape (2,): " + SHAPE
            ),
        ),
        (
            (str, (2,)),
            [["a", "b"], ["c"]],
            (
                "feature 'a' has the value ['a', 'b'] of type list in row 0, expected text "
                "rows of shape (2,): " + SHAPE
            ),
        ),
        (
            "float32",
            ma.array([1.0, 2.0], mask=[False, True]),
            (
                "feature 'a' has a masked element in row 1, which is a missing value, "
                "expected float32 rows of shape (): " + MISSING
            ),
        ),
        (
            "int64",
            ma.array([1, 2], mask=[False, True]),
            (
                "feature 'a' has a masked element in row 1, which is a missing value, "
                "expected int64 rows of shape (): " + MISSING
            ),
        ),
        (
            str,
            ma.array(["a", "b"], mask=[False, True]),
            (
                "feature 'a' has a masked element in row 1, which is a missing value, "
                "expected text rows of shape (): " + MISSING
            ),
        ),
        (
            "int64",
            pd.Series([1, None], dtype="Int64"),
            (
                "feature 'a' has <NA> in row 1, which is a missing value, expected int64 "
                "rows of shape (): " + MISSING
            ),
        ),
        (
            "int64",
            pd.Series([1, None]),
            (
                "feature 'a' has nan in row 1, which is a missing value, expected int64 rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            "float32",
            pd.Series([1.5, None], dtype="Float64"),
            (
                "feature 'a' has nan in row 1, which is a missing value, expected float32 "
                "rows of shape (): " + MISSING_NAN
            ),
        ),
        (
            "bool",
            pd.Series([True, None], dtype="boolean"),
            (
                "feature 'a' has <NA> in row 1, which is a missing value, expected bool rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            str,
            pd.Series(["a", None], dtype="string"),
            (
                "feature 'a' has <NA> in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            str,
            pd.Series(["a", None], dtype=object),
            (
                "feature 'a' has None in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            str,
            pd.Series(["a", None], dtype="category"),
            (
                "feature 'a' has nan in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            "M8[s]",
            pd.Series(pd.to_datetime(["2020-01-01", None])).astype("M8[s]"),
            (
                "feature 'a' has NaT in row 1, which is a missing value, expected "
                "datetime64[s] rows of shape (): " + MISSING
            ),
        ),
        (
            "float32",
            pd.Series(pd.to_datetime(["2020-01-01"])),
            (
                "feature 'a' has datetime64[us] values (datetime.datetime(2020, 1, 1, 0, "
                "0)), expected float32 rows of shape (): " + SECONDS
            ),
        ),
        (
            "float32",
            [1j],
            (
                "feature 'a' has complex128 values (1j), expected float32 rows of shape (): "
                "take .real, .imag or abs() of them"
            ),
        ),
        (
            "M8[s]",
            [5],
            ("feature 'a' has int64 values (5), expected datetime64[s] rows of shape (): " + DATES),
        ),
        (
            "m8[s]",
            [5],
            (
                "feature 'a' has int64 values (5), expected timedelta64[s] rows of shape (): "
                + DATES
            ),
        ),
        (
            "M8[s]",
            np.array(["2020-01-01T00:00:00.5"], "M8[ms]"),
            (
                "feature 'a' has datetime64[ms] values (datetime.datetime(2020, 1, 1, 0, 0, "
                "0, 500000)), expected datetime64[s] rows of shape (): " + DATES
            ),
        ),
        (
            "int64",
            np.array(["2020-01-01"], "M8[D]"),
            (
                "feature 'a' has datetime64[D] values (datetime.date(2020, 1, 1)), expected "
                "int64 rows of shape (): " + SECONDS
            ),
        ),
        (
            "float32",
            np.array([(1.0, 2)], [("x", "f4"), ("y", "i4")]),
            (
                "feature 'a' has [('x', '<f4'), ('y', '<i4')] values ((1.0, 2)), expected "
                "float32 rows of shape (): give each field as a feature of its own"
            ),
        ),
        (
            str,
            np.array([("a", 2)], [("x", "U1"), ("y", "i4")]),
            (
                "feature 'a' has [('x', '<U1'), ('y', '<i4')] values (('a', 2)), expected "
                "text rows of shape (): give each field as a feature of its own"
            ),
        ),
        (
            "float32",
            Broken(),
            (
                "feature 'a' is a Broken that is no array (no data), expected float32 rows "
                "of shape (): " + VALUES
            ),
        ),
        (
            str,
            Broken(),
            (
                "feature 'a' is a Broken that is no array (no data), expected text rows of "
                "shape (): " + VALUES
            ),
        ),
        (
            "float32",
            (number for number in [1.0]),
            (
                "feature 'a' is a generator that is no array, expected float32 rows of shape "
                "(): " + VALUES
            ),
        ),
        (
            "float32",
            {1.0},
            ("feature 'a' is a set that is no array, expected float32 rows of shape (): " + VALUES),
        ),
        (
            "float32",
            {"x": 1.0},
            (
                "feature 'a' is a dict that is no array, expected float32 rows of shape (): "
                + VALUES
            ),
        ),
        (
            str,
            {"a"},
            ("feature 'a' is a set that is no array, expected text rows of shape (): " + VALUES),
        ),
        (
            str,
            {"a": "b"},
            ("feature 'a' is a dict that is no array, expected text rows of shape (): " + VALUES),
        ),
        (
            "float32",
            [{}],
            (
                "feature 'a' has the value {} of type dict in row 0, expected float32 rows "
                "of shape (): give numbers"
            ),
        ),
        (
            str,
            [["a"], "b"],
            (
                "feature 'a' has the value ['a'] of type list in row 0, expected text rows "
                "of shape (): " + SHAPE
            ),
        ),
        (
            "float32",
            np.array([[1], [2, 3]], object),
            (
                "feature 'a' has the value [1] of type list in row 0, expected float32 rows "
                "of shape (): " + SHAPE
            ),
        ),
        (
            RAGGED,
            [[1, 2], [1.5]],
            (
                "row 1 of feature 'a' has float64 values (1.5), expected int64 rows of any "
                "length (ragged): " + ROUND
            ),
        ),
        (
            RAGGED,
            [[1], 2],
            (
                "row 1 of feature 'a' is 2, expected int64 rows of any length (ragged): put "
                "it into a list ([] for no element)"
            ),
        ),
        (
            RAGGED,
            [[1], None],
            (
                "row 1 of feature 'a' is None, expected int64 rows of any length (ragged): "
                "put it into a list ([] for no element)"
            ),
        ),
        (
            RAGGED,
            [[1], [2, None]],
            (
                "row 1 of feature 'a' has None in element 1, which is a missing value, "
                "expected int64 rows of any length (ragged): " + MISSING
            ),
        ),
        (
            RAGGED,
            [[[1, 2]]],
            (
                "row 0 of feature 'a' has the shape (1, 2), expected one dimension (int64 "
                "rows of any length (ragged))"
            ),
        ),
        (
            RAGGED,
            5,
            (
                "feature 'a' is 5, expected int64 rows of any length (ragged) on the first "
                "axis: " + LIST
            ),
        ),
        (
            RAGGED_TEXT,
            ["abc"],
            (
                "row 0 of feature 'a' is 'abc', expected text rows of any length (ragged): "
                "put it into a list ([] for no element)"
            ),
        ),
        (
            RAGGED_TEXT,
            "abc",
            (
                "feature 'a' is 'abc', expected text rows of any length (ragged) on the "
                "first axis: " + LIST
            ),
        ),
        (
            RAGGED_TEXT,
            [["a"], [1]],
            (
                "row 1 of feature 'a' has the value 1 of type int in element 0, expected "
                "text rows of any length (ragged): " + TEXTS
            ),
        ),
        (
            RAGGED_FLOATS,
            [[1.0], [2.0, NAN]],
            (
                "row 1 of feature 'a' has nan in element 1, which is a missing value, "
                "expected float32 rows of any length (ragged): " + MISSING_NAN
            ),
        ),
        (
            RAGGED,
            {1: 2},
            (
                "feature 'a' is a dict that is no array, expected int64 rows of any length "
                "(ragged): " + VALUES
            ),
        ),
        (
            "float64",
            [-(2**53) - 1],
            (
                "feature 'a' has the value -9007199254740993 in row 0, which float64 cannot "
                "hold exactly: give floats if it may be rounded, or declare a wider dtype"
            ),
        ),
        (
            "float64",
            [2**53 + 1, 1],
            (
                "feature 'a' has the value 9007199254740993 in row 0, which float64 cannot "
                "hold exactly: give floats if it may be rounded, or declare a wider dtype"
            ),
        ),
        (
            "float32",
            [2**63 - 1],
            (
                "feature 'a' has the value 9223372036854775807 in row 0, which float32 "
                "cannot hold exactly: give floats if it may be rounded, or declare a wider "
                "dtype"
            ),
        ),
        (
            "float32",
            np.array([2**64 - 1], np.uint64),
            (
                "feature 'a' has the value 18446744073709551615 in row 0, which float32 "
                "cannot hold exactly: give floats if it may be rounded, or declare a wider "
                "dtype"
            ),
        ),
        (
            "int64",
            np.array([1.5, None], object),
            (
                "feature 'a' has None in row 1, which is a missing value, expected int64 "
                "rows of shape (): " + MISSING
            ),
        ),
        (
            "uint8",
            [[1], [256]],
            (
                "feature 'a' has the value 256 in row 1, which uint8 cannot hold (0 to 255): "
                + WIDER
            ),
        ),
        (
            (str, (2,)),
            [["a", "b"], ["c", None]],
            (
                "feature 'a' has None in row 1, which is a missing value, expected text rows "
                "of shape (2,): " + MISSING
            ),
        ),
        (
            str,
            ["a", pd.NaT],
            (
                "feature 'a' has NaT in row 1, which is a missing value, expected text rows "
                "of shape (): " + MISSING
            ),
        ),
        (
            "float32",
            [1.0, pd.NA],
            (
                "feature 'a' has <NA> in row 1, which is a missing value, expected float32 "
                "rows of shape (): " + MISSING
            ),
        ),
        (
            "int64",
            [np.datetime64("2020-01-01")],
            (
                "feature 'a' has datetime64[D] values (datetime.date(2020, 1, 1)), expected "
                "int64 rows of shape (): " + SECONDS
            ),
        ),
        (
            "float32",
            pd.DataFrame({"x": [1.0], "y": [2.0]}),
            (
                "feature 'a' has the shape (1, 2), expected rows on the first axis and each "
                "row of shape ()"
            ),
        ),
        (
            "float32",
            {"x": 1.0}.values(),
            (
                "feature 'a' is a dict_values that is no array, expected float32 rows of "
                "shape (): " + VALUES
            ),
        ),
        (
            "complex64",
            [complex(1, NAN)],
            (
                "feature 'a' has (1+nanj) in row 0, which is a missing value, expected "
                "complex64 rows of shape (): " + MISSING_NAN
            ),
        ),
        (
            "m8[s]",
            [np.timedelta64("NaT", "s")],
            (
                "feature 'a' has NaT in row 0, which is a missing value, expected "
                "timedelta64[s] rows of shape (): " + MISSING
            ),
        ),
    ],
)
def test_what_is_refused_is_named_with_what_was_given_what_is_expected_and_what_to_do(
    spec: Any, value: Any, message: str
) -> None:
    signature = Signature.declared({"a": spec})
    with pytest.raises(InvalidFeatures) as caught:
        signature.conform({"a": value})
    assert str(caught.value) == message
    assert caught.value.feature == "a"
    assert caught.value.given
    assert caught.value.expected == str(signature.features["a"])


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (
            FLOAT,
            None,
            (
                f"feature 'a' has None, which is a missing value, expected float32 rows of "
                f"shape (): {MISSING}"
            ),
        ),
        (
            FLOAT,
            NAN,
            (
                f"feature 'a' has nan, which is a missing value, expected float32 rows of "
                f"shape (): {MISSING_NAN}"
            ),
        ),
        (
            str,
            pd.NA,
            (
                f"feature 'a' has <NA>, which is a missing value, expected text rows of "
                f"shape (): {MISSING}"
            ),
        ),
        (
            INTEGER,
            np.ma.masked,
            (
                "feature 'a' has a masked element, which is a missing value, "
                f"expected int64 rows of shape (): {MISSING}"
            ),
        ),
        (
            INTEGER,
            1.5,
            (f"feature 'a' has float64 values (1.5), expected int64 rows of shape (): {ROUND}"),
        ),
        (
            "int8",
            128,
            (f"feature 'a' has the value 128, which int8 cannot hold (-128 to 127): {WIDER}"),
        ),
        (
            FLOAT,
            [1.0, 2.0],
            (
                "feature 'a' has the shape (2,), expected a row of shape (): use "
                "predict for values with a row axis"
            ),
        ),
        (
            RAGGED,
            5,
            (
                "feature 'a' is 5, expected int64 rows of any length (ragged): put it into a "
                "list ([] for no element)"
            ),
        ),
        (
            RAGGED,
            [1, None],
            (
                "feature 'a' has None in element 1, which is a missing value, expected "
                f"int64 rows of any length (ragged): {MISSING}"
            ),
        ),
    ],
)
def test_one_example_has_no_row_to_be_named(spec: Any, value: Any, message: str) -> None:
    with pytest.raises(InvalidFeatures) as caught:
        Signature.declared({"a": spec}).conform({"a": value}, one=True)
    assert str(caught.value) == message


def test_a_single_array_is_called_that() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        Signature.declared(np.float32).conform([1.0, NAN])
    assert str(caught.value) == (
        "the array of features has nan in row 1, which is a missing value, expected float32 rows "
        f"of shape (): {MISSING_NAN}"
    )


def test_masked_elements_are_refused_where_no_signature_is_known() -> None:
    whole = ma.array([1.0, 2.0])
    assert as_arrays({"a": whole})[0]["a"].tolist() == [1.0, 2.0]
    whole.mask = [False, True]
    with pytest.raises(InvalidFeatures) as caught:
        as_arrays({"a": whole})
    assert str(caught.value) == (
        "feature 'a' has masked elements, which would reach the model unmasked: fill them with "
        ".filled(...), or declare a signature with missing="
    )


def test_what_has_no_array_after_all_is_refused_where_no_signature_is_known() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        as_arrays({"a": Broken()})
    assert str(caught.value) == (
        "feature 'a' is a Broken that is no array (no data), expected an array with the rows on "
        f"its first axis: {VALUES}"
    )
