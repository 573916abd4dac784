"""What a model wants to be fed: the names of its features, and the check of all of them.

Features are checked and brought to the model's exact dtypes in the application, so that
a mistake costs no round trip and never reaches a model. (A generator-fed Estimator dies
of a missing key or a ragged list, and takes a second to rebuild.)
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np

from predictpool._columns import Array
from predictpool._errors import InvalidFeatures
from predictpool._features._conversion import Converter, free_array
from predictpool._features._notation import declared_spec
from predictpool._features._refusals import describe, hint, name_list, quoted
from predictpool._features._spec import (
    REQUIRED,
    UNNAMED,
    Arrays,
    FeatureSpec,
)
from predictpool._features._values import is_mapping, is_series

Extra: TypeAlias = Literal["refuse", "ignore"]


@dataclass(frozen=True)
class Signature:
    """The features that a predictor takes.

    Attributes:
        features: name → `FeatureSpec`; a model that takes one unnamed array has the
            single name ``""``.
        extra: what happens with features that the signature does not know: ``"refuse"``,
            or ``"ignore"``, as rows of a file carry columns that no model uses.

    Raises:
        ValueError: ``extra`` is something else.
    """

    features: Mapping[str, FeatureSpec]
    extra: Extra = "refuse"
    _converters: Mapping[str, Converter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.extra not in ("refuse", "ignore"):
            raise ValueError(f"extra is {self.extra!r}, expected 'refuse' or 'ignore'")
        converters = {name: Converter(name, spec) for name, spec in self.features.items()}
        object.__setattr__(self, "_converters", converters)

    def __reduce__(self) -> tuple[Any, ...]:
        return Signature, (self.features, self.extra)

    @classmethod
    def declared(cls, features: Any) -> Signature:
        """Read a signature in the notation that users write.

        Args:
            features: a mapping of name to ``(dtype, row shape)``,
                ``(dtype, row shape, default)``, a dtype alone (scalar rows), a
                `FeatureSpec`, or one of TensorFlow's: a ``tf.TensorSpec`` (its first axis
                is the rows), a ``tf.io.FixedLenFeature`` (its shape is that of a row);
                and for rows of their own length a ``tf.io.VarLenFeature``, or a
                ``tf.SparseTensorSpec`` or ``tf.RaggedTensorSpec`` of the shape
                ``[None, None]``. So what ``tf.feature_column.make_parse_example_spec``
                returns is a signature. Or one of these for a model that takes a single
                unnamed array. Text is ``str``, ``bytes`` or ``object``.

        Raises:
            TypeError: it is none of these, or contradicts itself.
        """
        if isinstance(features, Signature):
            return features
        named = features if isinstance(features, Mapping) else {UNNAMED: features}
        if not named:
            raise TypeError("signature={} declares no feature: name at least one")
        if UNNAMED in named and len(named) > 1:
            raise TypeError(f"signature has the name '' among others: {name_list(named)}")
        return cls({str(name): declared_spec(str(name), spec) for name, spec in named.items()})

    @classmethod
    def inferred(cls, arrays: Arrays) -> Signature:
        """Take the signature from a first request: floats as float32, text as text.

        Raises:
            InvalidFeatures: for every other dtype. ``[1, 2]`` may be the first values of
                a column of floats, which an integer signature would cut off for ever.
        """
        return cls({name: _inferred_spec(name, values) for name, values in arrays.items()})

    def relaxed(
        self,
        *,
        extra: Extra | None = None,
        missing: Mapping[str, Any] | None = None,
        allow_nan: Literal[True] | Collection[str] | None = None,
    ) -> Signature:
        """Return the same signature, refusing less; None leaves things as they are.

        Args:
            extra: what happens with features that the signature does not know.
            missing: feature → the value that stands in for its missing ones.
            allow_nan: the features whose NaN reaches the model; True for all floats that
                have no ``missing`` value.

        Raises:
            ValueError: an unknown name, or ``allow_nan`` of a feature that is no float.
            TypeError: a value of ``missing`` does not fit its feature, or a feature has
                ``missing`` and ``allow_nan``.
        """
        specs = dict(self.features)
        for name, value in (missing or {}).items():
            specs[name] = replace(self._known(name, "missing"), missing=value)
        for name in self._with_nan(allow_nan, specs):
            specs[name] = replace(specs[name], allow_nan=True)
        return Signature(
            {name: declared_spec(name, spec) for name, spec in specs.items()},
            self.extra if extra is None else extra,
        )

    def _known(self, name: str, option: str) -> FeatureSpec:
        spec = self.features.get(name)
        if spec is None:
            raise ValueError(
                f"{option} names the feature {name!r}, which this signature does not have: "
                f"expected {name_list(self.features)}{hint(name, self.features)}"
            )
        return spec

    def _with_nan(self, allow_nan: Any, specs: Mapping[str, FeatureSpec]) -> list[str]:
        if allow_nan is None:
            return []
        floats = [name for name, spec in specs.items() if spec.dtype.kind in "fc"]
        if allow_nan is True:
            return [name for name in floats if specs[name].missing is REQUIRED]
        if isinstance(allow_nan, str | bytes | bool):
            raise TypeError(f"allow_nan is {allow_nan!r}, expected True or a list of names")
        names = list(allow_nan)
        for name in names:
            spec = self._known(name, "allow_nan")
            if name not in floats:
                raise ValueError(
                    f"allow_nan names the feature {name!r}, which has {spec}: only floats can be "
                    "NaN; missing= says what stands in for it"
                )
        return names

    @property
    def unnamed(self) -> bool:
        """Whether the features are one array instead of a mapping."""
        return UNNAMED in self.features

    @property
    def varies(self) -> bool:
        """Whether the row shape of a feature has an axis that varies."""
        return any(None in spec.shape for spec in self.features.values())

    def conform(self, features: Any, *, one: bool = False) -> Arrays:
        """Return the features as arrays of exactly the declared dtypes and shapes.

        A ragged feature is an object array of shape ``[n]`` whose elements are arrays of
        one dimension.

        Args:
            features: a mapping of name to array-like, or one array-like; the first axis
                is the row.
            one: the features are a single example without the row axis.

        Raises:
            InvalidFeatures: naming the feature, what was given and what is expected.
        """
        named, names = self._named(features)
        arrays: Arrays = {}
        for name, converter in self._converters.items():
            if name in named:
                value = named[name]
                arrays[name] = converter.row(value) if one else converter.rows(value)
            elif converter.default is None:
                raise self._lacking(name, names)
        if not one:
            _check_lengths(arrays)
        if len(names) > len(arrays) and self.extra == "refuse":
            raise self._unknown(names)
        if len(arrays) < len(self.features):
            arrays = self._with_defaults(arrays)
        return arrays

    def example(self) -> Arrays:
        """Return one row that has the right dtypes and shapes: zeros and empty text.

        Of a ragged feature it has one element.
        """
        return {name: _example(spec) for name, spec in self.features.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name or 'features'}: {spec}" for name, spec in self.features.items())

    def _named(self, features: Any) -> tuple[Mapping[str, Any], Collection[Any]]:
        """Return features by name, and their names: a DataFrame's length is not theirs."""
        mapping = is_mapping(features)
        if self.unnamed:
            if mapping and not is_series(features):
                raise self._has_names(features)
            return {UNNAMED: features}, (UNNAMED,)
        if not mapping:
            raise self._no_names(features)
        return features, features if isinstance(features, Mapping) else features.keys()

    def _has_names(self, features: Any) -> InvalidFeatures:
        remedy = ""
        if hasattr(features, "to_numpy"):
            remedy = ": .to_numpy() makes an array of it"
        return InvalidFeatures(
            f"features are a mapping of {name_list(features.keys())}, expected one array: "
            f"{self.features[UNNAMED]}{remedy}",
            given="a mapping",
            expected=f"one array: {self.features[UNNAMED]}",
        )

    def _no_names(self, features: Any) -> InvalidFeatures:
        remedy = ""
        if isinstance(features, np.ndarray) and features.dtype.names:
            remedy = ": {name: array[name] for name in array.dtype.names} makes one of it"
        return InvalidFeatures(
            f"features are {describe(features)}, expected a mapping of name to values "
            f"with the names {name_list(self.features)}{remedy}",
            given=describe(features),
            expected="a mapping of name to values",
        )

    def _lacking(self, name: str, names: Iterable[Any]) -> InvalidFeatures:
        # Comparing takes its time, and a client may have sent names without end.
        unknown = (str(given) for given in names if given not in self.features)
        close = difflib.get_close_matches(name, islice(unknown, 100), n=1)
        hint = f"; did you mean it by {close[0]!r}?" if close else ""
        return InvalidFeatures(
            f"feature {name!r} is missing: given {name_list(names)}, "
            f"expected {self.features[name]}{hint}",
            feature=name,
            given=name_list(names),
            expected=str(self.features[name]),
        )

    def _unknown(self, names: Iterable[Any]) -> InvalidFeatures:
        name = next(str(given) for given in names if given not in self.features)
        remedy = hint(name, self.features) or (
            "; leave it out, or ignore such features with extra='ignore'"
        )
        return InvalidFeatures(
            f"feature {name!r} is unknown: expected {name_list(self.features)}{remedy}",
            feature=name,
            given=name,
            expected=name_list(self.features),
        )

    def _with_defaults(self, arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values()))) if arrays else 1
        whole: Arrays = {}
        for name, converter in self._converters.items():
            if name in arrays:
                whole[name] = arrays[name]
            else:
                assert converter.default is not None
                whole[name] = np.repeat(converter.default, rows, axis=0)
        return whole


def as_arrays(features: Any, *, one: bool = False) -> tuple[Arrays, bool]:
    """Return features as arrays without a signature: whatever numpy makes of them.

    Text in lists stays ``str`` in an object array, so that nothing is cut or padded.

    Returns:
        the arrays by name, and whether they were given as a mapping.

    Raises:
        InvalidFeatures: ragged values, no row axis, masked elements, or features of
            different lengths.
    """
    mapping = is_mapping(features) and not is_series(features)
    arrays: Arrays = {}
    for name, value in features.items() if mapping else [(UNNAMED, features)]:
        values = free_array(str(name), value)
        if one:
            values = values[np.newaxis]
        if values.ndim == 0:
            raise _no_row_axis(str(name), values)
        arrays[str(name)] = values
    if not arrays:
        raise InvalidFeatures("features are empty: expected at least one name", given="{}")
    _check_lengths(arrays)
    return arrays, mapping


def _example(spec: FeatureSpec) -> Array:
    empty: Any = b"" if spec.dtype.kind == "O" else 0
    if spec.ragged:
        row = np.empty(1, object)
        row[0] = np.full(1, empty, spec.dtype)
        return row
    return np.full((1, *(1 if axis is None else axis for axis in spec.shape)), empty, spec.dtype)


def _check_lengths(arrays: Arrays) -> None:
    lengths = {len(values) for values in arrays.values()}
    if len(lengths) > 1:
        given = name_list(f"{name}: {len(values)}" for name, values in arrays.items())[1:-1]
        raise InvalidFeatures(
            f"features differ in their number of rows ({given}), "
            "expected one value per row in each",
            given=given,
            expected="the same number of rows in every feature",
        )


def _inferred_spec(name: str, values: Array) -> FeatureSpec:
    dtype: np.dtype[Any]
    if values.size == 0:
        # numpy takes [] for floats; a column of text would be refused for ever.
        raise InvalidFeatures(
            f"{quoted(name)} is empty (shape {values.shape}), and the signature is not known: "
            "begin with a request that has values, or declare signature=",
            feature=name,
            given=f"shape {values.shape}",
            expected="signature= of the predictor, or floats or text",
        )
    if values.dtype.kind == "f":
        dtype = np.dtype(np.float32)
    elif values.dtype.kind in "US" or (
        values.dtype.kind == "O" and all(isinstance(item, str | bytes) for item in values.flat)
    ):
        dtype = np.dtype(object)
    else:
        raise InvalidFeatures(
            f"{quoted(name)} has dtype {values.dtype}, and the signature is not known: "
            f"declare it, for example signature={{{name!r}: (np.int64, {values.shape[1:]})}} "
            "or np.float32",
            feature=name,
            given=str(values.dtype),
            expected="signature= of the predictor, or floats or text",
        )
    return FeatureSpec(dtype, values.shape[1:])


def _no_row_axis(name: str, values: Array) -> InvalidFeatures:
    return InvalidFeatures(
        f"{quoted(name)} is the single value {reprlib.repr(values.tolist())}, expected an array "
        "with the rows on its first axis (predict_one takes one example without it)",
        feature=name,
        given="a single value",
        expected="an array with the rows on its first axis",
    )


SignatureSource: TypeAlias = Signature | Literal["infer"] | None
