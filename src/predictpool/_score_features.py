"""From the rows of a file to the features that a predictor takes, for ``predictpool score``."""

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from predictpool import FeatureSpec, Signature
from predictpool._command import CommandError
from predictpool._features._refusals import hint, name_list
from predictpool._features._spec import REQUIRED, UNNAMED
from predictpool._tables import Row, Source


class Taking:
    """Takes out of a row what the predictor takes.

    Args:
        signature: what that is.
        source: where the rows come from.
        keep: columns of the input that the output gets.

    Attributes:
        unused: the columns that are neither features nor kept; none where each row has its own.
        used: the other ones; None where each row has its own, or all are.

    Raises:
        CommandError: the file lacks columns, or the predictor cannot be given a file's values.
    """

    def __init__(self, signature: Signature, source: Source, keep: tuple[str, ...]) -> None:
        self._keep = keep
        self._order: tuple[str, ...] = ()  # of the values that make one array, once it is known
        self._signature = signature
        self._columns = [
            (name, reading(name, spec, text=source.text), spec.default, spec)
            for name, spec in signature.features.items()
        ]
        spec = signature.features.get(UNNAMED)
        self._element: Callable[[Any], Any] = same
        if spec is not None and len(spec.shape) == 1:
            self._element = reading(UNNAMED, replace(spec, shape=()), text=source.text)
        self.unused: tuple[str, ...] = ()
        self.used: tuple[str, ...] | None = None
        if source.columns is not None:
            self._check(source.columns)

    def _check(self, columns: tuple[str, ...]) -> None:
        for name in self._keep:
            if name not in columns:
                raise CommandError(
                    f"--keep {name}: INPUT has no such column, it has {name_list(columns)}"
                    f"{hint(name, columns)}",
                    exit_code=2,
                )
        if self._signature.unnamed:
            try:
                self._unnamed(dict.fromkeys(columns, ""))
            except ValueError as error:
                raise CommandError(
                    f"INPUT has the columns {name_list(columns)}: {error}", exit_code=2
                ) from error
            return
        for name, _, default, spec in self._columns:
            if name not in columns and default is REQUIRED:
                raise CommandError(
                    f"INPUT lacks the column {name!r} ({spec}), it has {name_list(columns)}"
                    f"{hint(name, columns)}",
                    exit_code=2,
                )
        known = {*self._keep, *self._signature.features}
        self.unused = tuple(name for name in columns if name not in known)
        self.used = tuple(name for name in columns if name in known)

    def example(self, row: Row) -> Any:
        """Return a row as features of one example.

        Raises:
            ValueError: it cannot be one; says why.
        """
        if row.wrong:
            raise ValueError(row.wrong)
        for name in self._keep:
            if name not in row.values:
                raise ValueError(f"it lacks {name!r}, which --keep names{hint(name, row.values)}")
        if self._signature.unnamed:
            return self._unnamed(row.values)
        if list(row.values) == [UNNAMED]:
            raise ValueError("it is no JSON object, expected one with the features by name")
        features = {}
        for name, read, default, _ in self._columns:
            if name in row.values:
                features[name] = read(row.values[name])
            elif default is REQUIRED:
                raise ValueError(f"feature {name!r} is missing")
            else:
                features[name] = default
        return features

    def _unnamed(self, values: dict[str, Any]) -> Any:
        """Return the one array, out of one column or out of as many as it has elements."""
        ((_, read, _, spec),) = self._columns
        given = self._named(values)
        if len(given) == 1:
            return read(values[given[0]])
        if self._are_elements(given):
            self._order = self._order or given
            if set(given) != set(self._order):
                raise ValueError(
                    f"it has the values {name_list(given)}, expected {name_list(self._order)}, as "
                    "in the first row of that kind"
                )
            return [self._element(values[name]) for name in self._order]
        raise ValueError(
            f"there are {len(given)} values besides those that are kept, and the predictor takes "
            f"one array, {spec}"
        )

    def _named(self, values: dict[str, Any]) -> tuple[str, ...]:
        return tuple(name for name in values if name not in self._keep)

    def _are_elements(self, names: tuple[str, ...]) -> bool:
        shape = self._signature.features[UNNAMED].shape
        return len(shape) == 1 and shape[0] in (None, len(names))

    def pass_by(self, row: Row) -> None:
        """Take note of a row that an earlier run has done: the first says the order of values."""
        if self._signature.unnamed and not self._order:
            names = self._named(row.values)
            if len(names) != 1 and self._are_elements(names):
                self._order = names

    def joined(self, examples: Sequence[Any]) -> Any:
        """Return examples as the features of one request."""
        if self._signature.unnamed:
            return list(examples)
        return {
            name: [features[name] for features in examples] for name in self._signature.features
        }


def reading(name: str, spec: FeatureSpec, *, text: bool) -> Callable[[Any], Any]:
    """Return what makes a feature's value of what is in a file.

    An empty cell of a CSV file is a missing value; a cell that has to be an array is JSON.
    """
    from_text = TEXTS.get(spec.dtype.kind)
    if from_text is None:
        raise CommandError(
            f"the predictor takes {name!r} as {spec}, which no file can have: have it take numbers "
            "or text"
        )
    typed = numbers if spec.dtype.kind == "f" else same
    single = not spec.ragged and spec.shape in ((), (1,))

    def read(cell: str) -> Any:
        try:
            if cell == "" or (spec.dtype.kind != "O" and cell.isspace()):
                return None
            return from_text(cell) if single else typed(json.loads(cell))
        except (ValueError, KeyError, RecursionError):
            what = str(spec) if single else f"JSON of an array, {spec}"
            whose = f"feature {name!r}" if name else "a feature"
            raise ValueError(
                f"{whose} has the text {reprlib.repr(cell)}, expected {what}"
            ) from None

    return read if text else typed


def same(value: Any) -> Any:
    """Return a value as it is."""
    return value


def numbers(value: Any) -> Any:
    """Return whole numbers as floats: a file may write 2.0 as 2."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if type(value) is int else value


def whole_number(cell: str) -> int:
    """Return the integer that a text is; Python's underscores are no part of one."""
    if "_" in cell:
        raise ValueError(cell)
    return int(cell)


def number(cell: str) -> float:
    """Return the float that a text is."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def truth(cell: str) -> bool:
    """Return what a text says: true, false, 1 or 0."""
    return {"true": True, "false": False, "1": True, "0": False}[cell.strip().lower()]


def date(cell: str) -> np.datetime64:
    """Return the date that a text is."""
    return np.datetime64(cell.strip())


TEXTS: Final[dict[str, Callable[[str], Any]]] = {
    "O": str,
    "f": number,
    "i": whole_number,
    "u": whole_number,
    "b": truth,
    "M": date,
}
