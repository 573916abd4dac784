"""Requests are encoded alike on the short way and on the long one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictpool._columns import decode_payload
from predictpool._errors import InvalidFeatures
from predictpool._features._encoder import Encoder
from predictpool._features._signature import Signature
from predictpool._features._spec import FeatureSpec

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FLOAT = np.dtype("float32")
TEXT = np.dtype(object)
NAN = float("nan")

STRICT = Signature.declared(
    {"a": np.float32, "b": (np.int64, (1,)), "t": str, "v": (np.float32, (2,))}
)
SIGNATURES = {
    "strict": STRICT,
    "extra": STRICT.relaxed(extra="ignore"),
    "missing": STRICT.relaxed(missing={"a": -1.0, "t": "", "v": 0.0}),
    "nan": STRICT.relaxed(allow_nan=True),
    "all": STRICT.relaxed(extra="ignore", missing={"a": -1.0, "t": ""}, allow_nan=["v"]),
}

MAYBE_RIGHT = st.fixed_dictionaries(
    {
        "a": st.sampled_from(
            [
                np.ones(2, np.float32),
                np.ones(3, np.float32),
                np.array([1, NAN], np.float32),
                np.array([np.inf, -np.inf], np.float32),
                [1.0, None],
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
                np.array(["x", None], object),
                np.array([["x"], [b"\0"]], object),
                np.array(["x", "y"]),
                ["x", "y"],
            ]
        ),
        "v": st.sampled_from(
            [
                np.ones((2, 2), np.float32),
                np.ones((2, 2), np.float32).T,
                np.ones(2, np.float32),
                np.array([[1, 2], [NAN, 3]], np.float32),
            ]
        ),
    },
)


@settings(on_busy_machines, max_examples=1000)
@given(
    st.sampled_from([*SIGNATURES.values()]),
    MAYBE_RIGHT,
    st.sampled_from(["", "", "", "a", "t"]),
    st.sampled_from(["", "", "", "x"]),
    st.booleans(),
)
def test_the_short_way_of_encoding_is_as_good_as_the_long_one(
    signature: Signature, features: dict[str, Any], absent: str, unknown: str, last: bool
) -> None:
    features.pop(absent, None)
    others = {unknown: np.ones(3, np.float32)} if unknown else {}
    features = {**features, **others} if last else {**others, **features}
    short, long = Encoder(signature), Encoder(signature)
    long._exact = None  # so that nothing is right as it is
    assert encoded_or_refused(short, features) == encoded_or_refused(long, features)


def encoded_or_refused(encoder: Encoder, features: dict[str, Any]) -> object:
    try:
        schema, parts, rows = encoder.encode(features, one=False)
    except InvalidFeatures as error:
        return str(error)
    return schema, [bytes(part) for part in parts], rows


RIGHT = {
    "a": np.ones(2, np.float32),
    "b": np.ones(2, np.int64),
    "t": np.array(["x", b"y"], object),
    "v": np.ones((2, 2), np.float32),
}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES.keys())
def test_arrays_that_are_right_take_the_short_way(signature: Signature) -> None:
    assert Encoder(signature)._encode_exact(RIGHT) is not None


def test_features_to_ignore_do_not_keep_others_from_the_short_way() -> None:
    features = {"x": [1, 2, 3], **RIGHT}
    encoder = Encoder(SIGNATURES["extra"])
    assert encoder._encode_exact(features) == Encoder(STRICT)._encode_exact(RIGHT)
    assert Encoder(STRICT)._encode_exact(features) is None


def test_nan_takes_the_short_way_only_where_it_may_pass() -> None:
    features = RIGHT | {"a": np.array([1, NAN], np.float32)}
    assert Encoder(SIGNATURES["nan"])._encode_exact(features) is not None
    for name in ("strict", "missing"):
        assert Encoder(SIGNATURES[name])._encode_exact(features) is None


# --- rows of their own length ------------------------------------------------------

RAGGED = Signature.declared(
    {
        "a": np.float32,
        "n": FeatureSpec(np.dtype("int64"), ragged=True),
        "t": str,
        "w": FeatureSpec(TEXT, ragged=True),
    }
)


@on_busy_machines
@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
            st.text(),
            st.lists(st.text() | st.binary(), max_size=3),
        ),
        max_size=4,
    )
)
def test_ragged_rows_arrive_in_the_worker(rows: list[Any]) -> None:
    columns = dict(zip("antw", map(list, zip(*rows, strict=True)), strict=bool(rows)))
    schema, parts, count = Encoder(RAGGED).encode(
        columns or {name: [] for name in "antw"}, one=False
    )
    arrived = decode_payload(schema, count, b"".join(bytes(part) for part in parts))
    assert isinstance(arrived, dict)
    assert count == len(rows)
    assert arrived["n"].shape == arrived["w"].shape == (count,)
    assert {(row.dtype.str, row.ndim) for row in arrived["n"]} <= {("<i8", 1)}
    assert {(row.dtype.str, row.ndim) for row in arrived["w"]} <= {("|O", 1)}
    for index, (number, whole, text, words) in enumerate(rows):
        assert arrived["a"][index] == number
        assert arrived["n"][index].tolist() == whole
        assert arrived["t"][index] == text.encode()
        utf8 = [word.encode() if isinstance(word, str) else word for word in words]
        assert arrived["w"][index].tolist() == utf8


def test_text_is_no_row_of_texts_though_it_is_an_array_of_objects() -> None:
    words = Encoder(Signature.declared({"w": FeatureSpec(TEXT, ragged=True)}))
    with pytest.raises(InvalidFeatures, match="row 0 of feature 'w' is b'x', expected text rows"):
        words.encode({"w": np.array([b"x", b"y"], object)}, one=False)


def test_ragged_requests_of_other_lengths_share_a_schema() -> None:
    encoder = Encoder(Signature.declared(FeatureSpec(FLOAT, ragged=True)))
    first = encoder.encode([[1.0]], one=False)[0]
    assert encoder.encode([[1.0, 2.0], []], one=False)[0] is first
    assert encoder.encode([1.0, 2.0, 3.0], one=True)[0] is first
