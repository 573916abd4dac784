"""What values are, whatever feature they belong to: missing, NaN, text, sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from predictpool._columns import Array

# Up to here the sum of all squares is the fastest check of floats; and BLAS computes it
# in the calling thread.
SUM_SIZE: Final = 4096


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT, pandas' NA, a masked element."""
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, float | complex | np.inexact):
        return bool(value != value)  # noqa: PLR0124 - that is what NaN is
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    kind = type(value)
    # Importing pandas to compare with would cost its users nothing, and all others much.
    return kind.__name__ in ("NAType", "NaTType") and kind.__module__.startswith("pandas.")


def is_mapping(features: Any) -> bool:
    """Whether features have names; a pandas DataFrame is no Mapping, but it has."""
    return isinstance(features, Mapping) or (
        hasattr(features, "keys") and hasattr(features, "__getitem__")
    )


def is_series(features: Any) -> bool:
    """Whether it is a pandas Series: an array that can also be taken for a mapping."""
    array = is_mapping(features) and hasattr(features, "__array__")
    return array and getattr(features, "ndim", 0) == 1


def as_utf8(items: list[Any]) -> list[bytes] | None:
    """Return text as UTF-8 and bytes as they are; None where something else is among it."""
    try:
        return [*map(str.encode, items)]
    except TypeError:
        pass  # not all are text
    except UnicodeEncodeError:
        return None
    types = set(map(type, items))
    try:
        if types == {str, bytes}:
            return [item.encode() if type(item) is str else item for item in items]
    except UnicodeEncodeError:
        return None
    return items if types <= {bytes} else None


def nan_check(dtype: np.dtype[Any]) -> Callable[[Array], bool] | None:
    """Return what tells whether an array has NaN or NaT; None where a dtype has neither."""
    if dtype.kind in "mM":
        return _has_nat
    return _has_nan if dtype.kind in "fc" else None


def _has_nan(values: Array) -> bool:
    if values.size == 1:
        value = values.item()
        return bool(value != value)  # noqa: PLR0124 - that is what NaN is
    if values.size <= SUM_SIZE:
        # Squares of floats are never negative, so their sum is NaN if one of them is, and
        # else at most infinite. With infinite complex numbers it may be NaN as well.
        total = np.vdot(values, values)
        if total == total:  # noqa: PLR0124
            return False
    return bool(np.isnan(np.minimum.reduce(values, axis=None)))


def _has_nat(values: Array) -> bool:
    return bool(np.isnat(values).any())


def surely_held(dtype: np.dtype[Any]) -> Mapping[type, tuple[Any, Any]]:
    """Return which scalars of the common number types are surely held, by type."""
    if dtype.kind in "iu":
        integers = np.iinfo(dtype)
        held: dict[type, tuple[Any, Any]] = {int: (int(integers.min), int(integers.max))}
        own = held[int]
    elif dtype.kind == "f":
        floats = np.finfo(dtype)
        most, exact = float(floats.max), min(2 ** (floats.nmant + 1), 2**62)
        held = {int: (-exact, exact), float: (-most, most)}
        held |= {np.int64: held[int], np.float64: held[float]}
        own = (-np.inf, np.inf)
    else:
        return {}
    # numpy compares its scalars with those of the same type much faster than with others.
    return {
        kind: (kind(low), kind(high)) for kind, (low, high) in {**held, dtype.type: own}.items()
    }


def sums_surely_held(dtype: np.dtype[Any]) -> Mapping[str, float]:
    """Return below which sum of squares all values of a kind fit into a float dtype."""
    if dtype.kind not in "fc":
        return {}
    limits = np.finfo(dtype)
    exact = 4.0 ** (limits.nmant + 1)
    return {"f": min(float(limits.max), 1e150) ** 2, "i": exact, "u": exact}


def text_array(items: list[bytes]) -> Array:
    """Return an object array of one dimension."""
    values = np.empty(len(items), object)
    values[:] = items
    return values


def object_array(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """Return an object array of these items, whatever they are."""
    values = np.empty(len(items), object)
    for index, item in enumerate(items):
        values[index] = item  # assigned at once, arrays would be taken apart
    return values.reshape(shape)


def unmasked(value: Any) -> Array:
    """Return the elements of a masked array, as objects if any of them is masked."""
    values, mask = np.asarray(value), value.mask
    if not np.any(mask):
        return values
    items = [
        np.ma.masked if masked else item
        for item, masked in zip(values.ravel(), mask.ravel(), strict=True)
    ]
    return object_array(items, values.shape)


def has_items(value: Any) -> bool:
    """Whether one can iterate over a value; text is a single value here."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | np.generic)


def is_sequence(value: Any) -> bool:
    """Whether a value has its items in an order; text is a single value here."""
    if isinstance(value, str | bytes | np.generic | Mapping):
        return False
    if hasattr(value, "__array__"):
        return bool(getattr(value, "ndim", 0))
    return isinstance(value, Sequence)
