"""What one feature has to be."""

from __future__ import annotations

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


def shape_text(shape: RowShape) -> str:
    """Return a row shape as a tuple is written, with "any" for an axis that varies."""
    inner = ", ".join("any" if axis is None else str(axis) for axis in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
