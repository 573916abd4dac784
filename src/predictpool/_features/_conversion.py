"""The check of one feature's values: they become exactly what its `FeatureSpec` says.

Nothing is changed on the way but for the rounding of floats and what a specification
asks for; what would need more than that is refused. What depends on the specification
alone is decided once, when a `Converter` is made. Checking is done in the application's
event loop, so whatever is right is recognised by a few cheap operations, and only the
rest is looked at closely.
"""

from __future__ import annotations

import reprlib
from dataclasses import replace
from typing import Any, Final

import numpy as np

from predictpool._columns import Array
from predictpool._errors import InvalidFeatures
from predictpool._features._refusals import SAME_SHAPE, no_array, quoted, remedy
from predictpool._features._spec import REQUIRED, FeatureSpec, shape_text
from predictpool._features._values import (
    SUM_SIZE,
    as_utf8,
    has_items,
    is_missing,
    is_sequence,
    nan_check,
    object_array,
    sums_surely_held,
    surely_held,
    text_array,
    unmasked,
)

_EXACTLY: Final = "exactly: give floats if it may be rounded, or declare a wider dtype"
_NUMBERS: Final = (bool, int, float, complex, np.number, np.bool_)
_TIMES: Final = (np.datetime64, np.timedelta64)


class Converter:
    """Brings what is given for one feature to exactly what its `FeatureSpec` says.

    Args:
        name: of the feature, for messages.
        spec: what it has to be.
        place: what messages call a place on the first axis: "row", or "element" of one.
        expected: the words for what is expected, where they are not the specification's.

    Attributes:
        default: what stands in for the feature, with a row axis of length one; or None.

    Raises:
        InvalidFeatures: the specification's own ``default`` or ``missing`` does not fit.
    """

    def __init__(
        self, name: str, spec: FeatureSpec, *, place: str = "row", expected: str = ""
    ) -> None:
        self._name = name
        self._spec = spec
        self._place = place
        self._expected = expected or str(spec)
        self._dtype = spec.dtype
        self._text = spec.dtype.kind == "O"
        self._one_shape = (1, *(axis or 0 for axis in spec.shape))
        single = not spec.ragged and spec.shape in ((), (1,))
        self._single_text = self._text and single
        self._limits = surely_held(spec.dtype) if single else {}
        self._sure = sums_surely_held(spec.dtype)
        self._find_nan = None if spec.allow_nan else nan_check(spec.dtype)
        self._fills = spec.missing is not REQUIRED
        if self._fills:
            self._missing = Converter(name, FeatureSpec(spec.dtype)).row(spec.missing)[0]
        self._elements = _elements(name, spec) if spec.ragged else None
        self.default = None if spec.default is REQUIRED else self.row(spec.default)

    def rows(self, value: Any) -> Array:
        """Return an array with the rows on its first axis.

        Raises:
            InvalidFeatures: naming the feature, what was given and what is expected.
        """
        if type(value) is list and len(value) == 1 and (row := self._plain(value[0])) is not None:
            return row
        values = self._converted(value, one=False)
        shape = self._spec.shape
        if values.shape[1:] == shape and values.ndim == 1 + len(shape):
            return values
        return self._fitted(values, one=False)

    def row(self, value: Any) -> Array:
        """Return the value of a single row, with a row axis of length one.

        Raises:
            InvalidFeatures: as `rows`.
        """
        array = self._plain(value)
        if array is None:
            array = self._fitted(self._converted(value, one=True), one=True)[np.newaxis]
        return array

    def _plain(self, value: Any) -> Array | None:
        """Return the row that a common scalar is, where it is one that surely fits."""
        if self._single_text:
            try:
                value = value.encode() if type(value) is str else value
            except UnicodeEncodeError:
                return None
            if type(value) is not bytes:
                return None
        else:
            limits = self._limits.get(type(value))
            if limits is None or not limits[0] <= value <= limits[1]:
                return None
        array = np.empty(self._one_shape, self._dtype)
        array.fill(value)
        return array

    def _converted(self, value: Any, one: bool) -> Array:
        if self._elements is not None:
            return self._ragged(value, one)
        return self._texts(value, one) if self._text else self._numbers(value, one)

    # --- shapes --------------------------------------------------------------------

    def _fitted(self, values: Array, one: bool) -> Array:
        """Allow ``[n]`` for ``[n, 1]`` and the reverse, no rows at all, and nothing else."""
        shape, lead = self._spec.shape, 0 if one else 1
        rank = values.ndim - lead
        if rank == 0 and shape == (1,):
            return values[..., np.newaxis]
        if rank == 1 and shape == () and values.shape[-1] == 1:
            return values[..., 0]
        if values.shape == (0,) and not one:
            return values.reshape(0, *(axis or 0 for axis in shape))
        axes = zip(values.shape[lead:], shape, strict=False)
        if rank != len(shape) or any(want not in (None, have) for have, want in axes):
            raise self._misshapen(values, one)
        return values

    def _misshapen(self, values: Array, one: bool) -> InvalidFeatures:
        rank = len(self._spec.shape) + (0 if one else 1)
        hint = ""
        if not one and values.ndim == 0:
            hint = ": put it into a list, or use predict_one for one example"
        elif not one and values.ndim == rank - 1:
            hint = ": one example without the row axis is for predict_one"
        elif one and values.ndim == rank + 1:
            hint = ": use predict for values with a row axis"
        if self._place == "element":
            return self._refusal(
                f"has the shape {values.shape}, expected one dimension ({self._expected})",
                f"shape {values.shape}",
            )
        whole = "a row" if one else "rows on the first axis and each row"
        return self._refusal(
            f"has the shape {values.shape}, expected {whole} of shape "
            f"{shape_text(self._spec.shape)}{hint}",
            f"shape {values.shape}",
        )

    # --- numbers -------------------------------------------------------------------

    def _numbers(self, value: Any, one: bool) -> Array:
        values = value if type(value) is np.ndarray else self._array(value)
        gaps: list[int] = []
        if values.dtype.kind == "O":
            values, gaps = self._out_of_objects(values, one)
        fits = False
        if values.dtype != self._dtype:
            fits = self._surely_fit(values)
            values = values.astype(self._dtype) if fits else self._cast(values, one)
        if gaps:
            values.reshape(-1)[gaps] = self._missing
        if not fits and self._find_nan is not None and self._find_nan(values):
            values = self._without_nan(values, one)
        return values

    def _array(self, value: Any) -> Array:
        """Return what numpy makes of a value; objects where numpy would hide what it was."""
        if isinstance(value, np.ma.MaskedArray):
            return unmasked(value)
        values = self._read(value, None)
        if values.dtype.kind != "f":
            return values
        # numpy makes floats of [1, nan] and [1, 2**63], pandas of its nullable integers.
        given = getattr(getattr(value, "dtype", None), "kind", "")
        hidden = (self._dtype.kind in "iub" and values.size) or given in ("i", "u")
        if hidden or (_begins_with_integer(value) and values.max() >= 2.0**63):
            return self._read(value, object)
        return values

    def _read(self, value: Any, dtype: type[object] | None) -> Array:
        try:
            values = np.asarray(value, dtype)
        except Exception as error:
            # Whatever a value's own __array__ raises, it is no array.
            raise no_array(self._name, value, error, self._expected) from error
        if values.ndim == 0 and values.dtype.kind == "O" and has_items(value):
            raise no_array(self._name, value, None, self._expected)
        return values

    def _surely_fit(self, values: Array) -> bool:
        """Whether floats can hold these values as they are; False says nothing."""
        kind = values.dtype.kind
        sum_allowed = self._sure.get(kind)
        if sum_allowed is None or values.size > SUM_SIZE:
            return False
        floats = values if kind == "f" else values.astype(np.float64)
        # As Python's floats: NumPy 2 would round the limit to the dtype of the values.
        return float(np.vdot(floats, floats)) < sum_allowed  # NaN is not

    def _cast(self, values: Array, one: bool) -> Array:
        given, expected = values.dtype.kind, self._dtype.kind
        if values.size == 0 and given == "f":  # what numpy makes of []
            return values.astype(self._dtype)
        if given in "iu" and expected in "iu":
            self._check_range(values, one)
            return values.astype(self._dtype)
        # Dates and durations would lose what is finer than their unit; and numpy would take
        # integers for durations in whatever unit there is.
        rule: Any = "safe" if expected in "mM" else "same_kind"
        other = expected in "mM" and given != expected
        if other or not np.can_cast(values.dtype, self._dtype, rule):
            raise self._wrong_kind(values)
        if given not in "iufc" or expected not in "fc":
            return values.astype(self._dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            cast = values.astype(self._dtype)
            self._check_exact(values, cast, one)
        return cast

    def _check_exact(self, values: Array, cast: Array, one: bool) -> None:
        """Refuse integers that a float would round, and floats that would become infinite."""
        if values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            # Back from there it may come out as the limit, or as anything.
            beyond = cast.real >= 2.0 ** (limits.bits - (limits.min < 0))
            beyond |= np.isinf(cast.real)
            wrong = beyond | (cast.real.astype(values.dtype) != values)
            why = _EXACTLY
        else:
            wrong = np.isinf(cast) & ~np.isinf(values)
            why = "but as infinite: correct it, or declare a wider dtype"
        if np.count_nonzero(wrong):
            raise self._beyond(values[wrong].tolist()[0], why, self._at(wrong, one))

    def _check_range(self, values: Array, one: bool) -> None:
        if values.size == 0 or np.can_cast(values.dtype, self._dtype, "safe"):
            return
        limits = np.iinfo(self._dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            worst = low if low < limits.min else high
            raise self._beyond(worst, self._range_text(), self._at(values == worst, one))

    def _range_text(self) -> str:
        limits = np.iinfo(self._dtype)
        return f"({limits.min} to {limits.max}): correct it, or declare a wider dtype"

    def _out_of_objects(self, values: Array, one: bool) -> tuple[Array, list[int]]:
        """Return the array of numbers that objects are, and which of them are to be filled in."""
        items, gaps = values.ravel().tolist(), []
        floats = self._dtype.kind in "fc" and self._find_nan is None
        allowed: Any = _TIMES if self._dtype.kind in "mM" else _NUMBERS
        for index, item in enumerate(items):
            if is_missing(item):
                if not (floats and isinstance(item, float | complex | np.inexact)):
                    filler = self._filled(item, self._at_flat(values, index, one))
                    # Of all numbers False alone never changes what numpy makes of the others.
                    items[index] = filler if self._dtype.kind in "mM" else False
                    gaps.append(index)
            elif not isinstance(item, allowed):
                raise self._wrong_value(item, self._at_flat(values, index, one))
        given = np.array(items)
        # numpy makes floats of [1, 2**63] and leaves [2**64] as it is.
        integers = given.dtype.kind in "Of" and all(isinstance(i, int | np.integer) for i in items)
        if integers and items and self._dtype.kind in "iufc":
            given = self._from_integers(items, values, one)
        return given.reshape(values.shape), gaps

    def _from_integers(self, items: list[Any], values: Array, one: bool) -> Array:
        """Return integers for which numpy has no dtype, as the declared one if it has them."""
        why = self._range_text() if self._dtype.kind in "iu" else _EXACTLY
        for index, item in enumerate(items):
            if not self._holds(int(item)):
                raise self._beyond(item, why, self._at_flat(values, index, one))
        return np.array(items, self._dtype)

    def _holds(self, item: int) -> bool:
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            return int(limits.min) <= item <= int(limits.max)
        try:
            with np.errstate(over="ignore"):
                return int(self._dtype.type(item).real) == item
        except OverflowError:  # too large for a float, or infinite as one
            return False

    # --- missing values ------------------------------------------------------------

    def _without_nan(self, values: Array, one: bool) -> Array:
        where = np.isnat(values) if values.dtype.kind in "mM" else np.isnan(values)
        filler = self._filled(values[where][0], self._at(where, one))
        filled = values.copy()
        filled[where] = filler
        return filled

    def _filled(self, value: Any, at: str) -> Any:
        """Return what stands in for a missing value."""
        if self._fills:
            return self._missing
        shown = "a masked element" if value is np.ma.masked else str(value)
        nan = isinstance(value, float | complex | np.inexact) and self._dtype.kind in "fc"
        either = " or allow_nan=True (NaN reaches the model)" if nan else ""
        raise self._refusal(
            f"has {shown}{at}, which is a missing value, expected {self._expected}: give a "
            f"value, or declare missing=... (what stands in for it){either} in its FeatureSpec",
            shown,
        )

    # --- text ----------------------------------------------------------------------

    def _texts(self, value: Any, one: bool) -> Array:
        if type(value) is list and (encoded := as_utf8(value)) is not None:
            return text_array(encoded)
        if isinstance(value, np.ma.MaskedArray):
            value = unmasked(value)
        values = value if isinstance(value, np.ndarray) else self._read(value, object)
        if values.dtype.kind not in "OUS" and values.size:
            # In pandas a column of which all is missing has floats, whatever it is about.
            if values.dtype.kind != "f" or not np.isnan(values).all():
                raise self._wrong_kind(values)
            values = values.astype(object)
        items = values.ravel().tolist()
        encoded = as_utf8(items)
        if encoded is None:
            encoded = [
                item if type(item) is bytes else self._as_bytes(item, values, index, one)
                for index, item in enumerate(items)
            ]
        return text_array(encoded).reshape(values.shape)

    def _as_bytes(self, text: Any, values: Array, index: int, one: bool) -> bytes:
        if isinstance(text, bytes):
            return bytes(text)  # numpy has a subclass of its own
        at = self._at_flat(values, index, one)
        if is_missing(text):
            filler: bytes = self._filled(text, at)
            return filler
        if not isinstance(text, str):
            raise self._wrong_value(text, at)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise self._refusal(
                f"has the value {reprlib.repr(text)}{at}, which is no valid text ({error.reason}): "
                "give bytes, or text without lone surrogates",
                reprlib.repr(text),
            ) from error

    # --- rows of their own length --------------------------------------------------

    def _ragged(self, value: Any, one: bool) -> Array:
        """Return an object array of the rows; without a row axis where it is ``one``."""
        if one:
            return object_array([self._elements_of(value, "")], ())
        if isinstance(value, np.ma.MaskedArray):
            value = unmasked(value)
        if not is_sequence(value):
            hint = "put it into a list, or use predict_one for one example"
            raise self._no_rows(value, "", f"{self._expected} on the first axis: {hint}")
        rows = [self._elements_of(row, f"row {index} of ") for index, row in enumerate(value)]
        return object_array(rows, (len(rows),))

    def _elements_of(self, row: Any, where: str) -> Array:
        assert self._elements is not None
        if self._fills and is_missing(row):
            row = []
        if not is_sequence(row):
            hint = "put it into a list ([] for no element)"
            raise self._no_rows(row, where, f"{self._expected}: {hint}")
        try:
            return self._elements.rows(row)
        except InvalidFeatures as error:
            raise InvalidFeatures(
                f"{where}{error}", feature=self._name, given=error.given, expected=error.expected
            ) from error

    def _no_rows(self, value: Any, where: str, expected: str) -> InvalidFeatures:
        if has_items(value) and not isinstance(value, np.ndarray):
            return no_array(self._name, value, None, self._expected)
        shown = reprlib.repr(value)
        return InvalidFeatures(
            f"{where}{quoted(self._name)} is {shown}, expected {expected}",
            feature=self._name,
            given=shown,
            expected=self._expected,
        )

    # --- errors --------------------------------------------------------------------

    def _at(self, where: Array, one: bool) -> str:
        """Return where it is first, in words; a single row needs none."""
        if one or where.ndim == 0:
            return ""
        return f" in {self._place} {int(np.argwhere(where)[0][0])}"

    def _at_flat(self, values: Array, index: int, one: bool) -> str:
        if one or values.ndim == 0:
            return ""
        return f" in {self._place} {index // (values.size // len(values))}"

    def _refusal(self, what: str, given: str) -> InvalidFeatures:
        return InvalidFeatures(
            f"{quoted(self._name)} {what}",
            feature=self._name,
            given=given,
            expected=self._expected,
        )

    def _beyond(self, value: Any, why: str, at: str) -> InvalidFeatures:
        return self._refusal(
            f"has the value {value}{at}, which {self._dtype} cannot hold {why}", str(value)
        )

    def _wrong_kind(self, values: Array) -> InvalidFeatures:
        sample = ", ".join(map(repr, values.ravel()[:3].tolist()))
        text = values.dtype.kind in "US"
        kind = f"text ({sample})" if text else f"{values.dtype} values ({sample})"
        what = remedy(values.dtype.kind, self._dtype.kind)
        return self._refusal(f"has {kind}, expected {self._expected}: {what}", kind)

    def _wrong_value(self, value: Any, at: str) -> InvalidFeatures:
        text = isinstance(value, str | bytes)
        number = isinstance(value, _NUMBERS)
        what = remedy("U" if text else "f" if number else "O", self._dtype.kind)
        if is_sequence(value):
            what = SAME_SHAPE
        shown = reprlib.repr(value)
        return self._refusal(
            f"has the value {shown} of type {type(value).__name__}{at}, expected {self._expected}: "
            f"{what}",
            shown,
        )


def _begins_with_integer(value: Any) -> bool:
    """Whether the first number of a list is an integer; it may be a list of lists."""
    while type(value) is list and value:
        value = value[0]
    return type(value) is int


def _elements(name: str, spec: FeatureSpec) -> Converter:
    """Return what brings one row of a ragged feature to what it has to be."""
    flat = replace(spec, ragged=False, default=REQUIRED)
    return Converter(name, flat, place="element", expected=str(spec))


def free_array(name: str, value: Any) -> Array:
    """Return what numpy makes of a feature that no specification is known for.

    Text in lists stays ``str`` in an object array, so that nothing is cut or padded.

    Raises:
        InvalidFeatures: it is no array, or one with masked elements.
    """
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        raise InvalidFeatures(
            f"{quoted(name)} has masked elements, which would reach the model unmasked: fill them "
            "with .filled(...), or declare a signature with missing=",
            feature=name,
            given="masked elements",
            expected="an array",
        )
    try:
        values = np.asarray(value)
        if values.dtype.kind in "US" and not isinstance(value, np.ndarray | np.generic):
            values = np.array(value, dtype=object)
    except Exception as error:
        # Whatever a value's own __array__ raises, it is no array.
        expected = "an array with the rows on its first axis"
        raise no_array(name, value, error, expected) from error
    return values
