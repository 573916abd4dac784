"""Features reach the model exactly as declared, or the caller is told what is wrong."""

import copy
import pickle
import re
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from predictpool._errors import InvalidFeatures
from predictpool._features._signature import Signature, as_arrays
from predictpool._features._spec import REQUIRED, UNNAMED, FeatureSpec
from tests import needs

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FLOAT = np.dtype("float32")
TEXT = np.dtype(object)


# --- how a signature is declared ---------------------------------------------------


class TensorSpec:
    """What is needed of a tf.TensorSpec, without TensorFlow."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype


class SparseTensorSpec(TensorSpec):
    """What is needed of a tf.SparseTensorSpec: its name."""


class RaggedTensorSpec(TensorSpec):
    """What is needed of a tf.RaggedTensorSpec."""

    ragged_rank = 1


class FixedLenFeature(NamedTuple):
    """What is needed of a tf.io.FixedLenFeature."""

    shape: Any
    dtype: Any
    default_value: Any = None


class VarLenFeature(NamedTuple):
    """What is needed of a tf.io.VarLenFeature."""

    dtype: Any


class FixedLenSequenceFeature(NamedTuple):
    """What is needed of a tf.io.FixedLenSequenceFeature, which is none of the notations."""

    shape: Any
    dtype: Any
    allow_missing: bool = False
    default_value: Any = None


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
        (SparseTensorSpec([None, None], DType(np.object_)), FeatureSpec(TEXT, ragged=True)),
        (RaggedTensorSpec([None, None], DType(np.float32)), FeatureSpec(FLOAT, ragged=True)),
        (FixedLenFeature((3,), DType(np.float32)), FeatureSpec(FLOAT, (3,))),
        (FixedLenFeature([], DType(np.object_), "x"), FeatureSpec(TEXT, (), "x")),
        (FixedLenFeature((1,), DType(np.float32), (0.5,)), FeatureSpec(FLOAT, (1,), (0.5,))),
        (VarLenFeature(DType(np.object_)), FeatureSpec(TEXT, ragged=True)),
        (
            FeatureSpec(FLOAT, (2,), [1.0, 2.0], allow_nan=True),
            FeatureSpec(FLOAT, (2,), [1.0, 2.0], allow_nan=True),
        ),
        (
            FeatureSpec(FLOAT, (2,), np.array([1.0, 2.0])),
            FeatureSpec(FLOAT, (2,), [1.0, 2.0]),
        ),
        (FeatureSpec(TEXT, missing=""), FeatureSpec(TEXT, missing="")),
        (FeatureSpec(TEXT, missing="", ragged=True), FeatureSpec(TEXT, missing="", ragged=True)),
        (FeatureSpec(TEXT, default=[], ragged=True), FeatureSpec(TEXT, default=[], ragged=True)),
    ],
)
def test_every_notation_declares_a_feature(spec: Any, expected: FeatureSpec) -> None:
    assert Signature.declared({"a": spec}).features == {"a": expected}
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
        FixedLenSequenceFeature((), np.float32),
        FixedLenFeature(None, np.float32),
        VarLenFeature("no dtype"),
    ],
)
def test_what_declares_no_feature_is_a_type_error_that_says_what_does(spec: Any) -> None:
    with pytest.raises(TypeError, match=r"signature of feature 'a' is .*; expected a dtype"):
        Signature.declared({"a": spec})


@pytest.mark.parametrize("shape", [[], [3], [3, None]])
def test_a_tensor_spec_without_an_axis_for_the_rows_is_refused(shape: list[int | None]) -> None:
    with pytest.raises(TypeError, match=r"feature 'a'.* has to begin with None"):
        Signature.declared({"a": TensorSpec(shape, np.float32)})


@pytest.mark.parametrize("shape", [[None], [None, 3], [None, None, None]])
@pytest.mark.parametrize("notation", [SparseTensorSpec, RaggedTensorSpec])
def test_a_sparse_or_ragged_spec_of_another_rank_is_refused(notation: Any, shape: Any) -> None:
    with pytest.raises(
        TypeError, match=r"'a'.* a ragged or sparse .* has the shape \[None, None\]"
    ):
        Signature.declared({"a": notation(shape, np.float32)})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (FeatureSpec(FLOAT, (2,), ragged=True), "is ragged and has the row shape (2,)"),
        (FeatureSpec(TEXT, allow_nan=True), "has allow_nan=True, and its dtype is object"),
        (FeatureSpec(np.dtype("i8"), allow_nan=True), "has allow_nan=True, and its dtype is int64"),
        (FeatureSpec(FLOAT, missing=0.0, allow_nan=True), "allow_nan=True, which passes NaN on"),
        (FeatureSpec(FLOAT, missing=None), "missing does not fit: feature 'a' has None"),
        (FeatureSpec(FLOAT, missing=float("nan")), "missing does not fit: feature 'a' has nan"),
        (FeatureSpec(FLOAT, missing="x"), "missing does not fit: feature 'a' has text ('x')"),
        (FeatureSpec(TEXT, missing=0), "missing does not fit: feature 'a' has the value 0"),
        (FeatureSpec(FLOAT, (2,), missing=[1.0, 2.0]), "missing does not fit: feature 'a' has the"),
        (FeatureSpec(FLOAT, ragged=True, missing=[1.0, 2.0]), "missing does not fit: feature"),
        (FeatureSpec(FLOAT, (-1,)), "signature of feature 'a' is"),
        (FeatureSpec(FLOAT, default=float("nan")), "default does not fit: feature 'a' has nan"),
        (FeatureSpec(FLOAT, ragged=True, default=1.0), "default does not fit: feature 'a' is 1.0"),
        (FixedLenFeature((2,), np.float32, (1.0,)), "default does not fit: feature 'a' has the"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        Signature.declared({"a": spec})


@needs.tensorflow
def test_tensorflow_columns_are_a_signature() -> None:
    script = """
import tensorflow as tf
from predictpool import Signature
column = tf.feature_column
parsed = column.make_parse_example_spec([
    column.numeric_column("age"), column.numeric_column("x", shape=(3,), default_value=0.5),
    column.categorical_column_with_vocabulary_list("job", ["a", "b"]),
])
print(Signature.declared(parsed))
print(Signature.declared(parsed).features["x"].default)
print(Signature.declared({
    "s": tf.SparseTensorSpec([None, None], tf.int64),
    "r": tf.RaggedTensorSpec([None, None], tf.string),
    "t": tf.TensorSpec([None, 2], tf.float32),
}))
"""
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=110
    )
    assert shown.stdout.splitlines() == [
        (
            "age: float32 rows of shape (1,), x: float32 rows of shape (3,), "
            "job: text rows of any length (ragged)"
        ),
        "(0.5, 0.5, 0.5)",
        (
            "s: int64 rows of any length (ragged), r: text rows of any length (ragged), "
            "t: float32 rows of shape (2,)"
        ),
    ]


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
        {
            "age": np.float32,
            "words": (str, (None,)),
            "x": ("i8", (2, 3)),
            "y": FeatureSpec(TEXT, ragged=True),
        }
    )
    assert str(signature) == (
        "age: float32 rows of shape (), words: text rows of shape (any,), "
        "x: int64 rows of shape (2, 3), y: text rows of any length (ragged)"
    )
    assert str(Signature.declared(np.float32)) == "features: float32 rows of shape ()"


def test_a_signature_survives_pickling() -> None:
    signature = Signature.declared({"a": np.float32, "b": (str, (), "none")})
    for again in (pickle.loads(pickle.dumps(signature)), copy.deepcopy(signature)):
        assert again == signature
        assert again != signature.relaxed(extra="ignore")
        assert again.extra == "refuse"
        assert again.features["a"].default is REQUIRED
        with pytest.raises(InvalidFeatures, match="'a' is missing"):
            again.conform({"b": ["x"]})
        assert again.conform({"a": [1.0]})["b"].tolist() == [b"none"]


def test_what_a_signature_does_not_refuse_survives_pickling() -> None:
    signature = Signature.declared({"a": np.float32, "b": str}).relaxed(
        extra="ignore", missing={"b": ""}, allow_nan=True
    )
    for again in (pickle.loads(pickle.dumps(signature)), copy.deepcopy(signature)):
        assert again == signature
        assert again.conform({"a": [1.0], "b": [None], "c": [1]})["b"].tolist() == [b""]


def test_an_example_fits_its_own_signature() -> None:
    signature = Signature.declared(
        {
            "a": np.float32,
            "b": (str, (2,)),
            "c": (np.int64, (None, 3)),
            "d": "M8[s]",
            "e": bool,
            "f": FeatureSpec(np.dtype("int64"), ragged=True),
            "g": FeatureSpec(TEXT, ragged=True),
        }
    )
    example = signature.example()
    arrays = signature.conform(example)
    assert [len(values) for values in arrays.values()] == [1] * 7
    assert example["b"].tolist() == [[b"", b""]]
    assert example["c"].shape == (1, 1, 3)
    assert [(row.dtype, row.tolist()) for row in example["f"]] == [(np.dtype("int64"), [0])]
    assert [(row.dtype, row.tolist()) for row in example["g"]] == [(TEXT, [b""])]


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
    ragged = Signature.declared(
        {"a": np.float32, "b": FeatureSpec(np.dtype("int64"), default=[1, 2], ragged=True)}
    )
    rows = ragged.conform({"a": [0.0, 0.0]})["b"]
    assert [row.tolist() for row in rows] == [[1, 2], [1, 2]]
    absent = Signature.declared({"a": str, "b": FeatureSpec(TEXT, default=None, missing="?")})
    assert absent.conform({"a": ["x"]})["b"].tolist() == [b"?"]


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


def test_what_is_misspelt_is_looked_for_among_the_first_hundred_names() -> None:
    # Comparing all names of a request would stop an application for minutes.
    signature = Signature.declared({"age": np.float32})
    names = [str(number) for number in range(99)]
    with pytest.raises(InvalidFeatures, match=r"; did you mean it by 'agee'\?$"):
        signature.conform({name: [1.0] for name in [*names, "agee"]})
    with pytest.raises(InvalidFeatures, match=r"rows of shape \(\)$"):
        signature.conform({name: [1.0] for name in [*names, "another", "agee"]})


def test_a_message_is_not_as_long_as_what_was_given() -> None:
    many = {str(number): [1.0] * (1 + number) for number in range(1000)}
    for features in (many, np.array("x" * 10_000), {"a": np.array("x" * 10_000)}):
        with pytest.raises(InvalidFeatures) as raised:
            as_arrays(features)
        assert len(str(raised.value)) < 500
    with pytest.raises(InvalidFeatures, match="no valid text") as raised:
        Signature.declared({"a": str}).conform({"a": ["\ud800" * 10_000]})
    assert len(str(raised.value)) < 500


def test_an_unknown_feature_is_named_with_what_it_could_be() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        CENSUS.conform({"age": [1.0], "occupation": ["Sales"], "hour": [1]})
    assert str(caught.value) == (
        "feature 'hour' is unknown: expected [age, occupation, hours]; did you mean 'hours'?"
    )
    assert (caught.value.feature, caught.value.given) == ("hour", "hour")
    assert caught.value.expected == "[age, occupation, hours]"
    full = {"age": [1.0], "occupation": ["Sales"], "hours": [1]}
    ignored = r"'zzz' is unknown: expected \[.*\]; leave it out, or ignore such .*extra='ignore'$"
    with pytest.raises(InvalidFeatures, match=ignored):
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


def test_features_that_are_not_known_can_be_ignored() -> None:
    tolerant = CENSUS.relaxed(extra="ignore")
    full = {"age": [1.0], "occupation": ["Sales"], "hours": [1]}
    assert list(tolerant.conform({"fnlwgt": object(), **full})) == ["age", "occupation", "hours"]
    del full["hours"]
    assert tolerant.conform(full | {"hour": [1]})["hours"].tolist() == [40]
    with pytest.raises(InvalidFeatures, match=r"'age' is missing.*; did you mean it by 'agee'\?"):
        tolerant.conform({"agee": [1.0], "occupation": ["Sales"]})


def test_what_happens_with_other_features_is_one_of_two_words() -> None:
    drop: Any = "drop"
    with pytest.raises(ValueError, match="extra is 'drop', expected 'refuse' or 'ignore'"):
        Signature(CENSUS.features, drop)
    with pytest.raises(ValueError, match="extra is 'drop', expected 'refuse' or 'ignore'"):
        CENSUS.relaxed(extra=drop)


def test_a_data_frame_is_a_mapping_however_many_rows_it_has() -> None:
    frame = pd.DataFrame(
        {"age": [39, 52, 28, 41], "occupation": ["Sales"] * 4, "hours": [40] * 4, "race": ["a"] * 4}
    )
    arrays = CENSUS.conform(frame[["hours", "age", "occupation"]])
    assert arrays["age"].tolist() == [39.0, 52.0, 28.0, 41.0]
    with pytest.raises(InvalidFeatures, match="'race' is unknown"):
        CENSUS.conform(frame)
    with pytest.raises(InvalidFeatures, match="'race' is unknown"):
        CENSUS.conform(frame[:1])
    assert list(CENSUS.relaxed(extra="ignore").conform(frame)) == ["age", "occupation", "hours"]
    row = CENSUS.relaxed(extra="ignore").conform(frame.iloc[1], one=True)
    assert (row["age"].tolist(), row["occupation"].tolist()) == ([52.0], [b"Sales"])


def test_a_series_is_an_array_where_one_is_expected() -> None:
    signature = Signature.declared(np.float32)
    column = pd.Series([1.5, 2.5], index=["x", "y"])
    assert signature.conform(column)[UNNAMED].tolist() == [1.5, 2.5]
    arrays, mapping = as_arrays(column)
    assert not mapping
    assert arrays[UNNAMED].tolist() == [1.5, 2.5]
    with pytest.raises(InvalidFeatures) as caught:
        signature.conform(pd.DataFrame({"a": [1.5]}))
    assert str(caught.value) == (
        "features are a mapping of [a], expected one array: float32 rows of shape (): "
        ".to_numpy() makes an array of it"
    )


def test_fields_of_a_structured_array_are_no_features() -> None:
    with pytest.raises(InvalidFeatures) as caught:
        CENSUS.conform(np.array([(1.0, "a")], [("age", "f4"), ("occupation", "U1")]))
    assert str(caught.value) == (
        "features are a [('age', '<f4'), ('occupation', '<U1')] array of shape (1,), expected a "
        "mapping of name to values with the names [age, occupation, hours]: "
        "{name: array[name] for name in array.dtype.names} makes one of it"
    )


def test_unequal_lengths_are_listed() -> None:
    features = {"age": [1.0, 2.0], "occupation": ["a"], "hours": [1, 2]}
    message = r"differ in their number of rows \(age: 2, occupation: 1, hours: 2\)"
    with pytest.raises(InvalidFeatures, match=message) as caught:
        CENSUS.conform(features)
    assert caught.value.feature is None
    with pytest.raises(InvalidFeatures, match=r"\(age: 2, occupation: 1, hours: 2\)"):
        as_arrays(features)


# --- refusing less -----------------------------------------------------------------

STRICT = Signature.declared(
    {"age": np.float32, "gain": np.float64, "job": str, "hours": np.int64, "z": np.complex64}
)


def test_a_signature_that_refuses_less_is_another_one() -> None:
    relaxed = STRICT.relaxed(extra="ignore", missing={"job": "", "gain": 0.0}, allow_nan=True)
    assert relaxed.extra == "ignore"
    assert {name: spec.missing for name, spec in relaxed.features.items()} == {
        "age": REQUIRED,
        "gain": 0.0,
        "job": "",
        "hours": REQUIRED,
        "z": REQUIRED,
    }
    assert [name for name, spec in relaxed.features.items() if spec.allow_nan] == ["age", "z"]
    assert str(relaxed) == str(STRICT)
    assert STRICT.relaxed() == STRICT
    assert relaxed == relaxed.relaxed()
    assert relaxed.relaxed(extra="refuse").extra == "refuse"
    assert STRICT.relaxed(allow_nan=["age"]).features["age"] == FeatureSpec(FLOAT, allow_nan=True)
    assert not any(spec.allow_nan for spec in STRICT.relaxed(allow_nan=[]).features.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"missing": {"ages": 0.0}},
            ValueError,
            (
                "missing names the feature 'ages', which this signature does not have: expected "
                "[age, gain, job, hours, z]; did you mean 'age'?"
            ),
        ),
        (
            {"allow_nan": ["gains"]},
            ValueError,
            (
                "allow_nan names the feature 'gains', which this signature does not have: expected "
                "[age, gain, job, hours, z]; did you mean 'gain'?"
            ),
        ),
        (
            {"allow_nan": ["hours"]},
            ValueError,
            (
                "allow_nan names the feature 'hours', which has int64 rows of shape (): only "
                "floats can be NaN; missing= says what stands in for it"
            ),
        ),
        ({"allow_nan": "age"}, TypeError, "allow_nan is 'age', expected True or a list of names"),
        ({"allow_nan": False}, TypeError, "allow_nan is False, expected True or a list of names"),
        (
            {"allow_nan": ["age"], "missing": {"age": 0.0}},
            TypeError,
            (
                "signature of feature 'age' has allow_nan=True, which passes NaN on, and "
                "missing=0.0, which replaces it: declare one of them"
            ),
        ),
        (
            {"missing": {"age": "x"}},
            TypeError,
            (
                "the signature's missing does not fit: feature 'age' has text ('x'), expected "
                "float32 rows of shape (): convert text to numbers first, or declare the feature "
                "as text (str)"
            ),
        ),
    ],
)
def test_what_does_not_relax_a_signature_is_an_error(
    options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        STRICT.relaxed(**options)
    assert str(caught.value) == message


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
