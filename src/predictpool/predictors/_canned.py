"""What can be read off a canned Estimator: its feature columns, and that it is one.

All of it is private, but tensorflow-estimator ended at 2.15.0, so it will not change.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from predictpool._features._signature import Signature
from predictpool._features._spec import REQUIRED, FeatureSpec

_COLUMNS = (
    "feature_columns",
    "linear_feature_columns",
    "dnn_feature_columns",
    "context_feature_columns",
)


def derive_signature(estimator: Any) -> Signature | None:
    """Read the signature off the feature columns of a canned estimator.

    None where there are no feature columns.
    """
    import tensorflow as tf

    kept = _kept(estimator)
    columns = [column for name in _COLUMNS for column in kept.get(name) or ()]
    sequences = list(kept.get("sequence_feature_columns") or ())
    if not columns and not sequences:
        return None
    parse = tf.feature_column.make_parse_example_spec
    specs = {name: _spec_of(feature) for name, feature in parse(columns).items()}
    for name, feature in parse(sequences).items():
        specs[name] = FeatureSpec(_numpy_dtype(feature), ragged=True)
    return Signature(dict(sorted(specs.items())))


def is_canned(estimator: Any) -> bool:
    """Whether the estimator's graph is TensorFlow's own, with no function of the user's.

    Others than TensorFlow make model functions over feature columns, too.
    """
    function = _model_function(estimator)
    kept = _kept(estimator)
    functions = [function, *(value for value in kept.values() if callable(value))]
    return any(kept.get(name) for name in _COLUMNS) and all(map(_theirs, functions))


def _theirs(function: Any) -> bool:
    package, _, _ = str(getattr(function, "__module__", "")).partition(".")
    return package in ("tensorflow", "tensorflow_estimator", "keras")


def _kept(estimator: Any) -> dict[str, Any]:
    """Return what the model function of a canned estimator keeps, by name."""
    function = _model_function(estimator)
    owner = getattr(function, "__self__", None)  # of KMeans, whose function is a method
    if owner is not None:
        return {name.lstrip("_"): value for name, value in vars(owner).items()}
    return _closure(function)


def _model_function(estimator: Any) -> Any:
    function = getattr(estimator, "_model_fn", None)
    # tf.estimator.add_metrics and its like keep the estimator that they wrap.
    wrapped = _closure(function).get("estimator")
    return function if wrapped is None else _model_function(wrapped)


def _closure(function: Any) -> dict[str, Any]:
    cells = getattr(function, "__closure__", None) or ()
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return {name: _contents(cell) for name, cell in zip(names, cells, strict=True)}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that was never set
        return None


def _spec_of(feature: Any) -> FeatureSpec:
    if hasattr(feature, "default_value"):
        default = REQUIRED if feature.default_value is None else feature.default_value
        return FeatureSpec(_numpy_dtype(feature), tuple(feature.shape), default)
    # A VarLenFeature says nothing of the shape; one value a row is what users send.
    return FeatureSpec(_numpy_dtype(feature))


def _numpy_dtype(feature: Any) -> np.dtype[Any]:
    return np.dtype(feature.dtype.as_numpy_dtype)
