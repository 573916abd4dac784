"""Where a predictor's model comes from, and which version of it is there now.

The application asks that while a pool watches its model, so it takes the standard library
alone, never TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from predictpool.predictors._versions import find_model

SourceKind = Literal["checkpoint", "saved_model", "file"]

_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})")
_NEWEST = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)


@dataclass(frozen=True)
class ModelSource:
    """Where a predictor's model comes from, for ``PredictorPool(watch=...)``.

    A predictor that may be watched has an attribute ``source``, which its `load` sets before
    it reads the model: ``self.source = ModelSource.at(path, "file")``.

    Attributes:
        path: a file or directory, absolute.
        kind: ``"checkpoint"``: a directory with TensorFlow's file ``checkpoint``, which names
            the newest one. ``"saved_model"``: the directory of a SavedModel, or one of
            numbered directories of them, of which the highest counts. ``"file"``: one file.
        loaded: the version that was there when this was made; None where it was not
            complete.
    """

    path: str
    kind: SourceKind
    loaded: str | None

    @classmethod
    def at(cls, path: str | os.PathLike[str], kind: SourceKind) -> Self:
        """Return the source at a path, as it is now.

        Raises:
            ValueError: ``kind`` is none of the three.
            OSError: the path is there and cannot be read.
        """
        if kind not in get_args(SourceKind):
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(SourceKind))}")
        absolute = os.path.abspath(path)  # noqa: PTH100 - a link may point elsewhere later
        return cls(absolute, kind, _VERSIONS[kind](Path(absolute)))

    def version(self) -> str | None:
        """Return which version is there now; None where there is none that is complete.

        Two versions differ if the name, size or time of one of their files does. Reads
        the file system.

        Raises:
            OSError: the path is there and cannot be read.
        """
        return _VERSIONS[self.kind](Path(self.path))


# --- the kinds ---------------------------------------------------------------------


def _file_version(path: Path) -> str | None:
    return _version(path.name, [path])


def _checkpoint_version(folder: Path) -> str | None:
    try:
        newest = _NEWEST.search((folder / "checkpoint").read_bytes())
        if newest is None:
            return None
        name = os.fsdecode(_ESCAPE.sub(_unescaped, newest[1]))
        files = _checkpoint_files(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _version(name, files) if files else None


def _saved_model_version(path: Path) -> str | None:
    try:
        folder = find_model(path)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _version(folder.name, files)


_VERSIONS: dict[SourceKind, Callable[[Path], str | None]] = {
    "checkpoint": _checkpoint_version,
    "saved_model": _saved_model_version,
    "file": _file_version,
}


# --- files -------------------------------------------------------------------------


def _version(name: str, files: Iterable[Path]) -> str | None:
    """Return a name and what tells these files from others in their place."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        for file in files:
            status = file.stat()
            digest.update(os.fsencode(file) + b"\0%d %d\0" % (status.st_size, status.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return None  # gone between two looks at the same directory
    return f"{name} ({digest.hexdigest()})"


def _checkpoint_files(prefix: Path) -> list[Path]:
    """Return the files of a checkpoint, or none where one of them is missing."""
    names = {entry.name for entry in prefix.parent.iterdir()}
    for name in sorted(names):
        shard = _SHARD.fullmatch(name.removeprefix(prefix.name))
        if shard is not None and name.startswith(prefix.name):
            wanted = [f"{prefix.name}.index"]
            wanted += [f"{prefix.name}.data-{n:05}-of-{shard[2]}" for n in range(int(shard[2]))]
            if names.issuperset(wanted):
                return [prefix.with_name(each) for each in wanted]
    return []


def _unescaped(match: re.Match[bytes]) -> bytes:
    """Return a character that the text form of a protocol buffer escapes."""
    character = match[1]
    if character.isdigit():
        return bytes([int(character, 8) & 0xFF])
    return {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(character, character)
