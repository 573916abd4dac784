"""The binary tensor extension: tensors as bytes behind the JSON that describes them.

Numbers are little-endian, row by row; an element of text is its length (four bytes,
little-endian) and its bytes.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from predictpool._columns import Array
from predictpool._features._values import text_array
from predictpool.serve._http import Refusal
from predictpool.serve._tensors import BYTES, DTYPES, texts_of

_LENGTH = struct.Struct("<I")


def from_bytes(name: str, datatype: str, shape: list[int], data: memoryview) -> Array:
    """Return the values of an input, flat; numbers are not copied.

    Raises:
        Refusal: there are more or fewer of them than its shape says.
    """
    count = math.prod(shape)
    if datatype == BYTES:
        return text_array(_elements(name, count, data))
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise Refusal(
            400,
            f"input {name!r} has {len(data)} bytes, expected {count * dtype.itemsize}: "
            f"{datatype} of shape {shape}",
        )
    if datatype == "BOOL":
        # A bool of another byte would be neither true nor false.
        return np.not_equal(np.frombuffer(data, np.uint8), 0)
    return np.frombuffer(data, dtype)


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + _LENGTH.size
        at = begin + (_LENGTH.unpack_from(data, at)[0] if begin <= len(data) else 0)
        if at > len(data):
            raise Refusal(400, f"input {name!r} ends within element {len(elements)} of its text")
        elements.append(bytes(data[begin:at]))
    if len(elements) != count:
        raise Refusal(400, f"input {name!r} has {len(elements)} elements, its shape says {count}")
    return elements


def to_bytes(datatype: str, values: Array) -> bytes:
    """Return the bytes of an output."""
    if datatype == BYTES:
        return b"".join(_LENGTH.pack(len(item)) + item for item in texts_of(values))
    return values.tobytes()
