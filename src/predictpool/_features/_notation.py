"""The notations in which users declare a feature, read as a `FeatureSpec`.

TensorFlow's own are told by what they have: it is never imported in the application.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np

from predictpool._errors import InvalidFeatures
from predictpool._features._conversion import Converter
from predictpool._features._refusals import quoted
from predictpool._features._spec import REQUIRED, FeatureSpec, RowShape


def declared_spec(name: str, notation: Any) -> FeatureSpec:
    """Return what a user's notation says of a feature.

    Args:
        name: of the feature, for messages.
        notation: a dtype, ``(dtype, row shape[, default])``, a `FeatureSpec`, or
            TensorFlow's ``TensorSpec``, ``SparseTensorSpec``, ``RaggedTensorSpec``,
            ``FixedLenFeature`` or ``VarLenFeature``.

    Raises:
        TypeError: it is none of these, or contradicts itself.
    """
    spec = _read(name, notation)
    _check(name, spec)
    for attribute in ("missing", "default"):
        value = getattr(spec, attribute)
        if isinstance(value, np.ndarray):  # arrays have no equality that a dataclass can use
            spec = replace(spec, **{attribute: value.tolist()})
    # `missing` is an element, and may not be a missing value itself.
    alone = FeatureSpec(spec.dtype, default=spec.missing)
    for attribute, of in (("missing", alone), ("default", spec)):
        try:
            Converter(name, of)
        except InvalidFeatures as error:
            raise TypeError(f"the signature's {attribute} does not fit: {error}") from error
    return spec


def _check(name: str, spec: FeatureSpec) -> None:
    if spec.ragged and spec.shape != ():
        raise TypeError(
            f"signature of {quoted(name)} is ragged and has the row shape {spec.shape}: a ragged "
            "row is a sequence of single values, so leave shape out"
        )
    if spec.allow_nan and spec.dtype.kind not in "fc":
        raise TypeError(
            f"signature of {quoted(name)} has allow_nan=True, and its dtype is {spec.dtype}: only "
            "floats can be NaN; missing= says what stands in for it"
        )
    if spec.allow_nan and spec.missing is not REQUIRED:
        raise TypeError(
            f"signature of {quoted(name)} has allow_nan=True, which passes NaN on, and "
            f"missing={spec.missing!r}, which replaces it: declare one of them"
        )


def _read(name: str, notation: Any) -> FeatureSpec:
    if isinstance(notation, FeatureSpec):
        shape = _row_shape(name, notation, notation.shape)
        return replace(notation, dtype=_dtype(name, notation.dtype), shape=shape)
    fields = getattr(notation, "_fields", None)  # TensorFlow's features are named tuples
    if fields == ("shape", "dtype", "default_value"):
        shape = _row_shape(name, notation, notation.shape)
        default = REQUIRED if notation.default_value is None else notation.default_value
        return FeatureSpec(_dtype(name, notation.dtype), shape, default)
    if fields == ("dtype",):
        return FeatureSpec(_dtype(name, notation.dtype), ragged=True)
    if isinstance(notation, tuple):
        if not 1 <= len(notation) <= 3:
            raise _bad_notation(name, notation)
        shape = _row_shape(name, notation, notation[1]) if len(notation) > 1 else ()
        return FeatureSpec(_dtype(name, notation[0]), shape, *notation[2:])
    # numpy's scalar types have both attributes too.
    if hasattr(notation, "shape") and hasattr(notation, "dtype") and not isinstance(notation, type):
        return _read_tensor_spec(name, notation)
    return FeatureSpec(_dtype(name, notation))


def _read_tensor_spec(name: str, notation: Any) -> FeatureSpec:
    full = _row_shape(name, notation, notation.shape)
    if full[:1] != (None,):
        raise TypeError(
            f"signature of {quoted(name)}: {notation!r} has no axis for the rows; "
            "its shape has to begin with None"
        )
    dtype = _dtype(name, notation.dtype)
    sparse = type(notation).__name__ == "SparseTensorSpec"  # it has nothing of its own
    if not sparse and not hasattr(notation, "ragged_rank"):
        return FeatureSpec(dtype, full[1:])
    if full != (None, None):
        raise TypeError(
            f"signature of {quoted(name)}: {notation!r} has the shape {list(full)}; a ragged or "
            "sparse feature has the shape [None, None]: rows, each of its own length"
        )
    return FeatureSpec(dtype, ragged=True)


def _row_shape(name: str, notation: Any, shape: Any) -> RowShape:
    try:
        axes = tuple(None if axis is None else operator.index(axis) for axis in shape)
    except (TypeError, ValueError) as error:  # a tf.TensorShape of unknown rank: ValueError
        raise _bad_notation(name, notation) from error
    if any(axis is not None and axis < 0 for axis in axes):
        raise _bad_notation(name, notation)
    return axes


def _dtype(name: str, given: Any) -> np.dtype[Any]:
    given = getattr(given, "as_numpy_dtype", given)
    if given is None:  # numpy's default would be float64
        raise _bad_notation(name, given)
    try:
        dtype = np.dtype(given)
    except (TypeError, ValueError, SyntaxError) as error:
        raise _bad_notation(name, given) from error
    if dtype.kind not in "biufcmMOUS":
        raise _bad_notation(name, given)
    return np.dtype(object) if dtype.kind in "US" else dtype


def _bad_notation(name: str, notation: Any) -> TypeError:
    return TypeError(
        f"signature of {quoted(name)} is {notation!r}; expected a dtype, (dtype, row shape), "
        "(dtype, row shape, default), a FeatureSpec, a tf.TensorSpec (or SparseTensorSpec, "
        "RaggedTensorSpec), a tf.io.FixedLenFeature or a tf.io.VarLenFeature"
    )
