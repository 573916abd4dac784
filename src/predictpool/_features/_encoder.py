"""From what callers give to the segments of a payload."""

from __future__ import annotations

import pickle
from operator import ne
from typing import Any

import numpy as np

from predictpool._columns import Column, Parts, Schema, encode, make_schema, picker
from predictpool._features._signature import Signature
from predictpool._features._spec import Arrays, FeatureSpec
from predictpool._features._values import as_utf8, nan_check


class Encoder:
    """Encodes features of one signature; keeps what is the same for all its requests."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        specs = signature.features
        self._codes = {name: _code(spec) for name, spec in specs.items()}
        self._schema = None if signature.varies else self._schema_of(signature.example())
        # Whether the elements of a ragged feature are right is for `conform` to say.
        ragged = any(spec.ragged for spec in specs.values())
        self._exact = None if ragged else self._schema
        self._first = next(iter(specs))
        self._ignores = signature.extra == "ignore"
        checked = {name: spec for name, spec in specs.items() if not spec.allow_nan}
        checks = {name: nan_check(spec.dtype) for name, spec in checked.items()}
        self._nan_checks = [(name, check) for name, check in checks.items() if check]
        # Of one row, numbers that are single values are compared all at once.
        floats = [name for name, spec in checked.items() if spec.dtype.kind == "f"]
        single = all(specs[name].shape in ((), (1,)) for name in floats)
        self._floats = picker(floats) if single and len(floats) == len(self._nan_checks) else None

    def encode(self, features: Any, *, one: bool) -> tuple[Schema, Parts, int]:
        """Check and encode the features of one request.

        Returns:
            the schema, the segments of its payload, and the number of rows.

        Raises:
            InvalidFeatures: as `Signature.conform`.
        """
        exact = None if one else self._encode_exact(features)
        if exact is not None:
            return exact
        arrays = self._signature.conform(features, one=one)
        schema = self._schema or self._schema_of(arrays)
        rows = len(next(iter(arrays.values())))
        parts = encode(schema, arrays, rows, _conformed)
        assert parts is not None
        return schema, parts, rows

    def _encode_exact(self, features: Any) -> tuple[Schema, Parts, int] | None:
        """Encode arrays that are right as they are, much faster than by way of `conform`.

        None where anything is otherwise, if only for `conform` to say what is wrong.
        """
        schema = self._exact
        if schema is None:
            return None
        if not schema.mapping:
            features = {schema.names[0]: features}
        elif type(features) is not dict or (
            len(features) != len(schema.names) and not self._ignores
        ):
            return None
        shape = getattr(features.get(self._first), "shape", ())
        if not shape:
            return None
        parts = encode(schema, features, shape[0], _as_bytes, flat=True)
        if parts is None or self._has_nan(features, shape[0]):
            return None
        return schema, parts, shape[0]

    def _has_nan(self, features: Arrays, rows: int) -> bool:
        if rows == 1 and self._floats is not None:
            numbers = [*map(np.ndarray.item, self._floats(features))]
            return any(map(ne, numbers, numbers))  # NaN is not even itself
        return any(has_nan(features[name]) for name, has_nan in self._nan_checks)

    def _schema_of(self, arrays: Arrays) -> Schema:
        columns = (Column(name, code, arrays[name].shape[1:]) for name, code in self._codes.items())
        return make_schema(tuple(columns), not self._signature.unnamed)


def _code(spec: FeatureSpec) -> str:
    # Rows of their own length are objects, so that all requests have the same schema.
    if spec.ragged:
        return "object"
    return "bytes" if spec.dtype.kind == "O" else spec.dtype.str


def _as_bytes(items: list[Any], _: str) -> list[bytes] | None:
    return as_utf8(items)


def _conformed(items: list[Any], code: str) -> list[bytes]:
    """Return the elements of columns that are what they have to be."""
    return [pickle.dumps(item, protocol=5) for item in items] if code == "object" else items
