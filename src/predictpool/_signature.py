"""What a model wants to be fed: names, dtypes and row shapes, and the check of features.

Features are checked and brought to the model's exact dtypes in the application, so that
a mistake costs no round trip and never reaches a model. (A generator-fed Estimator dies
of a missing key or a ragged list, and takes a second to rebuild.)
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from predictpool._columns import Array, Column, Parts, Schema, encode, make_schema
from predictpool._errors import InvalidFeatures

Arrays: TypeAlias = dict[str, Array]
RowShape: TypeAlias = tuple[int | None, ...]

# The name under which a single unnamed array travels.
UNNAMED: Final = ""


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"

    def __reduce__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


@dataclass(frozen=True)
class FeatureSpec:
    """What one feature has to be.

    Attributes:
        dtype: the numpy dtype that the model gets; ``object`` stands for text, which
            arrives as UTF-8 ``bytes``.
        shape: the shape of one row, without the row axis; None for an axis that varies.
        default: the value of a row, for requests that leave the feature out.
    """

    dtype: np.dtype[Any]
    shape: RowShape = ()
    default: Any = REQUIRED
    ragged: bool = False

    def __str__(self) -> str:
        kind = "text" if self.dtype.kind == "O" else str(self.dtype)
        return f"{kind} rows of shape {_shape_text(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """The features that a predictor takes.

    Attributes:
        features: name → `FeatureSpec`; a model that takes one unnamed array has the
            single name ``""``.
    """

    features: Mapping[str, FeatureSpec]

    @classmethod
    def declared(cls, features: Any) -> Signature:
        """Read a signature in the notation that users write.

        Args:
            features: a mapping of name to ``(dtype, row shape)``,
                ``(dtype, row shape, default)``, a dtype alone (scalar rows), a
                `FeatureSpec` or a ``tf.TensorSpec`` (its first axis is the rows); or one
                of these for a model that takes a single unnamed array. Text is ``str``,
                ``bytes`` or ``object``.

        Raises:
            TypeError: it is none of these.
        """
        if isinstance(features, Signature):
            return features
        named = features if isinstance(features, Mapping) else {UNNAMED: features}
        if not named:
            raise TypeError("signature={} declares no feature: name at least one")
        if UNNAMED in named and len(named) > 1:
            raise TypeError(f"signature has the name '' among others: {_name_list(named)}")
        return cls({str(name): _declared_spec(str(name), spec) for name, spec in named.items()})

    @classmethod
    def inferred(cls, arrays: Arrays) -> Signature:
        """Take the signature from a first request: floats as float32, text as text.

        Raises:
            InvalidFeatures: for every other dtype. ``[1, 2]`` may be the first values of
                a column of floats, which an integer signature would cut off for ever.
        """
        return cls({name: _inferred_spec(name, values) for name, values in arrays.items()})

    def relaxed(self, **_: Any) -> Signature:
        return self

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

        Args:
            features: a mapping of name to array-like, or one array-like; the first axis
                is the row.
            one: the features are a single example without the row axis.

        Raises:
            InvalidFeatures: naming the feature, what was given and what is expected.
        """
        named = self._named(features)
        arrays: Arrays = {}
        for name, spec in self.features.items():
            if name in named:
                arrays[name] = _conform_array(name, spec, named[name], one)
            elif isinstance(spec.default, _Required):
                raise self._missing(name, named)
        _check_lengths(arrays)
        if len(named) > len(arrays):
            raise self._unknown(named)
        if len(arrays) < len(self.features):
            arrays = self._with_defaults(arrays)
        return arrays

    def example(self) -> Arrays:
        """Return one row that has the right dtypes and shapes: zeros and empty text."""
        arrays: Arrays = {}
        for name, spec in self.features.items():
            shape = (1, *(1 if axis is None else axis for axis in spec.shape))
            empty: Any = b"" if spec.dtype.kind == "O" else 0
            arrays[name] = np.full(shape, empty, spec.dtype)
        return arrays

    def __str__(self) -> str:
        return ", ".join(f"{name or 'features'}: {spec}" for name, spec in self.features.items())

    def _named(self, features: Any) -> Mapping[str, Any]:
        if not self.unnamed:
            if not _is_mapping(features):
                raise InvalidFeatures(
                    f"features are {_describe(features)}, expected a mapping of name to values "
                    f"with the names {_name_list(self.features)}",
                    given=_describe(features),
                    expected="a mapping of name to values",
                )
            return features  # type: ignore[no-any-return]
        if _is_mapping(features):
            raise InvalidFeatures(
                f"features are a mapping of {_name_list(features)}, expected one array: "
                f"{self.features[UNNAMED]}",
                given="a mapping",
                expected=f"one array: {self.features[UNNAMED]}",
            )
        return {UNNAMED: features}

    def _missing(self, name: str, named: Mapping[str, Any]) -> InvalidFeatures:
        unknown = [str(given) for given in named if given not in self.features]
        close = difflib.get_close_matches(name, unknown, n=1)
        hint = f"; did you mean it by {close[0]!r}?" if close else ""
        return InvalidFeatures(
            f"feature {name!r} is missing: given {_name_list(named)}, "
            f"expected {self.features[name]}{hint}",
            feature=name,
            given=_name_list(named),
            expected=str(self.features[name]),
        )

    def _unknown(self, named: Mapping[str, Any]) -> InvalidFeatures:
        name = next(str(given) for given in named if given not in self.features)
        close = difflib.get_close_matches(name, list(self.features), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return InvalidFeatures(
            f"feature {name!r} is unknown: expected {_name_list(self.features)}{hint}",
            feature=name,
            given=name,
            expected=_name_list(self.features),
        )

    def _with_defaults(self, arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values()))) if arrays else 1
        return {
            name: arrays[name]
            if name in arrays
            else np.repeat(_conform_array(name, spec, spec.default, one=True), rows, axis=0)
            for name, spec in self.features.items()
        }


class Encoder:
    """Encodes features of one signature; keeps what is the same for all its requests."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._codes = {
            name: "bytes" if spec.dtype.kind == "O" else spec.dtype.str
            for name, spec in signature.features.items()
        }
        self._schema = None if signature.varies else self._schema_of(signature.example())

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
        parts = encode(schema, arrays, rows, _text_as_bytes)
        assert parts is not None
        return schema, parts, rows

    def _encode_exact(self, features: Any) -> tuple[Schema, Parts, int] | None:
        """Encode arrays that are right as they are, much faster than by way of `conform`.

        None where anything is otherwise, if only for `conform` to say what is wrong.
        """
        schema = self._schema
        if schema is None or type(features) is not dict or len(features) != len(schema.names):
            return None
        shape = getattr(next(iter(features.values())), "shape", ())
        if not shape:
            return None
        parts = encode(schema, features, shape[0], _text_as_bytes, flat=True)
        return None if parts is None else (schema, parts, shape[0])

    def _schema_of(self, arrays: Arrays) -> Schema:
        columns = (Column(name, code, arrays[name].shape[1:]) for name, code in self._codes.items())
        return make_schema(tuple(columns), not self._signature.unnamed)


def _text_as_bytes(items: list[Any], _: str) -> list[bytes] | None:
    """Turn text into UTF-8, in place; None where something is no text."""
    for index, item in enumerate(items):
        if type(item) is str:
            try:
                items[index] = item.encode()
            except UnicodeEncodeError:
                return None
        elif type(item) is not bytes:
            return None
    return items


def as_arrays(features: Any, *, one: bool = False) -> tuple[Arrays, bool]:
    """Return features as arrays without a signature: whatever numpy makes of them.

    Text in lists stays ``str`` in an object array, so that nothing is cut or padded.

    Returns:
        the arrays by name, and whether they were given as a mapping.

    Raises:
        InvalidFeatures: ragged values, no row axis, or features of different lengths.
    """
    mapping = _is_mapping(features)
    arrays: Arrays = {}
    for name, value in features.items() if mapping else [(UNNAMED, features)]:
        values = _free_array(str(name), value)
        if one:
            values = values[np.newaxis]
        if values.ndim == 0:
            raise _no_row_axis(str(name), values)
        arrays[str(name)] = values
    if not arrays:
        raise InvalidFeatures("features are empty: expected at least one name", given="{}")
    _check_lengths(arrays)
    return arrays, mapping


# --- one feature -------------------------------------------------------------------


def _conform_array(name: str, spec: FeatureSpec, value: Any, one: bool) -> Array:
    if spec.dtype.kind == "O":
        values = _text_array(name, spec, value)
    else:
        values = _typed_array(name, spec, value)
    lead = 0 if one else 1
    if values.ndim != lead + len(spec.shape):
        values = _fitting_rank(name, spec, values, lead)
    for given, expected in zip(values.shape[lead:], spec.shape, strict=True):
        if expected is not None and given != expected:
            raise _does_not_fit(name, spec, values, one)
    return values[np.newaxis] if one else values


def _fitting_rank(name: str, spec: FeatureSpec, values: Array, lead: int) -> Array:
    """Allow ``[n]`` for ``[n, 1]`` and the reverse, and nothing else."""
    rank = values.ndim - lead
    if rank == 0 and spec.shape == (1,):
        return values[..., np.newaxis]
    if rank == 1 and spec.shape == () and values.shape[-1] == 1:
        return values[..., 0]
    if values.shape == (0,) and lead == 1:
        return values.reshape(0, *(0 if axis is None else axis for axis in spec.shape))
    raise _does_not_fit(name, spec, values, one=lead == 0)


def _typed_array(name: str, spec: FeatureSpec, value: Any) -> Array:
    values = _plain_array(name, spec, value)
    if values.dtype == spec.dtype:
        return values
    if values.size == 0 and values.dtype.kind == "f":  # what numpy makes of []
        return values.astype(spec.dtype)
    given, expected = values.dtype.kind, spec.dtype.kind
    if given in "iu" and expected in "iu":
        _check_range(name, spec, values)
        return values.astype(spec.dtype)
    # Dates and durations would lose what is finer than their unit.
    if not np.can_cast(values.dtype, spec.dtype, "safe" if expected in "mM" else "same_kind"):
        raise _wrong_kind(name, spec, values)
    if given not in "iufc" or expected not in "fc" or _surely_fit(values, spec.dtype):
        return values.astype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(spec.dtype)
        _check_exact(name, spec, values, cast)
    return cast


def _surely_fit(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether a float dtype can hold a few values: what `_check_exact` takes longer to say."""
    if values.size > 32 or values.dtype.kind == "c":
        return False
    low, high = _harmless(dtype, values.dtype.kind == "f")
    return all(low <= item <= high for item in values.ravel().tolist())


@lru_cache
def _harmless(dtype: np.dtype[Any], floats: bool) -> tuple[float, float]:
    limits = np.finfo(dtype)
    bound = float(limits.max) if floats else 2.0 ** (limits.nmant + 1)
    return -bound, bound


def _check_exact(name: str, spec: FeatureSpec, values: Array, cast: Array) -> None:
    """Refuse integers that a float would round, and floats that would become infinite."""
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        # Back from there it may come out as the limit, or as anything.
        beyond = cast.real >= 2.0 ** (limits.bits - (limits.min < 0))
        beyond |= np.isinf(cast.real)
        wrong = beyond | (cast.real.astype(values.dtype) != values)
        hint = " exactly: give floats if it may be rounded"
    else:
        wrong = np.isinf(cast) & ~np.isinf(values)
        hint = ""
    if np.count_nonzero(wrong):
        worst = values[wrong].tolist()[0]
        raise InvalidFeatures(
            f"{_quoted(name)} has the value {worst}, which {spec.dtype} cannot hold{hint}",
            feature=name,
            given=str(worst),
            expected=str(spec),
        )


def _check_range(name: str, spec: FeatureSpec, values: Array) -> None:
    if values.size == 0 or np.can_cast(values.dtype, spec.dtype, "safe"):
        return
    limits = np.iinfo(spec.dtype)
    low, high = int(values.min()), int(values.max())
    if low < limits.min or high > limits.max:
        worst = low if low < limits.min else high
        raise InvalidFeatures(
            f"{_quoted(name)} has the value {worst}, which {spec.dtype} cannot hold "
            f"({limits.min} to {limits.max})",
            feature=name,
            given=str(worst),
            expected=str(spec),
        )


def _plain_array(name: str, spec: FeatureSpec, value: Any) -> Array:
    try:
        values = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_array(name, value, error, f"expected {spec}", str(spec)) from error
    return values


def _text_array(name: str, spec: FeatureSpec, value: Any) -> Array:
    try:
        values = value if isinstance(value, np.ndarray) else _object_array(value)
    except (ValueError, TypeError) as error:
        raise _no_array(name, value, error, f"expected {spec}", str(spec)) from error
    if values.dtype.kind not in "OUS" and values.size:
        raise _wrong_kind(name, spec, values)
    encoded = np.empty(values.shape, object)
    flat = encoded.reshape(-1)
    for index, item in enumerate(values.ravel().tolist()):
        flat[index] = item if type(item) is bytes else _as_bytes(name, spec, item)
    return encoded


def _as_bytes(name: str, spec: FeatureSpec, text: Any) -> bytes:
    if isinstance(text, bytes):
        return bytes(text)  # numpy has a subclass of its own
    if not isinstance(text, str):
        raise InvalidFeatures(
            f"{_quoted(name)} has the value {text!r} of type {type(text).__name__}, "
            f"expected {spec} (str or bytes)",
            feature=name,
            given=repr(text),
            expected=str(spec),
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidFeatures(
            f"{_quoted(name)} has the value {text!r}, which is no valid text ({error.reason}): "
            "give bytes, or text without lone surrogates",
            feature=name,
            given=repr(text),
            expected="text",
        ) from error


def _object_array(value: Any) -> Array:
    # np.asarray(["a\0"]) would make a fixed-width array and drop the NUL.
    return np.array(value, dtype=object)


def _free_array(name: str, value: Any) -> Array:
    try:
        values = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_array(
            name,
            value,
            error,
            "rows of one feature need the same shape",
            "an array with the rows on its first axis",
        ) from error
    if values.dtype.kind in "US" and not isinstance(value, np.ndarray | np.generic):
        return _object_array(value)
    return values


def _check_lengths(arrays: Arrays) -> None:
    lengths = {len(values) for values in arrays.values()}
    if len(lengths) > 1:
        given = ", ".join(f"{name}: {len(values)}" for name, values in arrays.items())
        raise InvalidFeatures(
            f"features differ in their number of rows ({given}), "
            "expected one value per row in each",
            given=given,
            expected="the same number of rows in every feature",
        )


# --- signatures --------------------------------------------------------------------


def _declared_spec(name: str, spec: Any) -> FeatureSpec:
    read = _read_spec(name, spec)
    if not isinstance(read.default, _Required):
        try:
            _conform_array(name, read, read.default, one=True)
        except InvalidFeatures as error:
            raise TypeError(f"the signature's default does not fit: {error}") from error
    return read


def _read_spec(name: str, spec: Any) -> FeatureSpec:
    if isinstance(spec, FeatureSpec):
        spec = (spec.dtype, spec.shape, spec.default)
    if isinstance(spec, tuple):
        if not 1 <= len(spec) <= 3:
            raise _bad_spec(name, spec)
        shape = _row_shape(name, spec, spec[1]) if len(spec) > 1 else ()
        return FeatureSpec(_dtype(name, spec[0]), shape, *spec[2:])
    # numpy's scalar types have both attributes too.
    if hasattr(spec, "shape") and hasattr(spec, "dtype") and not isinstance(spec, type):
        full = _row_shape(name, spec, spec.shape)
        if full[:1] != (None,):
            raise TypeError(
                f"signature of {_quoted(name)}: {spec!r} has no axis for the rows; "
                "its shape has to begin with None"
            )
        return FeatureSpec(_dtype(name, spec.dtype), full[1:])
    return FeatureSpec(_dtype(name, spec))


def _row_shape(name: str, spec: Any, shape: Any) -> RowShape:
    try:
        axes = tuple(None if axis is None else operator.index(axis) for axis in shape)
    except (TypeError, ValueError) as error:  # a tf.TensorShape of unknown rank: ValueError
        raise _bad_spec(name, spec) from error
    if any(axis is not None and axis < 0 for axis in axes):
        raise _bad_spec(name, spec)
    return axes


def _dtype(name: str, given: Any) -> np.dtype[Any]:
    given = getattr(given, "as_numpy_dtype", given)
    if given is None:  # numpy's default would be float64
        raise _bad_spec(name, given)
    try:
        dtype = np.dtype(given)
    except (TypeError, ValueError, SyntaxError) as error:
        raise _bad_spec(name, given) from error
    if dtype.kind not in "biufcmMOUS":
        raise _bad_spec(name, given)
    return np.dtype(object) if dtype.kind in "US" else dtype


def _bad_spec(name: str, spec: Any) -> TypeError:
    return TypeError(
        f"signature of {_quoted(name)} is {spec!r}; expected a dtype, (dtype, row shape), "
        "(dtype, row shape, default) or a tf.TensorSpec"
    )


def _inferred_spec(name: str, values: Array) -> FeatureSpec:
    dtype: np.dtype[Any]
    if values.size == 0:
        # numpy takes [] for floats; a column of text would be refused for ever.
        raise InvalidFeatures(
            f"{_quoted(name)} is empty (shape {values.shape}), and the signature is not known: "
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
            f"{_quoted(name)} has dtype {values.dtype}, and the signature is not known: "
            f"declare it, for example signature={{{name!r}: (np.int64, {values.shape[1:]})}} "
            "or np.float32",
            feature=name,
            given=str(values.dtype),
            expected="signature= of the predictor, or floats or text",
        )
    return FeatureSpec(dtype, values.shape[1:])


# --- words -------------------------------------------------------------------------


def _is_mapping(features: Any) -> bool:
    # A pandas DataFrame is no Mapping, and has both.
    return isinstance(features, Mapping) or (
        hasattr(features, "keys") and hasattr(features, "__getitem__")
    )


def _quoted(name: str) -> str:
    return f"feature {name!r}" if name else "the array of features"


def _name_list(names: Any) -> str:
    listed: Sequence[str] = [str(name) for name in names]
    shown = ", ".join(listed[:20])
    return f"[{shown}{', …' if len(listed) > 20 else ''}]"


def _shape_text(shape: RowShape) -> str:
    inner = ", ".join("any" if axis is None else str(axis) for axis in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"


def _no_array(
    name: str, value: Any, error: Exception, remedy: str, expected: str
) -> InvalidFeatures:
    return InvalidFeatures(
        f"{_quoted(name)} is {_describe(value)} that is no array ({error}): {remedy}",
        feature=name,
        given=_describe(value),
        expected=expected,
    )


def _wrong_kind(name: str, spec: FeatureSpec, values: Array) -> InvalidFeatures:
    kind = "objects" if values.dtype.kind == "O" else f"{values.dtype} values"
    sample = ", ".join(map(repr, values.ravel()[:3].tolist()))
    return InvalidFeatures(
        f"{_quoted(name)} has {kind} ({sample}), expected {spec}",
        feature=name,
        given=f"{kind} ({sample})",
        expected=str(spec),
    )


def _does_not_fit(name: str, spec: FeatureSpec, values: Array, one: bool) -> InvalidFeatures:
    whole = "a row" if one else "rows on the first axis and each row"
    return InvalidFeatures(
        f"{_quoted(name)} has the shape {values.shape}, expected {whole} "
        f"of shape {_shape_text(spec.shape)}",
        feature=name,
        given=f"shape {values.shape}",
        expected=str(spec),
    )


def _no_row_axis(name: str, values: Array) -> InvalidFeatures:
    return InvalidFeatures(
        f"{_quoted(name)} is the single value {values[()]!r}, expected an array with the rows on "
        "its first axis (predict_one takes one example without it)",
        feature=name,
        given="a single value",
        expected="an array with the rows on its first axis",
    )


SignatureSource: TypeAlias = Signature | Literal["infer"] | None
