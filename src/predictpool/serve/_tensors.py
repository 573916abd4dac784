"""Tensors as the Open Inference Protocol names them, and what a predictor returns as such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from predictpool import Signature
from predictpool._columns import Array
from predictpool._features._refusals import describe, quoted
from predictpool._features._spec import UNNAMED, FeatureSpec
from predictpool.serve._http import Refusal, shown

# What tensors without a name are called.
INPUT: Final = "input"
OUTPUT: Final = "output"

# Names are kept beyond their request, by caches of what was read or sent before.
LONGEST_NAME: Final = 256

BYTES: Final = "BYTES"

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    BYTES: np.dtype(object),
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """What is known of an input or an output.

    Attributes:
        name: ``"input"`` or ``"output"`` where the predictor has none.
        datatype: of the protocol.
        shape: with the rows on the first axis; -1 for an axis that varies.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def inputs_of(signature: Signature) -> tuple[Tensor, ...]:
    """Return the inputs of a model.

    Raises:
        Refusal: a feature has a dtype that no protocol has.
    """
    return tuple(
        Tensor(name or INPUT, _datatype(quoted(name), spec.dtype), _shape_of(spec))
        for name, spec in signature.features.items()
    )


def _shape_of(spec: FeatureSpec) -> tuple[int, ...]:
    if spec.ragged:
        return (-1, -1)
    return (-1, *(-1 if axis is None else axis for axis in spec.shape))


def rows_are_alike(signature: Signature | None) -> bool:
    """Whether the rows of all requests have the same shape."""
    return (
        signature is not None
        and not signature.varies
        and not any(spec.ragged for spec in signature.features.values())
    )


def described(outputs: Mapping[str, Array], *, fixed: bool) -> tuple[Tensor, ...]:
    """Return what outputs are like, as far as one answer tells.

    Args:
        fixed: whether rows always have the shape that they have here.
    """
    return tuple(
        Tensor(
            name,
            datatype_of(name, values),
            (-1, *(values.shape[1:] if fixed else [-1] * (values.ndim - 1))) if values.ndim else (),
        )
        for name, values in outputs.items()
    )


def features_of(inputs: dict[str, Array], signature: Signature | None) -> Any:
    """Return inputs as a pool takes them: a predictor may take one array without a name.

    Raises:
        Refusal: it does, and they are something else.
    """
    if signature is None:
        return inputs[INPUT] if [*inputs] == [INPUT] else inputs
    if not signature.unnamed:
        return inputs
    if [*inputs] != [INPUT]:
        expected = signature.features[UNNAMED]
        raise Refusal(
            400, f"the inputs are {quoted_list(inputs)}, expected one, {INPUT!r}: {expected}"
        )
    return inputs[INPUT]


def quoted_list(names: Iterable[str]) -> str:
    """Return a client's names as a message quotes them: the first of them, and briefly."""
    first = [shown(name) for name in islice(names, 21)]
    return ", ".join([*first[:20], *(["..."] if first[20:] else [])])


def named_arrays(outputs: Any) -> dict[str, Array]:
    """Return what a predictor returned as arrays by name.

    Raises:
        Refusal: something of it is no array.
    """
    named = outputs if isinstance(outputs, Mapping) else {OUTPUT: outputs}
    for name, values in named.items():
        if not isinstance(values, np.ndarray):
            raise Refusal(
                500,
                f"output {name!r} is {describe(values)}, which HTTP clients cannot be sent: have "
                "the predictor return numpy arrays, or a dict of them",
            )
    return {str(name): values for name, values in named.items()}


def datatype_of(name: str, values: Array) -> str:
    """Return the datatype of an output.

    Raises:
        Refusal: no protocol has it.
    """
    if values.dtype.kind == "O" and not all(type(item) in (bytes, str) for item in values.flat):
        raise Refusal(500, f"output {name!r} has objects that are no text: return arrays")
    return _datatype(f"output {name!r}", values.dtype)


def _datatype(what: str, dtype: np.dtype[Any]) -> str:
    if dtype.kind in "SU":
        return BYTES
    datatype = _DATATYPES.get(dtype)
    if datatype is None:
        raise Refusal(
            500, f"{what} has the dtype {dtype}, expected one of {', '.join(map(str, _DATATYPES))}"
        )
    return datatype


def texts_of(values: Array) -> list[bytes]:
    """Return all elements of an output of text, row by row."""
    items = values.ravel().tolist()
    return [item.encode() if type(item) is str else item for item in items]
