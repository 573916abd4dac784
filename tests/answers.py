"""What tests of Estimators compare: rows of features, and the answers for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

METHODS = ("generator", "session")

assert_close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def rows_of(values: Any, rows: slice) -> Any:
    if isinstance(values, Mapping):
        return {name: array[rows] for name, array in values.items()}
    return values[rows]


def assert_equal_outputs(outputs: Any, expected: Any) -> None:
    """Same keys, dtypes and shapes; floats within the tolerance, all else equal."""
    if not isinstance(expected, Mapping):
        outputs, expected = {"": outputs}, {"": expected}
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype, name
        assert outputs[name].shape == array.shape, name
        if array.dtype.kind == "f":
            assert_close(outputs[name], array, err_msg=name)
        else:
            np.testing.assert_array_equal(outputs[name], array, err_msg=name)
