"""The words in which features are refused: what was given, what is expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import numpy as np

from predictpool._errors import InvalidFeatures
from predictpool._features._values import is_sequence

SAME_SHAPE: Final = (
    "rows of one feature need the same shape; FeatureSpec(..., ragged=True) is for rows of their "
    "own length"
)

# What to do: the kinds given, the kinds expected, the remedy; the first that fits counts.
_REMEDIES: Final = (
    ("V", "biufcmMO", "give each field as a feature of its own"),
    ("biufcmM", "O", "convert them with str(), or declare a numeric dtype"),
    ("O", "O", "give str or bytes"),
    ("US", "biufcmM", "convert text to numbers first, or declare the feature as text (str)"),
    (
        "biufcmMO",
        "mM",
        "give arrays of that dtype (astype makes them, and rounds what is finer than its unit)",
    ),
    ("mM", "biufc", "make numbers of them first: (dates - start) / np.timedelta64(1, 's')"),
    ("c", "biuf", "take .real, .imag or abs() of them"),
    ("biuf", "b", "give True and False (values != 0 does), or declare a number"),
    (
        "f",
        "iu",
        (
            "round and cast them on purpose, or declare a float dtype (pandas makes floats of "
            "integers beside NaN: its dtype 'Int64' does not)"
        ),
    ),
    ("O", "biufc", "give numbers"),
)


def remedy(given: str, expected: str) -> str:
    """Return what to do about values of one kind where another is expected."""
    fitting = (what for kinds, wants, what in _REMEDIES if given in kinds and expected in wants)
    return next(fitting, "give an array of that dtype")  # later numpys have more kinds


def no_array(name: str, value: Any, error: Exception | None, expected: str) -> InvalidFeatures:
    """Return the error for a value of which numpy can make no array."""
    said = f" ({error})" if error else ""
    what = SAME_SHAPE if is_sequence(value) else "give a list or an array of its values"
    return InvalidFeatures(
        f"{quoted(name)} is {describe(value)} that is no array{said}, expected {expected}: {what}",
        feature=name,
        given=describe(value),
        expected=expected,
    )


def quoted(name: str) -> str:
    """Return how a message speaks of a feature."""
    return f"feature {name!r}" if name else "the array of features"


def name_list(names: Iterable[Any]) -> str:
    """Return names as a list that is never too long to read."""
    listed = [str(name) for name in islice(names, 21)]
    shown = ", ".join(listed[:20])
    return f"[{shown}{', …' if len(listed) > 20 else ''}]"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest of those known, or ``""``."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def hint(name: str, known: Iterable[str]) -> str:
    """Return that question as the end of a line, or ``""``."""
    question = did_you_mean(name, known)
    return f"; {question}" if question else ""


def describe(value: Any) -> str:
    """Return what kind of thing a value is."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"
