"""What one feature has to be, and the words in which messages speak of features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from predictpool._columns import Array

Arrays: TypeAlias = dict[str, Array]
RowShape: TypeAlias = tuple[int | None, ...]

# The name under which a single unnamed array travels.
UNNAMED: Final = ""


class Required:
    """The type of `REQUIRED`."""

    def __repr__(self) -> str:
        return "REQUIRED"

    def __reduce__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = Required()


@dataclass(frozen=True)
class FeatureSpec:
    """What one feature has to be.

    Attributes:
        dtype: the numpy dtype that the model gets; ``object`` stands for text, which
            arrives as UTF-8 ``bytes``.
        shape: the shape of one row, without the row axis; None for an axis that varies
            from request to request.
        default: the value of a row, for requests that leave the feature out.
        missing: the value that stands in for each missing one: None, NaN, NaT, pandas'
            ``NA`` and the masked elements of numpy's masked arrays. Without it they are
            refused.
        allow_nan: whether NaN reaches the model as NaN; floats only, and not together
            with ``missing``, which says that NaN is to be replaced.
        ragged: whether each row is a sequence of its own length; ``shape`` is ``()``. The
            model gets an object array of one-dimensional arrays of ``dtype``. With
            ``missing``, a row that is missing as a whole is one without elements.
    """

    dtype: np.dtype[Any]
    shape: RowShape = ()
    default: Any = REQUIRED
    missing: Any = REQUIRED
    allow_nan: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        kind = "text" if self.dtype.kind == "O" else str(self.dtype)
        if self.ragged:
            return f"{kind} rows of any length (ragged)"
        return f"{kind} rows of shape {shape_text(self.shape)}"


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


# --- words -------------------------------------------------------------------------


def quoted(name: str) -> str:
    """Return how a message speaks of a feature."""
    return f"feature {name!r}" if name else "the array of features"


def name_list(names: Iterable[Any]) -> str:
    """Return names as a list that is never too long to read."""
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:20])
    return f"[{shown}{', …' if len(listed) > 20 else ''}]"


def shape_text(shape: RowShape) -> str:
    """Return a row shape as a tuple is written, with "any" for an axis that varies."""
    inner = ", ".join("any" if axis is None else str(axis) for axis in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def describe(value: Any) -> str:
    """Return what kind of thing a value is."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"


def is_mapping(features: Any) -> bool:
    """Whether features have names; a pandas DataFrame is no Mapping, but it has."""
    return isinstance(features, Mapping) or (
        hasattr(features, "keys") and hasattr(features, "__getitem__")
    )


def is_series(features: Any) -> bool:
    """Whether it is a pandas Series: an array that can also be taken for a mapping."""
    array = is_mapping(features) and hasattr(features, "__array__")
    return array and getattr(features, "ndim", 0) == 1
