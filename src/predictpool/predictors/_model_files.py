"""What the files of a SavedModel say of themselves: enough to know that they are whole.

No TensorFlow in here: the application may ask, too. ``saved_model.pb`` is a protocol buffer,
``variables.index`` a table as LevelDB writes it, with a protocol buffer for each variable.
Both say how long they are, and the index how long the variables' own files are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

MODEL_FILE = "saved_model.pb"

Buffer: TypeAlias = "bytes | _File"

# The numbers of fields: in SavedModel, MetaGraphDef, MetaInfoDef, AssetFileDef, and in the
# BundleHeaderProto and the BundleEntryProto of an index.
_META_GRAPH = 2
_META_INFO, _SAVER, _ASSET, _OBJECTS = 1, 3, 6, 7
_VERSION = 5
_ASSET_NAME = 2
_FILES = 1
_FILE, _OFFSET, _SIZE = 3, 4, 5

_FOOTER = 48
_TABLE_END = (0xDB4775248B80FB57).to_bytes(8, "little")
_BLOCK_END = 5  # whether it is compressed, and a checksum


class CutOff(Exception):
    """Raised where a file ends before what it says it has."""


@dataclass(frozen=True)
class Contents:
    """What ``saved_model.pb`` says of the files beside it.

    Attributes:
        variables: whether there are variables.
        assets: the names of the files in ``assets``.
        version: the TensorFlow that wrote it, or "".
    """

    variables: bool
    assets: tuple[str, ...]
    version: str


def read_contents(path: Path) -> Contents:
    """Read a ``saved_model.pb``.

    Raises:
        CutOff: it ends too early.
        FileNotFoundError: there is none.
    """
    with path.open("rb") as file:
        return _contents(_File(file.fileno()))


def file_sizes(index: Path) -> dict[int, int]:
    """Return how long each file of variables has to be, by its number.

    Args:
        index: ``variables.index``.

    Raises:
        CutOff: the index ends too early.
        FileNotFoundError: there is none.
    """
    table = index.read_bytes()
    if len(table) < _FOOTER or not table.endswith(_TABLE_END):
        raise CutOff
    sizes: dict[int, int] = {}
    _, of_index = _handle(table, len(table) - _FOOTER)  # behind that of a block of metadata
    for _, place, _ in _entries(table, of_index):
        for key_length, start, end in _entries(table, place):
            numbers = _numbers(table, start, end)
            if not key_length:  # the first, a header
                sizes = dict.fromkeys(range(numbers.get(_FILES, 1)), 0)
                continue
            number = numbers.get(_FILE, 0)
            reach = numbers.get(_OFFSET, 0) + numbers.get(_SIZE, 0)
            sizes[number] = max(sizes.get(number, 0), reach)
    return sizes


class _File:
    """A file of which a little is read here and there, however large it is.

    Not a mapped one: if somebody cuts that off meanwhile, as who copies another model over it
    does, the kernel ends the process that looks, and that may be the application.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._descriptor, part.stop - part.start, part.start)


# --- protocol buffers --------------------------------------------------------------


def _contents(buffer: Buffer) -> Contents:
    variables, assets, version, graphs = False, [], "", 0
    for number, start, end in _fields(buffer, 0, len(buffer)):
        if number != _META_GRAPH:
            continue
        graphs += 1
        for part, begin, over in _fields(buffer, start, end):
            variables |= part in (_SAVER, _OBJECTS)
            if part == _ASSET:
                assets.append(_text(buffer, begin, over, _ASSET_NAME))
            if part == _META_INFO:
                version = _text(buffer, begin, over, _VERSION)
    if not graphs:
        raise CutOff
    return Contents(variables, tuple(assets), version)


def _text(buffer: Buffer, start: int, end: int, wanted: int) -> str:
    """Return a field of text in the message between two places, or ""."""
    for number, begin, over in _fields(buffer, start, end):
        if number == wanted:
            return buffer[begin:over].decode()
    return ""


def _numbers(buffer: Buffer, start: int, end: int) -> dict[int, int]:
    """Return the fields of a message, each read as a number: right for those that are one."""
    return {number: _varint(buffer, at)[0] for number, at, _ in _fields(buffer, start, end)}


def _fields(buffer: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each field of a message, and where its value starts and ends."""
    while position < end:
        tag, start = _varint(buffer, position)
        kind = tag & 7
        if kind == 0:
            position = _varint(buffer, start)[1]
        elif kind == 2:
            length, start = _varint(buffer, start)
            position = start + length
        elif kind in (1, 5):
            position = start + (8 if kind == 1 else 4)
        else:  # of which there are none in these messages
            raise CutOff
        if position > end:
            raise CutOff
        yield tag >> 3, start, position


def _varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    number = 0
    for count, byte in enumerate(buffer[position : position + 10]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return number, position + count + 1
    raise CutOff


# --- tables ------------------------------------------------------------------------


def _handle(table: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Return the offset and the size of a block, and where they end."""
    offset, position = _varint(table, position)
    size, position = _varint(table, position)
    return (offset, size), position


def _entries(table: bytes, handle: int) -> Iterator[tuple[int, int, int]]:
    """Yield the length of the key of each entry of a block, and where its value is.

    Args:
        table: the whole file.
        handle: where it says which block.
    """
    (position, size), _ = _handle(table, handle)
    end = position + size
    if end + _BLOCK_END > len(table):
        raise CutOff
    if table[end]:  # compressed, as TensorFlow never does it
        return
    restarts = int.from_bytes(table[end - 4 : end], "little")
    while position < end - 4 * (restarts + 1):
        shared, position = _varint(table, position)
        fresh, position = _varint(table, position)
        length, position = _varint(table, position)
        start = position + fresh
        position = start + length
        yield shared + fresh, start, position
