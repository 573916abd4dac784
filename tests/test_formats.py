"""Features in the forms that users have, through a pool and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from predictpool import FunctionPredictor, PredictorPool
from tests.pools import ONE_LOOP, POOL_TEST, both_pools

pytestmark = POOL_TEST

NAMED = {"age": (np.float32, ()), "job": (str, ())}
FORMS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "arrays": (NAMED, lambda: {"age": np.array([39.0, 52.0]), "job": np.array(["a", "b"])}),
    "lists": (NAMED, lambda: {"age": [39, 52], "job": ["a", "b"]}),
    "tuples": (NAMED, lambda: {"age": (39, 52), "job": ("a", b"b")}),
    "columns": (NAMED, lambda: {"age": [[39], [52]], "job": [["a"], ["b"]]}),
    "DataFrame": (NAMED, lambda: pd.DataFrame({"age": [39, 52], "job": ["a", "b"]})),
    "DataFrame with an index": (
        NAMED,
        lambda: pd.DataFrame({"age": [39, 52], "job": ["a", "b"]}, index=["x", "y"]),
    ),
    "Series": (
        NAMED,
        lambda: {
            "age": pd.Series([39, 52], dtype="Int64"),
            "job": pd.Series(["a", "b"], dtype="category"),
        },
    ),
    "a generator's dict": (NAMED, lambda: {"job": [b"a", b"b"], "age": range(39, 53, 13)}),
}


def echo(signature: Any) -> FunctionPredictor[Any]:
    return FunctionPredictor(lambda: lambda features: features, row_wise=True, signature=signature)


@pytest.mark.parametrize("form", FORMS)
@ONE_LOOP
@both_pools
async def test_named_features_arrive_as_the_signature_says(form: str) -> None:
    signature, make = FORMS[form]
    async with PredictorPool(echo(signature), workers=1) as pool:
        outputs = await pool.predict(make())
    assert outputs["age"].dtype == np.float32
    assert outputs["age"].tolist() == [39, 52]
    assert outputs["job"].tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    "rows",
    [
        np.eye(3, dtype=np.float64),
        np.eye(3, dtype=np.int64),
        np.eye(3).tolist(),
        tuple(map(tuple, np.eye(3))),
        pd.DataFrame(np.eye(3)).to_numpy(),
        np.asfortranarray(np.eye(3)),
        np.eye(6)[::2, ::2],
    ],
    ids=["float64", "int64", "lists", "tuples", "DataFrame", "Fortran", "strided"],
)
@ONE_LOOP
@both_pools
async def test_one_array_arrives_as_the_signature_says(rows: Any) -> None:
    async with PredictorPool(echo((np.float32, (3,))), workers=1) as pool:
        outputs = await pool.predict(rows)
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs, np.asarray(rows))


@ONE_LOOP
@both_pools
async def test_a_series_is_one_array() -> None:
    async with PredictorPool(echo(np.float32), workers=1) as pool:
        outputs = await pool.predict(pd.Series([1.5, 2.5], index=["x", "y"]))
    assert outputs.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("signature", [None, (np.uint8, (8, 9, 3))], ids=["none", "declared"])
@ONE_LOOP
@both_pools
async def test_images_stay_bytes(signature: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)
    async with PredictorPool(echo(signature), workers=1) as pool:
        outputs = await pool.predict(images)
    assert outputs.dtype == np.uint8
    np.testing.assert_array_equal(outputs, images)


@pytest.mark.parametrize("signature", [None, bytes], ids=["none", "declared"])
@ONE_LOOP
@both_pools
async def test_serialized_examples_are_bytes_to_the_last(signature: Any) -> None:
    serialized = [b"\n\x00", b"\xff\x00\x00", b""]
    async with PredictorPool(echo(signature), workers=1) as pool:
        outputs = await pool.predict(serialized)
    assert outputs.tolist() == serialized


@ONE_LOOP
@both_pools
async def test_a_data_frame_without_a_signature() -> None:
    frame = pd.DataFrame({"age": [39, 52], "job": ["a", "b"], "ok": [True, False]})
    async with PredictorPool(echo(None), workers=1) as pool:
        outputs = await pool.predict(frame)
    assert {name: values.tolist() for name, values in outputs.items()} == {
        "age": [39, 52],
        "job": ["a", "b"],
        "ok": [True, False],
    }
    assert outputs["age"].dtype == np.int64
