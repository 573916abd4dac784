"""Which SavedModel a path stands for: itself, or the newest version in it that is whole.

No TensorFlow in here: the application may ask, too.

A version is written while others look at its folder. TensorFlow writes ``saved_model.pb``
last; those that copy a model write its files in any order, and a file is there before its
last byte is. So what a version needs is read from ``saved_model.pb`` itself, by the wire
format of protocol buffers, of which a few bytes are enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MODEL_FILE = "saved_model.pb"

_INDEX = "variables.index"
_SHARD = re.compile(r"variables\.data-\d+-of-(\d+)")

# The last bytes of an index of variables, which is a table of LevelDB's.
_TABLE_END = (0xDB4775248B80FB57).to_bytes(8, "little")

# Numbers of fields in the messages SavedModel, MetaGraphDef and AssetFileDef.
_META_GRAPH = 2
_SAVER, _ASSET, _OBJECTS = 3, 6, 7
_ASSET_NAME = 2


def find_model(path: Path) -> Path:
    """Return the folder of the SavedModel that a path stands for.

    Args:
        path: the folder of a SavedModel, or one of versions, whose names are numbers.

    Returns:
        the path itself, or its version of the highest number that is whole.

    Raises:
        FileNotFoundError: there is none; the message says what is there instead.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {str(path)!r}: expected the folder of a SavedModel, or a folder of its "
            "versions (1, 2, …)"
        )
    if path.is_dir():
        if (path / MODEL_FILE).exists():
            _require_whole(path)
            return path
        versions = _versions(path)
        for version in versions:
            if lacks(version) is None:
                return version
        if versions:
            raise FileNotFoundError(_none_is_whole(path, versions))
    raise FileNotFoundError(_no_saved_model(path))


def lacks(folder: Path) -> str | None:
    """Return what a SavedModel lacks, as one that is being written does; None if it is whole."""
    try:
        with (folder / MODEL_FILE).open("rb") as file:
            needs_variables, assets = _needs(file)
    except FileNotFoundError:
        return f"there is no {MODEL_FILE}"
    except _CutOff:
        return f"{MODEL_FILE} is cut off"
    missing = _lacking_variables(folder / "variables", needed=needs_variables)
    if missing is None:
        absent = [name for name in assets if not (folder / "assets" / name).exists()]
        missing = f"there is no assets/{absent[0]}" if absent else None
    return missing


def _versions(path: Path) -> list[Path]:
    numbered = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    return sorted(numbered, key=lambda entry: int(entry.name), reverse=True)


def _lacking_variables(folder: Path, *, needed: bool) -> str | None:
    index = folder / _INDEX
    if not index.exists():
        return f"there is no variables/{_INDEX}" if needed else None
    if not index.read_bytes().endswith(_TABLE_END):
        return f"variables/{_INDEX} is cut off"
    shards = [match for entry in folder.iterdir() if (match := _SHARD.fullmatch(entry.name))]
    if not shards or len(shards) < int(shards[0][1]):
        return "a file variables/variables.data-… is missing"
    return None


# --- the wire format of protocol buffers -------------------------------------------


class _CutOff(Exception):
    """Raised where a message ends before its last field does."""


def _needs(file: BinaryIO) -> tuple[bool, list[str]]:
    """Return whether a SavedModel has variables to restore, and the names of its assets."""
    file.seek(0, 2)
    end = file.tell()
    variables, assets, graphs = False, [], 0
    for number, start, stop in _fields(file, 0, end):
        if number != _META_GRAPH:
            continue
        graphs += 1
        for part, begin, over in _fields(file, start, stop):
            variables |= part in (_SAVER, _OBJECTS)
            if part == _ASSET:
                assets += [
                    _text(file, first, last)
                    for field, first, last in _fields(file, begin, over)
                    if field == _ASSET_NAME
                ]
    if not graphs:
        raise _CutOff
    return variables, assets


def _fields(file: BinaryIO, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the start and the end of each field of a message."""
    while position < end:
        tag, position = _varint(file, position)
        kind = tag & 7
        if kind == 0:
            start, (_, position) = position, _varint(file, position)
        elif kind == 2:
            length, start = _varint(file, position)
            position = start + length
        else:
            start, position = position, position + {1: 8, 5: 4}.get(kind, end)
        if position > end:
            raise _CutOff
        yield tag >> 3, start, position


def _varint(file: BinaryIO, position: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    file.seek(position)
    number = 0
    for count, byte in enumerate(file.read(10)):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return number, position + count + 1
    raise _CutOff


def _text(file: BinaryIO, start: int, end: int) -> str:
    file.seek(start)
    return file.read(end - start).decode()


# --- messages ----------------------------------------------------------------------


def _require_whole(path: Path) -> None:
    missing = lacks(path)
    if missing is not None:
        raise FileNotFoundError(
            f"the SavedModel in {str(path)!r} is not whole: {missing}. It is still being written, "
            "or was not copied to its end"
        )


def _none_is_whole(path: Path, versions: list[Path]) -> str:
    found = "; ".join(f"{version.name}: {lacks(version)}" for version in versions[:3])
    return (
        f"no version in {str(path)!r} is whole ({found}): they are still being written, or were "
        "not copied to their end"
    )


def _no_saved_model(path: Path) -> str:
    """Say what a path is, if it is no SavedModel, and what takes it."""
    if path.is_file():
        said = f"{str(path)!r} is a file"
        if path.name == MODEL_FILE:
            return f"{said}: expected the folder that it is in, {str(path.parent)!r}"
        if path.suffix in (".keras", ".h5", ".hdf5"):
            return f"{said} of Keras: KerasPredictor({str(path)!r}) takes it"
        return f"{said}, expected the folder of a SavedModel"
    names = sorted(entry.name for entry in path.iterdir())
    said = f"there is no {MODEL_FILE} in {str(path)!r}"
    keras = [name for name in names if name.endswith((".keras", ".h5", ".hdf5"))]
    if keras:
        return f"{said}, but the Keras file {keras[0]!r}: KerasPredictor takes that"
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        return (
            f"{said}, but a checkpoint: EstimatorPredictor takes the function that builds its "
            "Estimator; estimator.export_saved_model writes a SavedModel"
        )
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        f"{said} and no version of one (1, 2, …): there is {shown or 'nothing'}. tf.saved_model."
        "save, model.export and estimator.export_saved_model write one"
    )
